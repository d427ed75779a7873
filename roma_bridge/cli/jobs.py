"""Many plans, a few of them under way at a time, with a row for each that ended."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ptc_contracts import PayloadTooLargeError, PTCError, ServerUnavailableError
from ptc_contracts.run import Departure
from roma_bridge.cli.endings import (
    CANCELLED,
    ENDED,
    GOES_ON,
    LOST,
    NOT_SUBMITTED,
    REFUSED,
    UNWRITABLE,
    exit_code,
    uninterrupted,
)
from roma_bridge.files import UnwritableError
from roma_bridge.serving import missing_workers
from roma_bridge.show.shown import show_plans
from roma_bridge.show.view import PlanRow, PlansView
from roma_bridge.show.watching import (
    FETCH_SECONDS,
    GLANCE_SECONDS,
    NO_WORKER_SECONDS,
    OVERDUE_SECONDS,
    Ear,
)
from roma_bridge.terminal import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ptc_contracts import PTCArtifactResult
    from ptc_contracts.events import StreamMessage
    from roma_bridge.cli.plans import Given
    from roma_bridge.client import PTC
    from roma_bridge.handle import PlanHandle
    from roma_bridge.show.shown import ShownPlans


@dataclass(frozen=True)
class Row:
    """What became of one plan."""

    number: int
    """Its place in the batch, from 1."""
    file: str
    """Where the plan stands."""
    line: int | None
    """Where in the file, where that holds one plan a line."""
    execution_id: str
    status: str
    """An ExecutionStatus, or one of the words that stand for one."""
    source: str = ""
    """`new`, `joined` (a run of somebody else, or of a plan before it), `earlier` (ended under this execution id a short
    while ago) or `cache`."""
    run_id: str = ""
    """Empty where the cache answered."""
    seconds: float = 0.0
    """From its submission to its end."""
    cost_usd: float | None = 0.0
    """US dollars that this plan cost now; null where a price is unknown."""
    error_message: str | None = None
    folder: str | None = None
    """Where its files are, if they were written."""
    unwritten: str | None = None
    """Why its files could not be written, or its result not be kept."""

    @property
    def exit_code(self) -> int:
        """What the command would end with if this were its only plan."""
        return UNWRITABLE if self.unwritten else exit_code(self.status)

    @property
    def green(self) -> bool:
        """Whether the plan has a result that can be used as it is."""
        return exit_code(self.status) == 0

    @property
    def without_result(self) -> bool:
        """Whether the plan was refused, or its result did not come in time, or cannot be had."""
        return self.status in {CANCELLED, ENDED, GOES_ON, LOST, NOT_SUBMITTED, REFUSED}

    def as_object(self) -> dict[str, Any]:
        """Give the row for programs."""
        return asdict(self)


@dataclass
class _UnderWay:
    number: int
    given: Given
    handle: PlanHandle
    shown: PlanRow
    ear: Ear | None
    """None where there is nothing to hear any more."""
    source: str
    began: float
    looked_after: float

    def row(self, status: str, **facts: Any) -> Row:  # noqa: ANN401 fields of a row
        seconds = round(time.monotonic() - self.began, 2)
        row = _row(self.number, self.given, status)
        return replace(row, source=self.source, run_id=self.handle.run_id, seconds=seconds, **facts)

    def news(self) -> Iterator[StreamMessage]:
        """Give what the run has told since the last look; where that cannot be read, its record tells the end."""
        with suppress(Exception):
            yield from self.ear.news(0) if self.ear else ()


@dataclass
class Jobs:
    """Submits plans with so many under way at a time, and keeps a row for each that ended.

    A plan on its way from one place to the next is in both: rows count before what is under way, and that before
    what waits. So an interrupt finds each plan once, wherever it comes.
    """

    ptc: PTC
    given: Sequence[Given]
    most: int
    """Plans that are under way at a time."""
    deliver: Callable[[Given, PlanHandle, PTCArtifactResult], Path | None]
    """Does with a result what was asked; returns where its files are."""
    options: dict[str, Any] = field(default_factory=dict)
    """How plans are submitted, see `PTC.submit`."""
    quiet: bool = False
    """Whether only that is shown which somebody has to do something about."""
    brings_worker: bool = False
    """Whether the command starts a worker, so that nobody has to."""
    rows: dict[int, Row] = field(default_factory=dict)
    """What became of the plans that ended, by their number."""
    became: Mapping[str, str] = field(default_factory=dict)
    """What became of runs that were to be cancelled, see `interruptible`."""
    _under_way: list[_UnderWay] = field(default_factory=list)
    _callers: set[tuple[str, str]] = field(default_factory=set)
    _away: bool = False
    _idle_since: float = field(default_factory=time.monotonic)
    _asked_for_workers: bool = field(init=False)

    def __post_init__(self) -> None:
        self._view = PlansView([PlanRow(each.plan.execution_id) for each in self.given])
        self._waiting = deque(enumerate(self.given, 1))
        self._asked_for_workers = self.brings_worker

    def run(self, timeout: float | None, check: Callable[[], None]) -> None:
        """Work until every plan has ended or the time is over, and show on standard error how it goes.

        Args:
            timeout: Seconds; what has not ended then goes on without us.
            check: Called at every look, to raise what makes waiting vain.

        Raises:
            ServerUnavailableError: Redis cannot be reached at the start, or not when the time is over.
        """
        started = time.monotonic()
        with show_plans(self._view, quiet=self.quiet) as shown:
            while self._waiting or self._under_way:
                check()
                over = timeout is not None and time.monotonic() - started >= timeout
                moved = self._stepped(shown, over=over)
                if over:
                    break
                if not moved:
                    time.sleep(GLANCE_SECONDS)

    @property
    def begun(self) -> bool:
        """Whether any plan was submitted, or refused."""
        return bool(self.rows or self._under_way)

    @property
    def under_way(self) -> list[PlanHandle]:
        """The runs that have not ended, as far as we know."""
        return [one.handle for one in self._under_way if one.number not in self.rows]

    @property
    def all_rows(self) -> list[Row]:
        """A row for every plan, ended or not, in the order in which they were given."""
        rows = {number: _row(number, given, NOT_SUBMITTED) for number, given in self._waiting}
        for one in self._under_way:
            status = _STATUSES.get(self.became.get(one.handle.run_id, ""), GOES_ON)
            rows[one.number] = one.row(status, cost_usd=None)
        rows |= self.rows
        return [rows[number] for number in sorted(rows)]

    def _stepped(self, shown: ShownPlans, *, over: bool) -> bool:
        """Take a step, or note that the server is away; tell whether anything moved."""
        try:
            moved = self._step(shown, submit=not over)
        except ServerUnavailableError as error:
            if over or not self.begun:
                raise
            if not self._away:
                shown.warn(f"{error}; waiting for it")
            self._away = True
            return False
        self._away = False
        return moved

    def _step(self, shown: ShownPlans, *, submit: bool) -> bool:
        """Submit what there is room for and note what has ended; tell whether there was any of either."""
        before = len(self.rows), len(self._waiting)
        while submit and self._waiting and len(self._under_way) < self.most:
            with uninterrupted():
                self._submit(shown, *self._waiting[0])
            self._waiting.popleft()
        for one in list(self._under_way):
            for message in one.news():
                shown.take(one.shown, message)
            self._look(shown, one)
        if (len(self.rows), len(self._waiting)) != before:
            self._idle_since = time.monotonic()
            return True
        self._ask_for_workers(shown)
        return False

    def _submit(self, shown: ShownPlans, number: int, given: Given) -> None:
        now, line = time.monotonic(), self._view.rows[number - 1]
        try:
            handle = self._counted_once(self.ptc.submit(given.plan, **self.options))
            source = _source(handle)
        except PayloadTooLargeError as error:
            self._note(shown, replace(_row(number, given, REFUSED), error_message=str(error)))
            return
        ear = Ear(handle) if shown.listens and source in {"new", "joined"} else None
        shown.begin(line, pays=source == "new")
        self._under_way.append(
            _UnderWay(number, given, handle, line, ear, source, began=now, looked_after=now)
        )

    def _counted_once(self, handle: PlanHandle) -> PlanHandle:
        """Let a plan that was given twice count what its run costs once."""
        caller = (handle.run_id, handle.plan.execution_id)
        known = caller in self._callers
        self._callers.add(caller)
        return handle.as_repeated() if known and handle.run_id else handle

    def _look(self, shown: ShownPlans, one: _UnderWay) -> None:
        """Note what became of a plan, if it has ended; one that is lost is no loss of the others."""
        try:
            result = self._result(one)
        except ServerUnavailableError:
            raise
        except PTCError as error:
            self._leave(one, one.row(LOST, cost_usd=None, error_message=str(error)))
            self._note(shown, self.rows[one.number])
            return
        if result:
            self._leave(one, self._ended(one, result))
            self._note(shown, replace(self.rows[one.number], **self._delivered(one, result)))

    def _result(self, one: _UnderWay) -> PTCArtifactResult | None:
        if one.handle.ready():
            return one.handle.get(timeout=FETCH_SECONDS)
        if time.monotonic() - one.looked_after > OVERDUE_SECONDS:
            one.looked_after = time.monotonic()
            one.handle.end_if_over()  # where no worker is left to do it
        return None

    def _leave(self, one: _UnderWay, row: Row) -> None:
        self.rows[one.number] = row
        self._under_way.remove(one)

    def _ended(self, one: _UnderWay, result: PTCArtifactResult) -> Row:
        costs = [usage.cost_usd for usage in result.llm_usage if one.source == "new"]
        cost = None if None in costs else sum(filter(None, costs))
        return one.row(result.status.value, cost_usd=cost, error_message=result.error_message)

    def _delivered(self, one: _UnderWay, result: PTCArtifactResult) -> dict[str, Any]:
        """Deliver a result; what cannot be written keeps nobody else's files from being."""
        try:
            folder = self.deliver(one.given, one.handle, result)
        except UnwritableError as error:
            return {"unwritten": str(error)}
        return {"folder": None if folder is None else str(folder)}

    def _note(self, shown: ShownPlans, row: Row) -> None:
        self.rows[row.number] = row
        troubles = "".join(f": {trouble}" for trouble in (row.error_message, row.unwritten) if trouble)
        facts = ", ".join(filter(None, (row.source, f"{row.seconds:.1f} s", cost_of(row))))
        told = one_line(f"{row.status} {row.execution_id} ({facts}){troubles}")
        words = f"{len(self.rows)} of {len(self.given)}: {told}"
        shown.end(self._view.rows[row.number - 1], row.status, row.cost_usd, words)

    def _ask_for_workers(self, shown: ShownPlans) -> None:
        if self._asked_for_workers or time.monotonic() - self._idle_since < NO_WORKER_SECONDS:
            return
        self._asked_for_workers = True
        if missing := missing_workers(self.ptc):
            shown.warn(missing)


_STATUSES = {Departure.STOPPED.value: CANCELLED, Departure.ENDED.value: ENDED}


def cost_of(row: Row) -> str:
    """Word what a plan cost."""
    return "unknown" if row.cost_usd is None else f"${row.cost_usd:.4f}"


def _row(number: int, given: Given, status: str) -> Row:
    return Row(number, given.file, given.line, given.plan.execution_id, status)


def _source(handle: PlanHandle) -> str:
    if handle.from_cache:
        return "cache"
    if handle.ready():
        return "earlier"
    return "joined" if handle.joined else "new"
