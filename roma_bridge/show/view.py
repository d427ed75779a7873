"""What is known of runs from the messages that they have told so far; who shows it is not known here."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isfinite
from typing import TYPE_CHECKING, Any

from ptc_contracts import ExecutionStatus
from ptc_contracts.events import ENDS, StreamEventType
from ptc_contracts.verdicts import Outcome
from roma_bridge.terminal import one_line, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ptc_contracts.events import StreamMessage

    Facts = dict[str, Any]

MOST_KEPT = 100
"""Tests, files and issues that are kept to be shown; all are counted."""

WRITTEN_KEPT = 4000
"""Characters that are kept of what a model writes."""

GREEN = frozenset({ExecutionStatus.SUCCESS.value, ExecutionStatus.CACHE_HIT.value})
"""How a plan ends that has a result which can be used as it is."""


@dataclass(frozen=True)
class Examined:
    """What became of one iteration."""

    iteration: int
    outcome: str
    passed: int = 0
    failed: int = 0

    @property
    def green(self) -> bool:
        """Whether its tests passed."""
        return self.outcome == Outcome.PASSED.value

    def __str__(self) -> str:
        counts = f": {self.passed} passed, {self.failed} failed" if self.passed or self.failed else ""
        return self.outcome + counts


@dataclass(frozen=True)
class TestMark:
    """One test that ended, by its own report."""

    __test__ = False  # pytest collects by name

    test: str
    outcome: str
    seconds: float | None = None


@dataclass
class TestMarks:
    """The tests of a draft as they end: all counted, of many only some kept."""

    __test__ = False  # pytest collects by name

    counts: Counter[str] = field(default_factory=Counter)
    """How many there are of each outcome."""
    failed: int = 0
    expected: int = 0
    """How many there will be; 0 where nobody said."""
    failures: list[TestMark] = field(default_factory=list)
    """The first ones that failed."""
    others: deque[TestMark] = field(default_factory=lambda: deque(maxlen=MOST_KEPT))
    """The last ones that did not."""

    @property
    def ended(self) -> int:
        """How many have ended."""
        return self.counts.total()

    def add(self, mark: TestMark, *, failed: bool) -> None:
        """Count a test."""
        self.counts[mark.outcome] += 1
        self.failed += failed
        if not failed:
            self.others.append(mark)
        elif len(self.failures) < MOST_KEPT:
            self.failures.append(mark)

    def __add__(self, more: TestMarks) -> TestMarks:
        return TestMarks(
            self.counts + more.counts,
            self.failed + more.failed,
            self.expected + more.expected,
            [*self.failures, *more.failures][:MOST_KEPT],
            deque([*self.others, *more.others], maxlen=MOST_KEPT),
        )

    @property
    def short(self) -> str:
        """The same in fewer words."""
        if not (self.ended or self.expected):
            return ""
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.ended} of {max(self.expected, self.ended)} tests{failed}"

    def __str__(self) -> str:
        red = {mark.outcome for mark in self.failures}
        others = [f"{n} {outcome}" for outcome, n in self.counts.items() if outcome not in {"passed", *red}]
        of = f" of {self.expected}" if self.expected else ""
        return ", ".join([f"{self.counts['passed']} passed", f"{self.failed} failed", *others]) + of


@dataclass
class Usage:
    """What models cost so far."""

    calls: int = 0
    tokens: int = 0
    cost_usd: float | None = 0.0
    """US dollars; None where a price is unknown."""

    @property
    def cost(self) -> str:
        """The price in words; empty before the first call."""
        known = "price unknown" if self.cost_usd is None else f"${self.cost_usd:.4f}"
        return known if self.calls else ""

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens, {self.cost}" if self.calls else ""


@dataclass
class RunView:
    """A run as its messages tell it, taken in their order; their text is made fit for a terminal on the way in.

    What a message lacks, or has in another form, is passed over: it may come from a worker of another version.
    """

    began: datetime
    """When its first message came; before it, when somebody began to look."""
    name: str = ""
    """The execution of the plan."""
    run_id: str = ""
    iteration: int = 0
    """The one under way, from 1; 0 before the first."""
    max_iterations: int = 0
    stage: str = ""
    """`generate` or `sandbox`, the last one that began."""
    doing: str = "waits for a worker"
    """What it does now, in words."""
    model: str = ""
    """Provider and model of the last call."""
    written: str = ""
    """The end of what the model under way has written, as it came."""
    characters: int = 0
    """How much it has written."""
    examined: dict[int, Examined] = field(default_factory=dict)
    """The verdict of each iteration so far."""
    files: dict[str, None] = field(default_factory=dict)
    """The first paths of the draft."""
    file_count: int = 0
    issues: list[str] = field(default_factory=list)
    """The first things that the gate found in the draft."""
    issue_count: int = 0
    usage: Usage = field(default_factory=Usage)
    status: str = ""
    """How it ended; empty while it goes on."""
    error: str = ""
    """Why it ended without a usable result."""
    heard: datetime | None = None
    """When its last message was sent."""
    _duration: float | None = None
    _tests: dict[str, TestMarks] = field(default_factory=dict)
    """By runner; the last one is at work."""

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return bool(self.status)

    @property
    def green(self) -> bool:
        """Whether it ended with a result that can be used as it is."""
        return self.status in GREEN

    @property
    def tests(self) -> TestMarks:
        """The draft's tests."""
        return sum(self._tests.values(), TestMarks())

    def seconds(self, now: datetime) -> float:
        """Return for how long it has been going on, or went on."""
        if self._duration is not None:
            return self._duration
        latest = max(now, self.heard or now)  # the worker's clock may be ahead
        return (latest if not self.ended else self.heard or now).timestamp() - self.began.timestamp()

    def last_lines(self, count: int) -> list[str]:
        """Return the last lines of what the model under way has written."""
        return [printable(line.expandtabs(4)) for line in self.written.splitlines() if line.strip()][-count:]

    def take(self, message: StreamMessage) -> None:
        """Take the next message in."""
        if self.heard is None:
            self.began = message.timestamp
        self.heard = message.timestamp
        self.name = self.name or one_line(message.execution_id or "")
        facts = message.data or {}
        self._note_usage(facts)
        if step := _STEPS.get(message.event_type):
            step(self, message, facts)

    def _note_usage(self, facts: Facts) -> None:
        usage = facts.get("usage")
        if isinstance(usage, dict):
            cost = number(usage, "cost_usd")
            self.usage = Usage(count(usage, "calls"), count(usage, "total_tokens"), cost)

    def _starts(self, _: StreamMessage, facts: Facts) -> None:
        self.run_id = self.run_id or text(facts, "run_id")
        self.max_iterations = count(facts, "max_iterations") or self.max_iterations

    def _begins_stage(self, message: StreamMessage, facts: Facts) -> None:
        self.iteration = count(facts, "iteration") or self.iteration
        self.max_iterations = count(facts, "max_iterations") or self.max_iterations
        self.stage = message.stage or ""
        self._tests = {}
        if self.stage == "sandbox":
            self.doing = "its tests run"
        else:
            self.doing = "a model writes"
            self._forgets_draft()

    def _forgets_draft(self) -> None:
        self.files, self.file_count = {}, 0
        self.issues, self.issue_count = [], 0
        self.written, self.characters, self.model = "", 0, ""

    def _writes(self, _: StreamMessage, facts: Facts) -> None:
        self.doing = "a model writes"
        if "text" not in facts:
            self.model = " ".join(filter(None, (text(facts, "provider"), text(facts, "model"))))
            self.written, self.characters = "", 0
            return
        new = facts["text"] if isinstance(facts["text"], str) else ""
        self.written = (self.written + new)[-WRITTEN_KEPT:]
        self.characters = count(facts, "chars") or self.characters + len(new)

    def _has_file(self, _: StreamMessage, facts: Facts) -> None:
        path = text(facts, "path")
        if path in self.files:
            return
        self.file_count += 1
        if len(self.files) < MOST_KEPT:
            self.files[path] = None

    def _is_examined(self, _: StreamMessage, __: Facts) -> None:
        self.doing = "the gate looks at the draft"

    def _has_issues(self, _: StreamMessage, facts: Facts) -> None:
        found = issues(facts)
        self.issue_count = len(found)
        self.issues = found[:MOST_KEPT]

    def _begins_tests(self, _: StreamMessage, facts: Facts) -> None:
        runner = text(facts, "runner")
        self._tests.pop(runner, None)  # what it told before holds no more
        self._tests[runner] = TestMarks(expected=count(facts, "collected"))
        self.doing = "its tests run"

    def _has_test(self, message: StreamMessage, facts: Facts) -> None:
        if mark := mark_in(facts):
            marks = list(self._tests.values()) or [self._tests.setdefault("", TestMarks())]
            marks[-1].add(mark, failed=message.event_type is StreamEventType.TEST_FAILED)

    def _moves(self, message: StreamMessage, facts: Facts) -> None:
        if "test" in facts:
            self._has_test(message, facts)
        elif message.message:
            self.doing = f"{self.doing.partition(';')[0]}; {one_line(message.message)}"

    def _is_held_up(self, message: StreamMessage, _: Facts) -> None:
        self.doing = one_line(message.message or message.error or self.doing)

    def _ends_stage(self, message: StreamMessage, facts: Facts) -> None:
        if examined := examined_in(facts):
            self.examined[examined.iteration] = examined
        follows = text(facts, "follows") or ("sandbox" if message.stage == "generate" else "generate")
        self.doing = {"sandbox": "waits for a sandbox", "generate": "waits for a model"}.get(follows, "ends")

    def _ends(self, message: StreamMessage, facts: Facts) -> None:
        failed = message.event_type is StreamEventType.EXECUTION_FAILED
        known = text(facts, "status")
        self.status = known or (ExecutionStatus.FAILURE if failed else ExecutionStatus.SUCCESS).value
        self.error = one_line(message.error or "")
        self.doing = self.status
        self._duration = number(facts, "duration_seconds")


