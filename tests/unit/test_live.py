"""What a terminal shows of runs, in whatever room it has."""

from __future__ import annotations

import pytest
from drawn import (
    batch,
    drafted,
    drawn,
    judged,
    opening,
    plans_screen,
    ran,
    red_then_green,
    run_screen,
    told,
    view_of,
    writing,
)
from rich.cells import cell_len

from roma_bridge.show.live import clock

SIZES = [(200, 60), (80, 24), (40, 10), (20, 5), (10, 2), (1, 1)]


def test_a_model_that_writes_is_seen_at_work() -> None:
    """Which plan, for how long, what it does, whom it asked, and the last lines."""
    screen = run_screen(view_of([*opening(), *writing(text="a = 1\n" * 50 + "last = 2")]))
    rows = drawn(screen, seconds=75)

    assert rows[0] == "ledger | 1:15"
    assert rows[1][1:] == " iteration 1 of 3: a model writes | claude sonnet | 308 characters"
    assert rows[-1] == "  | last = 2"


def test_tests_tick_with_marks_and_failures_come_first() -> None:
    """A long list ends with what came last."""
    screen = run_screen(view_of([*opening(), *ran(5, ["passed"] * 40 + ["failed", "skipped"])]))
    rows = drawn(screen, height=12)

    assert rows[2] == "  tests  40 passed, 1 failed, 1 skipped of 42"
    assert rows[3] == "    ✗ tests/test_ledger.py::test_40 (failed) 0.10 s"
    assert rows[4] == "    ✓ tests/test_ledger.py::test_34 0.10 s"
    assert rows[-1] == "    - tests/test_ledger.py::test_41 (skipped)"


def test_files_and_issues_of_a_draft_are_shown() -> None:
    """Of many files some are named."""
    screen = run_screen(view_of([*opening(), *drafted(4, *(f"f{n}.py" for n in range(9)))]))

    assert "  files  f0.py, f1.py, f2.py, f3.py … and 5 more" in drawn(screen)
    assert "  gate   ledger/parse.py:3: `re` imported but unused" in drawn(screen)


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("at", range(1, len(red_then_green()) + 1))
def test_a_run_never_takes_more_room_than_there_is(width: int, height: int, at: int) -> None:
    """Whatever it does, the last row stays free for the cursor, and no row is wider than the terminal."""
    view = view_of([*red_then_green()[:at], told("warning", words="waits: " + "表" * 300)])
    screen = run_screen(view)
    screen.say("run r-1: submitted " * 20)
    rows = drawn(screen, width=width, height=height)

    assert len(rows) <= max(height - 1, 1)
    assert max(map(cell_len, rows)) <= width


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("size", [1, 20, 500])
def test_a_batch_never_takes_more_room_than_there_is(width: int, height: int, size: int) -> None:
    """The rows that are not shown are counted."""
    rows = batch(size, ended_ones=size // 3, under_way=size // 3)
    shown = drawn(plans_screen(rows), width=width, height=height)

    assert len(shown) <= max(height - 1, 1)
    assert max(map(cell_len, shown)) <= width


def test_a_batch_shows_a_row_a_plan_and_their_sums() -> None:
    """Those under way first; the rest is counted."""
    shown = drawn(plans_screen(batch(20, ended_ones=7, under_way=5)), width=100, height=12, seconds=7)

    assert [row[2:9] for row in shown[:6]] == [
        "plan-07",
        "plan-08",
        "plan-09",
        "plan-10",
        "plan-11",
        "plan-06",
    ]
    assert shown[1].endswith("1 of 3: its tests run        0:07  1 of 7 tests            $0.0141")
    assert shown[-2:] == ["  … and 11 more", "7 of 20 done: 5 green, 2 red; 5 under way; $0.2889"]


def test_the_end_of_a_run_leaves_its_verdicts() -> None:
    """The summary tells the rest."""
    screen = run_screen(view_of(red_then_green()))
    screen.say("run r-1: submitted")

    assert drawn(screen, end=True) == [
        "run r-1: submitted",
        "ledger | 0:09 | 5,594 tokens, $0.0312",
        "  ✗ iteration 1: failed: 4 passed, 2 failed",
        "  ✓ iteration 2: passed: 7 passed, 0 failed",
    ]


def test_whoever_leaves_a_run_is_left_with_where_it_was() -> None:
    """After Ctrl-C, or when the time to wait is over."""
    screen = run_screen(view_of([*opening(), judged(6, 1, "failed", 0, 1), *ran(7, ["passed"], iteration=2)]))

    assert drawn(screen, end=True)[-1] == "  iteration 2 of 3: its tests run"


def test_a_terminal_that_has_only_ascii_gets_ascii() -> None:
    """Marks, the spinner, and what models and tests write."""
    evil = told("test_failed", 9, test="tests/test_é表.py::test", outcome="failed", seconds=0.1)
    screen = run_screen(
        view_of([*opening(), *drafted(4, *(f"f{n}.py" for n in range(99))), *ran(5, ["passed"]), evil])
    )
    rows = drawn(screen, encoding="ascii")
    narrow = drawn(screen, encoding="ascii", width=30)

    assert "".join(rows + narrow).isascii()
    assert "    x tests/test_??.py::test (failed) 0.10 s" in rows
    assert "    + tests/test_ledger.py::test_0 0.10 s" in rows


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (61.9, "1:01"), (3661, "1:01:01"), (-5, "0:00")])
def test_time_is_shown_as_a_clock_does(seconds: float, shown: str) -> None:
    """Hours only where there are any."""
    assert clock(seconds) == shown
