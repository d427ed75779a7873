"""What is known of a run from what it tells."""

from __future__ import annotations

from datetime import timedelta

import pytest
from drawn import T0, drafted, ended, judged, opening, ran, red_then_green, told, usage, view_of, writing

from ptc_contracts.events import StreamEventType, StreamMessage
from ptc_contracts.progress import IterationNote
from ptc_contracts.run import RunState, RunStatus
from ptc_contracts.stages import Stage
from ptc_contracts.verdicts import Outcome
from roma_bridge.show.recorded import told_by_record
from roma_bridge.show.view import MOST_KEPT, PlanRow, PlansView


def test_a_view_knows_where_a_run_is() -> None:
    """Iteration, what it does, whom it asked, and what was written."""
    view = view_of([*opening(), *writing(text="a = 1\nb = 2\nc =")])

    assert (view.run_id, view.name) == ("r-1", "ledger")
    assert (view.iteration, view.max_iterations, view.doing) == (1, 3, "a model writes")
    assert (view.model, view.characters) == ("claude sonnet", 15)
    assert view.last_lines(2) == ["b = 2", "c ="]


def test_a_view_counts_tests_and_keeps_those_that_failed() -> None:
    """By their own reports; what was left out is no failure."""
    view = view_of([*opening(), *ran(5, ["passed", "failed", "skipped", "error", "xfailed"])])

    assert [mark.outcome for mark in view.tests.failures] == ["failed", "error"]
    assert str(view.tests) == "1 passed, 2 failed, 1 skipped, 1 xfailed of 5"


def test_tests_of_two_runners_are_counted_together() -> None:
    """A draft may have both; what a runner told before it began again counts no more."""
    pytest_run = list(ran(5, ["passed", "failed"]))
    again = told("test_started", 6, runner="pytest", collected=1)
    node = told("test_started", 7, runner="node", collected=3)
    passed = told("test_passed", 7, test="a.test.mjs::b", outcome="passed", seconds=0.1)

    assert str(view_of([*pytest_run, node, passed]).tests) == "2 passed, 1 failed of 5"
    assert str(view_of([*pytest_run, again, passed]).tests) == "1 passed, 0 failed of 1"
    assert str(view_of([*pytest_run, node, again, passed, node]).tests) == "1 passed, 0 failed of 4"


def test_each_iteration_begins_with_nothing() -> None:
    """Files, issues, text and tests of the draft before are gone; its verdict stays."""
    begun = told("stage_started", 7, stage="generate", iteration=2, max_iterations=3, start=1)
    view = view_of(
        [
            *opening(),
            *writing(),
            *drafted(4, "a.py"),
            *ran(5, ["failed"]),
            judged(6, 1, "failed", 0, 1),
            begun,
        ]
    )

    assert (view.file_count, view.issues, view.last_lines(9), view.tests.ended) == (0, [], [], 0)
    assert [str(one) for one in view.examined.values()] == ["failed: 0 passed, 1 failed"]


def test_a_run_that_waits_says_for_what() -> None:
    """In the worker's words, until it goes on."""
    waits = told("warning", 1, words="waits: claude allows 5 calls a minute")

    assert view_of([*opening(), waits]).doing == "waits: claude allows 5 calls a minute"
    assert view_of([*opening(), waits, *writing()]).doing == "a model writes"


@pytest.mark.parametrize(
    ("cost", "words"), [(0.0312, "5,594 tokens, $0.0312"), (None, "5,594 tokens, price unknown")]
)
def test_what_models_cost_is_told_as_far_as_it_is_known(cost: float | None, words: str) -> None:
    """The last sum counts."""
    messages = [
        told("code_generated", 1, usage=usage(1, 9, 0.01)),
        told("code_generated", 2, usage=usage(2, 5594, cost)),
    ]

    assert str(view_of(messages).usage) == words


def test_a_run_that_has_ended_took_as_long_as_it_says() -> None:
    """One that goes on gets older; a worker's clock that is ahead makes nothing negative."""
    an_hour = T0 + timedelta(hours=1)

    assert view_of(red_then_green()).seconds(an_hour) == 9.5
    assert view_of(opening()).seconds(an_hour) == 3600
    assert view_of([told("execution_started", 60)]).seconds(T0) == 0