_STEPS: dict[StreamEventType, Callable[[RunView, StreamMessage, Facts], None]] = {
    StreamEventType.EXECUTION_STARTED: RunView._starts,  # noqa: SLF001 its own table
    StreamEventType.STAGE_STARTED: RunView._begins_stage,  # noqa: SLF001
    StreamEventType.STAGE_COMPLETED: RunView._ends_stage,  # noqa: SLF001
    StreamEventType.CODE_GENERATING: RunView._writes,  # noqa: SLF001
    StreamEventType.CODE_BLOCK_READY: RunView._has_file,  # noqa: SLF001
    StreamEventType.VALIDATION_STARTED: RunView._is_examined,  # noqa: SLF001
    StreamEventType.VALIDATION_PASSED: RunView._has_issues,  # noqa: SLF001
    StreamEventType.VALIDATION_WARNING: RunView._has_issues,  # noqa: SLF001
    StreamEventType.VALIDATION_FAILED: RunView._has_issues,  # noqa: SLF001
    StreamEventType.TEST_STARTED: RunView._begins_tests,  # noqa: SLF001
    StreamEventType.TEST_PASSED: RunView._has_test,  # noqa: SLF001
    StreamEventType.TEST_FAILED: RunView._has_test,  # noqa: SLF001
    StreamEventType.PROGRESS: RunView._moves,  # noqa: SLF001
    StreamEventType.WARNING: RunView._is_held_up,  # noqa: SLF001
    StreamEventType.ERROR: RunView._is_held_up,  # noqa: SLF001
    **dict.fromkeys(ENDS, RunView._ends),  # noqa: SLF001
}


