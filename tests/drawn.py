"""Stories that runs tell, and what a terminal shows of them as text; as a program it prints such a recording.

python tests/drawn.py                  one plan, then a batch of 20
python tests/drawn.py MESSAGES.jsonl   the messages of a run that was followed, a StreamMessage a line
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ptc_contracts.events import StreamEventType, StreamMessage
from roma_bridge.show.live import Canvas, PlansScreen, RunScreen
from roma_bridge.show.view import PlanRow, PlansView, RunView

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from roma_bridge.show.live import Screen

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def told(
    kind: str, at: float = 0.0, /, *, stage: str | None = None, words: str | None = None, **data: Any
) -> StreamMessage:
    """Make a message that was sent so many seconds after the first."""
    return StreamMessage(
        event_type=StreamEventType(kind),
        timestamp=T0 + timedelta(seconds=at),
        execution_id="ledger",
        stage=stage,
        message=words,
        data=data or None,
    )


def usage(calls: int, tokens: int, cost: float | None) -> dict[str, Any]:
    """What a run used so far."""
    return {"calls": calls, "total_tokens": tokens, "cost_usd": cost}


def opening() -> list[StreamMessage]:
    """A run begins."""
    return [
        told("execution_started", run_id="r-1", key="k", max_iterations=3),
        told("stage_started", 0.1, stage="generate", iteration=1, max_iterations=3, start=1),
    ]


def writing(
    seconds: float = 0.2, text: str = "import re\n\n\ndef parse(line):\n    return"
) -> list[StreamMessage]:
    """A model is asked, and writes."""
    return [
        told("code_generating", seconds, provider="claude", model="sonnet", request="draft"),
        told("code_generating", seconds + 1, text=text, chars=len(text)),
    ]


def drafted(seconds: float, *paths: str) -> list[StreamMessage]:
    """The model has answered, and the gate has looked."""
    issue = {"file": "ledger/parse.py", "line": 3, "code": "F401", "message": "`re` imported but unused"}
    return [
        told(
            "code_generated",
            seconds,
            provider="claude",
            model="sonnet",
            outcome="ok",
            seconds=4.2,
            usage=usage(1, 2223, 0.0141),
        ),
        *(
            told("code_block_ready", seconds, path=path, language="python", bytes=9, new=True)
            for path in paths
        ),
        told("validation_started", seconds, files=len(paths)),
        told("validation_warning", seconds, issues=[issue]),
        told("stage_completed", seconds, stage="generate", follows="sandbox"),
    ]


def ran(seconds: float, outcomes: Iterable[str], iteration: int = 1) -> Iterator[StreamMessage]:
    """Tests begin, and end one after the other, a tenth of a second each."""
    outcomes = list(outcomes)
    yield told("stage_started", seconds, stage="sandbox", iteration=iteration, max_iterations=3, start=1)
    yield told("test_started", seconds, stage="sandbox", runner="pytest", collected=len(outcomes))
    kinds = {"passed": "test_passed", "xfailed": "test_passed", "skipped": "progress"}
    for number, outcome in enumerate(outcomes):
        at = seconds + number / 10
        name = f"tests/test_ledger.py::test_{number}"
        yield told(kinds.get(outcome, "test_failed"), at, test=name, outcome=outcome, seconds=0.1)


def judged(seconds: float, iteration: int, outcome: str, passed: int, failed: int) -> StreamMessage:
    """An iteration has its verdict."""
    facts: dict[str, Any] = {
        "iteration": iteration,
        "outcome": outcome,
        "passed": passed,
        "failed": failed,
        "issues": 0,
    }
    return told("stage_completed", seconds, stage="sandbox", follows="generate", **facts)


def ended(seconds: float, status: str = "SUCCESS") -> StreamMessage:
    """A run has ended."""
    kind = "execution_completed" if status in {"SUCCESS", "PARTIAL_SUCCESS"} else "execution_failed"
    return told(kind, seconds, status=status, duration_seconds=seconds, usage=usage(2, 5594, 0.0312))


def red_then_green() -> list[StreamMessage]:
    """A run whose first draft fails some tests, and whose second one passes."""
    outcomes = ["passed", "failed", "passed", "skipped", "error", "passed", "passed"]
    return [
        *opening(),
        *writing(),
        *drafted(4.5, "ledger/__init__.py", "ledger/parse.py", "tests/test_ledger.py"),
        *ran(5.0, outcomes),
        judged(6.0, 1, "failed", 4, 2),
        told("stage_started", 6.1, stage="generate", iteration=2, max_iterations=3, start=1),
        *writing(6.2, "def parse(line):\n    day, amount = line.split()\n    return day, amount"),
        *drafted(8.0, "ledger/parse.py"),
        *ran(8.5, ["passed"] * 7, iteration=2),
        judged(9.4, 2, "passed", 7, 0),
        ended(9.5),
    ]


def view_of(messages: Iterable[StreamMessage]) -> RunView:
    """Take messages in."""
    view = RunView(T0)
    for message in messages:
        view.take(message)
    return view


def drawn(
    screen: Screen,
    *,
    width: int = 80,
    height: int = 24,
    encoding: str = "utf-8",
    seconds: float = 0.0,
    end: bool = False,
) -> list[str]:
    """Give the rows of a screen as a terminal of this size shows them, so many seconds after the first message."""
    console = Console(file=StringIO(), record=True, width=width, height=height, force_terminal=True)
    canvas = Canvas(width, height, encoding, T0 + timedelta(seconds=seconds))
    console.print(screen.draw_end(canvas) if end else screen.draw(canvas))
    return [line.rstrip() for line in console.export_text().rstrip("\n").split("\n")]


def run_screen(view: RunView) -> RunScreen:
    """Make a screen of a run, which no terminal shows."""
    return RunScreen(view, Console(file=StringIO()))


def plans_screen(rows: list[PlanRow]) -> PlansScreen:
    """Make a screen of many plans, which no terminal shows."""
    return PlansScreen(PlansView(rows), Console(file=StringIO()))


def batch(size: int, *, ended_ones: int, under_way: int) -> list[PlanRow]:
    """Make rows of plans that have ended, then of those under way, then of those that wait."""
    rows = [PlanRow(f"plan-{number:02}") for number in range(size)]
    for number, row in enumerate(rows[: ended_ones + under_way]):
        row.view = view_of(
            red_then_green() if number < ended_ones else red_then_green()[: 5 + 3 * (number % 5)]
        )
        if number < ended_ones:
            row.status = "SUCCESS" if number % 4 else "PARTIAL_SUCCESS"
            row.cost_usd, row.ended_at = 0.0312, T0 + timedelta(seconds=9.5)
    return rows


def _stills(messages: list[StreamMessage]) -> Iterator[str]:
    """Draw a run about once a second of its time, and what stays."""
    view, last = RunView(messages[0].timestamp), float("-inf")
    screen = run_screen(view)
    screen.say("run r-1: submitted")
    for message in messages:
        view.take(message)
        at = (message.timestamp - T0).total_seconds()
        if at - last >= 1:
            last = at
            yield _still(f"{at:.1f} s", drawn(screen, seconds=at))
    yield _still("what stays", drawn(screen, end=True))


def _still(title: str, rows: list[str]) -> str:
    return "\n".join([f"── {title} ".ljust(80, "─"), *rows])


def main() -> None:
    """Print stills."""
    if sys.argv[1:]:
        lines = Path(sys.argv[1]).read_text().splitlines()
        print("\n".join(_stills([StreamMessage.model_validate_json(line) for line in lines])))
        return
    print("\n".join(_stills(red_then_green())))
    rows = batch(20, ended_ones=7, under_way=5)
    for height in (24, 14):
        print(
            _still(f"20 plans, {height} rows", drawn(plans_screen(rows), width=100, height=height, seconds=7))
        )


if __name__ == "__main__":
    main()
