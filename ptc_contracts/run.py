"""A run as the record tells of it: where it is, who holds it, and what became of a submission."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from ptc_contracts.stages import Stage

if TYPE_CHECKING:
    from datetime import datetime

    from ptc_contracts.plan import PTCExecutionPlan
    from ptc_contracts.progress import IterationNote, Progress
    from ptc_contracts.result import ExecutionStatus, PTCArtifactResult


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
        halves = 2 * (self.iteration - 1) + (self.stage is Stage.SANDBOX)
        return halves / (2 * self.max_iterations)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What became of a plan that was submitted."""

    run_id: str = ""
    hit: PTCArtifactResult | None = None
    """The cached result that answers it; there is no run then."""
    joined: bool = False
    """Whether the run was started by somebody else."""
    unpublished: bool = False
    """Whether the run is new, so that whoever reads this owes it its first message."""


class Unsent(NamedTuple):
    """A run that waits for a message nobody has sent."""

    run_id: str
    stage: Stage
    key: str
    iteration: int


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

    def time_left(self) -> float:
        """Return the seconds until the deadline; negative past it."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True, kw_only=True)
class NotOurs:
    """Why a stage must not be worked on."""

    reason: str
    """`ended`, `busy` (somebody holds it), `elsewhere` (in another stage), `newer` (of a later form) or `gone`."""
    result: PTCArtifactResult | None = None
    """The result, when the run has ended."""


class LeaseLostError(Exception):
    """Another worker may hold this run by now: stop, and write nothing more."""