@dataclass
class PlanRow:
    """One plan of many."""

    name: str
    view: RunView | None = None
    """None before it was submitted."""
    status: str = ""
    """What became of it; empty while it waits or goes on."""
    cost_usd: float | None = 0.0
    """US dollars that it cost now, once it has ended; None where a price is unknown."""
    ended_at: datetime | None = None
    pays: bool = True
    """Whether what its run costs is its own."""

    @property
    def under_way(self) -> bool:
        """Whether it was submitted and has not ended."""
        return self.view is not None and not self.status

    @property
    def cost_so_far(self) -> float | None:
        """US dollars; None where a price is unknown."""
        if self.view and not self.status:
            return self.view.usage.cost_usd if self.pays else 0.0
        return self.cost_usd

    def begin(self, *, pays: bool) -> None:
        """Note that it was submitted."""
        self.pays = pays
        self.view = RunView(datetime.now(UTC), one_line(self.name))

    def end(self, status: str, cost_usd: float | None) -> None:
        """Note what became of it."""
        self.status, self.cost_usd, self.ended_at = status, cost_usd, datetime.now(UTC)


@dataclass
class PlansView:
    """Many plans of one command."""

    rows: list[PlanRow]
    """In the order of their submission."""

    def bounded(self, most: int) -> list[PlanRow]:
        """Return so many rows: those under way first, then those that ended last, then those that wait."""
        ended = [row for row in reversed(self.rows) if row.status]
        waiting = [row for row in self.rows if row.view is None and not row.status]
        under_way = [row for row in self.rows if row.under_way]
        return [*under_way, *ended, *waiting][:most]

    def __str__(self) -> str:
        ended = [row for row in self.rows if row.status]
        green = sum(row.status in GREEN for row in ended)
        under_way = sum(row.under_way for row in self.rows)
        return (
            f"{len(ended)} of {len(self.rows)} done: {green} green, {len(ended) - green} red; "
            f"{under_way} under way; {self._cost()}"
        )

    def _cost(self) -> str:
        costs = [row.cost_so_far for row in self.rows]
        known = f"${sum(filter(None, costs)):.4f}"
        return f"{known} and what is of unknown price" if None in costs else known