@pytest.mark.parametrize("kind", sorted(StreamEventType))
@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        dict.fromkeys(("iteration", "collected", "chars", "seconds", "usage", "issues", "files"), "odd"),
        {
            "iteration": float("nan"),
            "test": ["x"],
            "outcome": 3,
            "issues": ["x", {}],
            "usage": {"calls": "x"},
        },
        {"test": "a\nb", "outcome": "failed", "seconds": "x", "path": 7, "text": None, "status": 1},
    ],
)
def test_nothing_that_another_version_tells_breaks_a_view(
    kind: StreamEventType, data: dict[str, object] | None
) -> None:
    """What cannot be understood is passed over."""
    view = view_of([*opening(), StreamMessage(event_type=kind, timestamp=T0, data=data)])

    assert view.max_iterations == 3


def test_very_many_tests_and_files_are_counted_and_not_all_kept() -> None:
    """A run of any size takes little room."""
    outcomes = ["passed"] * 2000 + ["failed"] * 2000
    view = view_of([*opening(), *drafted(4, *(f"f{n}.py" for n in range(1000))), *ran(5, outcomes)])

    assert (view.tests.ended, view.tests.failed, view.file_count) == (4000, 2000, 1000)
    assert {len(view.tests.failures), len(view.tests.others), len(view.files)} == {MOST_KEPT}


def test_text_that_a_terminal_would_obey_never_gets_into_a_view() -> None:
    """Names of tests and files, issues, messages and code come from models."""
    evil = "\x1b]0;title\x07\x1b[2Jx\u202e"
    view = view_of(
        [
            *opening(),
            *writing(text=f"{evil}\n"),
            *drafted(4, evil),
            *ran(5, []),
            told("test_failed", 5, test=evil, outcome=evil, seconds=1),
            told("warning", 6, words=evil),
        ]
    )

    texts = [
        view.doing,
        *view.last_lines(3),
        *view.files,
        view.tests.failures[0].test,
        view.tests.failures[0].outcome,
    ]
    assert [text for text in texts if not text.isprintable()] == []


def test_a_record_tells_what_older_workers_do_not() -> None:
    """Verdicts and stages, each once."""
    notes = (IterationNote(iteration=1, outcome=Outcome.FAILED, passed=5, failed=4),)
    status = RunStatus(
        run_id="r",
        state=RunState.RUNNING,
        stage=Stage.SANDBOX,
        iteration=2,
        max_iterations=3,
        status=None,
        history=notes,
    )
    view = view_of([])
    first = list(told_by_record(status, view))
    for message in first:
        view.take(message)

    assert [message.event_type.value for message in first] == ["stage_completed", "stage_started"]
    assert (view.doing, str(view.examined[1])) == ("its tests run", "failed: 5 passed, 4 failed")
    assert list(told_by_record(status, view)) == []


def test_rows_under_way_come_first_then_what_ended_last() -> None:
    """Whoever looks at few of many rows sees what moves."""
    rows = [PlanRow(name) for name in ("early", "late", "runs", "waits")]
    for row in rows[:3]:
        row.begin(pays=True)
    for row in rows[:2]:
        row.end("SUCCESS", 0.5)

    assert [row.name for row in PlansView(rows).bounded(4)] == ["runs", "late", "early", "waits"]


def test_sums_of_many_plans_count_every_one() -> None:
    """Those that ended with their cost now, those under way with theirs so far; an unknown price is said."""
    rows = [PlanRow(name) for name in "abcd"]
    for row in rows[:3]:
        row.begin(pays=True)
    rows[0].end("SUCCESS", 0.5)
    rows[1].end("FAILURE", None)
    rows[2].view = view_of([told("code_generated", usage=usage(1, 9, 0.25))])

    assert str(PlansView(rows)) == (
        "2 of 4 done: 1 green, 1 red; 1 under way; $0.7500 and what is of unknown price"
    )


def test_what_shares_a_run_with_another_plan_costs_nothing_more() -> None:
    """While it goes on, too."""
    row = PlanRow("joined")
    row.begin(pays=False)
    row.view = view_of([told("code_generated", usage=usage(1, 9, 0.25))])

    assert str(PlansView([row])).endswith("; $0.0000")


def test_the_end_is_known_by_its_status() -> None:
    """And why."""
    view = view_of([*opening(), ended(3, "FAILURE")])

    assert (view.ended, view.green, view.status) == (True, False, "FAILURE")
