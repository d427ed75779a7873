"""`ptc-enqueue --warm`: many plans, a few at a time, so that the cache answers whoever submits them later."""

from __future__ import annotations

import codecs
import json
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ptc_contracts import (
    CacheStrategy,
    ExecutionStatus,
    InvalidPlanError,
    PayloadTooLargeError,
    ServerUnavailableError,
)
from roma_bridge.client import read_plan
from roma_bridge.watching import (
    FETCH_SECONDS,
    GLANCE_SECONDS,
    NO_WORKER,
    NO_WORKER_SECONDS,
    OVERDUE_SECONDS,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ptc_contracts import PTCExecutionPlan
    from roma_bridge.client import PTC, PlanHandle

MOST_PROBLEMS = 50
"""Lines of a message about plans that are not valid."""

GOES_ON = "GOES ON"
"""What a row says of a run that had not ended when the time was over."""

NOT_SUBMITTED = "NOT SUBMITTED"
"""What a row says of a plan whose turn had not come when the time was over."""

REFUSED = "REFUSED"
"""What a row says of a plan that could not be submitted."""


@dataclass(frozen=True)
class Row:
    """What became of one plan."""

    line: int
    """Where it stands in the file, from 1."""
    execution_id: str
    status: str
    """An ExecutionStatus, or one of the words above."""
    source: str = ""
    """`new`, `joined` (a run of somebody else, or of a line before it), `earlier` (ended under this execution id a short
    while ago) or `cache`."""
    run_id: str = ""
    """Empty where the cache answered."""
    seconds: float = 0.0
    """From its submission to its end."""
    cost_usd: float | None = 0.0
    """US dollars that this plan cost now; null where a price is unknown."""
    error_message: str | None = None

    @property
    def warm(self) -> bool:
        """Whether the plan has a result that can be used as it is."""
        return self.status in {ExecutionStatus.SUCCESS.value, ExecutionStatus.CACHE_HIT.value}

    @property
    def unfinished(self) -> bool:
        """Whether the time was over before the plan had its result."""
        return self.status in {GOES_ON, NOT_SUBMITTED}


def read_plans(text: bytes) -> list[tuple[int, PTCExecutionPlan]]:
    """Read plans, one a line, or a single one over many lines; return each with the number of its line.

    Raises:
        InvalidPlanError: with a line for every field of every plan that breaks the contract, or keeps the plan out
            of the cache.
        ConfigurationError: a default from the environment does not fit a plan.
    """
    plans, problems = [], []
    for number, line in _texts(text.removeprefix(codecs.BOM_UTF8)):
        try:
            plans.append((number, _cacheable(read_plan(line))))
        except InvalidPlanError as error:
            problems += [f"line {number}: {problem}" for problem in str(error).splitlines()]
    if len(problems) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = [f"… and {len(problems) - MOST_PROBLEMS} more"]
    if problems or not plans:
        raise InvalidPlanError("\n".join(problems) or "there is none")
    return plans


def _texts(text: bytes) -> list[tuple[int, bytes]]:
    lines = [(number, line) for number, line in enumerate(text.split(b"\n"), 1) if line.strip()]
    return [(lines[0][0], text)] if len(lines) > 1 and _is_one_object(text) else lines


def _is_one_object(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _cacheable(plan: PTCExecutionPlan) -> PTCExecutionPlan:
    if plan.cache_strategy is CacheStrategy.NEVER:
        raise InvalidPlanError("cache_strategy: never keeps no result, so there is nothing to warm")
    if plan.cache_ttl == 0:
        raise InvalidPlanError("cache_ttl: 0 keeps no result, so there is nothing to warm")
    return plan


@dataclass
class _UnderWay:
    line: int
    handle: PlanHandle
    source: str
    began: float
    looked_after: float

    def row(self, status: str, **facts: Any) -> Row:  # noqa: ANN401 fields of a row
        return Row(
            line=self.line,
            execution_id=self.handle.plan.execution_id,
            status=status,
            source=self.source,
            run_id=self.handle.run_id,
            seconds=round(time.monotonic() - self.began, 2),
            **facts,
        )


@dataclass
class Warming:
    """Submits plans with so many under way at a time, and keeps a row for each that ended."""

    ptc: PTC
    waiting: deque[tuple[int, PTCExecutionPlan]]
    jobs: int
    say: Callable[[str], None]
    """Tells one line of progress."""
    expires: float | None = None
    """Seconds that a run may wait for its first start."""
    rows: list[Row] = field(default_factory=list)
    _under_way: list[_UnderWay] = field(default_factory=list)
    _said: str = ""
    _idle_since: float = field(default_factory=time.monotonic)
    _asked_for_workers: bool = False

    def run(self, timeout: float | None, check: Callable[[], None]) -> list[Row]:
        """Work until every plan has ended or the time is over; return a row for each, in the order of the file.

        Args:
            timeout: Seconds; what has not ended then goes on without us.
            check: Called at every look, to raise what makes waiting vain.

        Raises:
            ServerUnavailableError: Redis cannot be reached at the start, or not when the time is over.
        """
        started = time.monotonic()
        while self.waiting or self._under_way:
            check()
            over = timeout is not None and time.monotonic() - started >= timeout
            try:
                moved = self._step(submit=not over)
            except ServerUnavailableError as error:
                if over or not (self.rows or self._under_way):
                    raise
                self._say_once(f"{error}; waiting for it")
                moved = False
            if over:
                break
            if not moved:
                time.sleep(GLANCE_SECONDS)
        return sorted([*self.rows, *self._left_over()], key=lambda row: row.line)

    def _step(self, *, submit: bool) -> bool:
        """Submit what there is room for and note what has ended; tell whether there was any of either."""
        before = len(self.rows), len(self.waiting)
        while submit and self.waiting and len(self._under_way) < self.jobs:
            self._submit(*self.waiting[0])
            self.waiting.popleft()
        for one in list(self._under_way):
            self._look(one)
        self._said = ""
        if (len(self.rows), len(self.waiting)) != before:
            self._idle_since = time.monotonic()
            return True
        self._ask_for_workers()
        return False

    def _submit(self, line: int, plan: PTCExecutionPlan) -> None:
        now = time.monotonic()
        try:
            handle = self.ptc.submit(plan, expires=self.expires)
            source = _source(handle)
        except PayloadTooLargeError as error:
            self._note(Row(line, plan.execution_id, REFUSED, error_message=str(error)))
        else:
            self._under_way.append(_UnderWay(line, handle, source, began=now, looked_after=now))

    def _look(self, one: _UnderWay) -> None:
        if not one.handle.ready():
            if time.monotonic() - one.looked_after > OVERDUE_SECONDS:
                one.looked_after = time.monotonic()
                one.handle.end_if_over()  # where no worker is left to do it
            return
        result = one.handle.get(timeout=FETCH_SECONDS)
        usages = result.llm_usage if one.source == "new" else []
        costs = [usage.cost_usd for usage in usages]
        cost = None if None in costs else sum(filter(None, costs))
        self._under_way.remove(one)
        self._note(one.row(result.status.value, cost_usd=cost, error_message=result.error_message))

    def _note(self, row: Row) -> None:
        self.rows.append(row)
        total = len(self.rows) + len(self._under_way) + len(self.waiting)
        error = f": {row.error_message}" if row.error_message else ""
        self.say(f"{len(self.rows)} of {total}: {row.status} {row.execution_id} ({_facts(row)}){error}")

    def _ask_for_workers(self) -> None:
        if self._asked_for_workers or time.monotonic() - self._idle_since < NO_WORKER_SECONDS:
            return
        self._asked_for_workers = True
        if not self.ptc.workers_answer():
            self.say(NO_WORKER)

    def _say_once(self, line: str) -> None:
        if line != self._said:
            self.say(line)
        self._said = line

    def _left_over(self) -> Iterator[Row]:
        yield from (one.row(GOES_ON, cost_usd=None) for one in self._under_way)
        yield from (Row(line, plan.execution_id, NOT_SUBMITTED) for line, plan in self.waiting)


def _source(handle: PlanHandle) -> str:
    if handle.from_cache:
        return "cache"
    if handle.ready():
        return "earlier"
    return "joined" if handle.joined else "new"


def table(rows: Sequence[Row]) -> str:
    """Word rows for people, the sums in the last line."""
    cells = [("plan", "status", "from", "seconds", "cost"), *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        f"{plan:{widths[0]}}  {status:{widths[1]}}  {source:{widths[2]}}  {seconds:>{widths[3]}}  {cost:>{widths[4]}}"
        for plan, status, source, seconds, cost in cells
    ]
    return "\n".join([*lines, _sums(totals(rows))])


def totals(rows: Sequence[Row]) -> dict[str, Any]:
    """Sum rows up: how many plans, how many of them warm, where from, and US dollars as far as they are known."""
    sources = Counter(row.source for row in rows)
    return {
        "plans": len(rows),
        "warm": sum(row.warm for row in rows),
        "from_cache": sources["cache"],
        "joined": sources["joined"],
        "earlier": sources["earlier"],
        "new": sources["new"],
        "cost_usd": sum(row.cost_usd or 0.0 for row in rows),
        "unknown_costs": sum(row.cost_usd is None for row in rows),
    }


def as_json(rows: Sequence[Row]) -> str:
    """Write rows and totals for programs."""
    return json.dumps({"plans": [asdict(row) for row in rows], "totals": totals(rows)}, indent=2)


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    return (row.execution_id, row.status, row.source, f"{row.seconds:.1f}", _cost(row))


def _facts(row: Row) -> str:
    return ", ".join(filter(None, (row.source, f"{row.seconds:.1f} s", _cost(row))))


def _cost(row: Row) -> str:
    return "unknown" if row.cost_usd is None else f"${row.cost_usd:.4f}"


def _sums(sums: dict[str, Any]) -> str:
    unknown = f" and what {sums['unknown_costs']} of unknown price cost" if sums["unknown_costs"] else ""
    return (
        f"{sums['warm']} of {sums['plans']} plans are warm: {sums['new']} new, {sums['joined']} joined, "
        f"{sums['earlier']} from earlier runs, {sums['from_cache']} from the cache; ${sums['cost_usd']:.4f}{unknown}"
    )