def mark_in(facts: Facts) -> TestMark | None:
    """Read the test that a message tells of."""
    if not (test := text(facts, "test")):
        return None
    return TestMark(test, text(facts, "outcome"), number(facts, "seconds"))


def examined_in(facts: Facts) -> Examined | None:
    """Read the verdict that a message tells of."""
    if not (outcome := text(facts, "outcome")):
        return None
    return Examined(count(facts, "iteration"), outcome, count(facts, "passed"), count(facts, "failed"))


def issues(facts: Facts) -> list[str]:
    """Word what the gate found."""
    found = facts.get("issues")
    return [_issue(issue) for issue in found if isinstance(issue, dict)] if isinstance(found, list) else []


def _issue(issue: Facts) -> str:
    place = ":".join(filter(None, (text(issue, "file"), str(count(issue, "line") or ""))))
    return ": ".join(filter(None, (place, text(issue, "message"))))


def few(names: Iterable[str], total: int, most: int) -> str:
    """List the first of many names, and say how many more there are."""
    shown = list(names)[:most]
    more = f" … and {total - len(shown)} more" if total > len(shown) else ""
    return ", ".join(shown) + more


def text(facts: Facts, name: str) -> str:
    """Read one line of text; empty where there is none."""
    value = facts.get(name)
    return one_line(value) if isinstance(value, str) else ""


def count(facts: Facts, name: str) -> int:
    """Read a number of things; 0 where there is none."""
    return int(number(facts, name) or 0)


def number(facts: Facts, name: str) -> float | None:
    """Read a number; None where there is none."""
    value = facts.get(name)
    is_one = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return value if is_one else None
