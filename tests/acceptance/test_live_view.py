"""What somebody sees who runs `ptc-enqueue` at a terminal."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from support import answer_with, make_plan, replaying
from terminal import CTRL_C, terminal
from terminal_seen import Seen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from terminal import Terminal

TICK = "1 passed, 0 failed of 2"
"""What is seen while the second test runs, and never after it."""

COLOURS = {"31", "32", "33", "36"}

TESTS = "import time\n\ndef test_quick():\n    pass\n\ndef test_slow():\n    time.sleep({seconds})\n"


@contextmanager
def enqueued(
    home: Path, user: Mapping[str, str], seconds: float, *options: str, **environment: str
) -> Iterator[Terminal]:
    """Run the command at a terminal, with a plan whose second test takes so many seconds."""
    plan = make_plan("Add two numbers", execution_id="adder")
    (home / "plan.json").write_text(plan.model_dump_json())
    with replaying((plan, [answer_with(tests__test_it_py=TESTS.format(seconds=seconds))])) as replay:
        models = {"ANTHROPIC_BASE_URL": replay.url, "ANTHROPIC_API_KEY": "made-up"}
        given = {**user, **models, "LANG": "C.UTF-8", **environment}
        with terminal(home, given, "--local", *options, "plan.json") as session:
            yield session


def test_tests_tick_while_they_run_and_what_stays_is_the_end(tmp_path: Path, user: Mapping[str, str]) -> None:
    """The region goes, its last state and the summary stay, and the cursor is there again."""
    with enqueued(tmp_path, user, seconds=2) as session:
        session.until(TICK)
        ticking = Seen(session.shown)
        code = session.end()

    end = Seen(session.shown)
    rows = end.text.splitlines()
    assert "    ✓ tests/test_it.py::test_quick" in ticking.text
    assert (code, ticking.cursor_shown, end.cursor_shown) == (0, False, True)
    assert rows[0].endswith(": submitted")
    assert rows[1].startswith("adder | 0:")
    assert rows[2] == "  ✓ iteration 1: passed: 2 passed, 0 failed"
    assert rows[3].startswith("SUCCESS in ")
    assert end.text.count("iteration 1") == 1


def test_ctrl_c_leaves_a_clean_terminal(tmp_path: Path, user: Mapping[str, str]) -> None:
    """It says where the run was; no half region stays, and the cursor is there again."""
    with enqueued(tmp_path, user, seconds=600) as session:
        session.until(TICK)
        session.type(CTRL_C)
        session.until("Cancel the run")
        asked = Seen(session.shown)
        session.type("\n")
        code = session.end()

    rows = [row for row in asked.text.splitlines() if row and row != "^C"]
    assert (code, asked.cursor_shown) == (130, True)
    assert rows[1].startswith("adder | 0:")
    assert rows[2] == "  iteration 1 of 3: its tests run"
    assert rows[3].startswith("Cancel the run")
    assert "test_quick" not in asked.text


@pytest.mark.parametrize(
    ("environment", "row"),
    [
        ({"NO_COLOR": "1"}, "  ✓ iteration 1: passed: 2 passed, 0 failed"),
        ({"PYTHONIOENCODING": "latin-1"}, "  + iteration 1: passed: 2 passed, 0 failed"),
        ({"TERM": "dumb"}, " s] iteration 1: passed: 2 passed, 0 failed"),
    ],
)
def test_every_terminal_gets_what_it_can_show(
    tmp_path: Path, user: Mapping[str, str], environment: dict[str, str], row: str
) -> None:
    """No colours, only what its encoding has, or lines in place of a region."""
    with enqueued(tmp_path, user, 0, **environment) as session:
        code = session.end()

    seen = Seen(session.shown)
    told = seen.text.partition("SUCCESS in")[0]
    assert (code, seen.cursor_shown) == (0, True)
    assert [line for line in told.splitlines() if line.endswith(row)] != []
    assert bool(seen.styles & COLOURS) == ("PYTHONIOENCODING" in environment)
