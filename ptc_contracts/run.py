"""A run as the record tells of it: where it is, who holds it, and what became of a submission."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import TYPE_CHECKING

from ptc_contracts.stages import Stage

if TYPE_CHECKING:
    from datetime import datetime

    from ptc_contracts.plan import PTCExecutionPlan
    from ptc_contracts.progress import IterationNote, Progress
    from ptc_contracts.result import ExecutionStatus, PTCArtifactResult
    from ptc_contracts.stages import Unsent


class RunState(str, Enum):
    """Where a run is between its submission and its end."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What can be told of a run at a moment."""

    run_id: str
    state: RunState
    stage: Stage
    iteration: int
    max_iterations: int
    status: ExecutionStatus | None
    """How it ended; None while it goes on."""
    history: tuple[IterationNote, ...] = ()
    """What became of each iteration so far."""

    @property
    def progress(self) -> float:
        """Rough share of the work done, 0 to 1: each iteration has two halves."""
        if self.state is RunState.ENDED:
            return 1.0
        return share_done(self.stage, self.iteration, self.max_iterations)


def share_done(stage: Stage, iteration: int, max_iterations: int) -> float:
    """Rough share of the work that is done when a stage begins, 0 to 1: each iteration has two halves."""
    return (2 * (iteration - 1) + (stage is Stage.SANDBOX)) / (2 * max_iterations)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a list of runs tells of one."""

    run_id: str
    key: str
    execution_id: str
    """The first caller's name for it, its first 200 characters; empty for runs of older clients."""
    project: str | None
    """The plan's `project_name`, its first 200 characters."""
    state: RunState
    stage: Stage
    iteration: int
    max_iterations: int
    status: ExecutionStatus | None
    """How it ended; None while it goes on."""
    submitted_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    callers: int
    """How many submitted it."""


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """Some runs of a longer list, the newest first."""

    runs: list[RunSummary]
    cursor: str | None
    """Where the list goes on; None at its end."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What became of a plan that was submitted."""

    run_id: str = ""
    hit: PTCArtifactResult | None = None
    """The cached result that answers it; there is no run then."""
    joined: bool = False
    """Whether the run was started by somebody else."""
    unsent: Unsent | None = None
    """A message, which whoever reads this owes the run: it is new, or goes before others now."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that this process holds: nobody else may move it until its lease has passed."""

    run_id: str
    key: str
    digest: str
    plan: PTCExecutionPlan
    stage: Stage
    fence: int
    progress: Progress
    started_at: datetime
    deadline: float
    """When the run has to end, by `time.monotonic()` of this process."""
    renewed_at: float = -inf
    """When this process asked for the lease it was given, by `time.monotonic()`; it lasts from then on at least."""
    starts: int = 1
    """Times this stage was begun since the run last made progress."""
    waited_for: str = ""
    """What this stage could not have when it was last begun and deferred; empty if it was not."""
    cancelled: bool = False
    """Whether its callers want it no more."""
    expired: bool = False
    """Whether nobody began it within the time it may wait in a queue."""

    def time_left(self) -> float:
        """Return the seconds until the deadline; negative past it."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True, kw_only=True)
class NotOurs:
    """Why a stage must not be worked on."""

    reason: str
    """`ended`, `busy` (somebody holds it), `elsewhere` (in another stage), `newer` (of a later form), `gone`, or
    `unreadable` with the reason."""
    result: PTCArtifactResult | None = None
    """The result, when the run has ended."""


class Departure(str, Enum):
    """What became of a caller's wish to cancel."""

    STOPPED = "stopped"
    """The run is ending, or has just ended, as cancelled."""
    LEFT = "left"
    """Others wait for the run: it goes on without this caller."""
    SHARED = "shared"
    """Several wait for the run and none was named: nothing changed."""
    STRANGER = "stranger"
    """The one who was named does not wait for this run: nothing changed."""
    ENDED = "ended"
    """The run had ended before."""


@dataclass(frozen=True, kw_only=True)
class DeadRun:
    """A run that was given up, as the list of the dead shows it."""

    run_id: str
    died_at: datetime
    reason: str


class LeaseLostError(Exception):
    """Another worker may hold this run by now: stop, and write nothing more."""
