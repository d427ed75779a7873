"""What a run tells line by line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from drawn import T0, drafted, judged, opening, ran, red_then_green, told, writing

from roma_bridge.show.lines import MOST_FAILURES, Lines
from roma_bridge.show.view import RunView

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ptc_contracts.events import StreamMessage


def lines_of(messages: Iterable[StreamMessage]) -> list[str]:
    """Word messages, without colours."""
    view, worded = RunView(T0), []
    lines = Lines(view)
    for message in messages:
        view.take(message)
        worded += [click.unstyle(line) for line in lines.of(message)]
    return worded


def test_a_run_is_told_in_a_line_for_each_thing_worth_it() -> None:
    """Stages, answers with what they cost, files, issues, failing tests and verdicts; green tests only as a count."""
    assert lines_of(red_then_green()) == [
        "iteration 1 of 3: a model writes",
        "iteration 1: claude sonnet answered in 4.2 s; 2,223 tokens, $0.0141 so far",
        "iteration 1: 3 files: ledger/__init__.py, ledger/parse.py, tests/test_ledger.py",
        "iteration 1: gate: ledger/parse.py:3: `re` imported but unused",
        "iteration 1 of 3: its tests run",
        "iteration 1: failing: tests/test_ledger.py::test_1 (failed)",
        "iteration 1: failing: tests/test_ledger.py::test_4 (error)",
        "iteration 1: failed: 4 passed, 2 failed",
        "iteration 2 of 3: a model writes",
        "iteration 2: claude sonnet answered in 4.2 s; 2,223 tokens, $0.0141 so far",
        "iteration 2: 1 file: ledger/parse.py",
        "iteration 2: gate: ledger/parse.py:3: `re` imported but unused",
        "iteration 2 of 3: its tests run",
        "iteration 2: passed: 7 passed, 0 failed",
    ]


def test_two_thousand_tests_do_not_flood_a_log() -> None:
    """Some failures by name, and a count every ten seconds of a run whose tests take 200."""
    lines = lines_of([*opening(), *ran(5, ["passed", "failed"] * 1000)])

    named = [line for line in lines if "failing: " in line]
    counted = [line for line in lines if line.endswith("so far")]
    assert (len(named), len(counted)) == (MOST_FAILURES, 19)
    assert len(lines) < 50
    assert "iteration 1: more tests fail: from here on they are counted" in lines


def test_a_thousand_files_take_one_line() -> None:
    """The first are named."""
    lines = lines_of([*opening(), *drafted(4, *(f"f{n}.py" for n in range(1000)))])

    assert "iteration 1: 1000 files: f0.py, f1.py, f2.py, f3.py, f4.py, f5.py … and 994 more" in lines


def test_a_stage_that_begins_again_says_so() -> None:
    """Its worker had died; a stage that is merely told twice is no news."""
    again = told("stage_started", 9, stage="generate", iteration=1, max_iterations=3, start=2)

    assert lines_of([*opening(), opening()[1], again]) == [
        "iteration 1 of 3: a model writes",
        "iteration 1 of 3: a model writes (start 2)",
    ]


def test_a_verdict_is_told_once() -> None:
    """Whoever tells it again, the record or the result, finds it told."""
    verdict = judged(6, 1, "failed", 0, 1)

    assert lines_of([verdict, verdict]) == ["iteration 1: failed: 0 passed, 1 failed"]


def test_a_call_that_failed_is_a_warning() -> None:
    """In the worker's words, on one line."""
    failed = told("warning", 2, words="claude sonnet:\nrate_limited", outcome="rate_limited")

    assert "warning: claude sonnet: rate_limited" in lines_of([*opening(), *writing(), failed])
