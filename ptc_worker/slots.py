"""Bounds the sandboxes that this process runs at a time, and replaces one that fails."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import structlog

from ptc_worker.once import once
from ptc_worker.sandbox.protocol import IsolationRefusedError, SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ptc_worker.halt import Halt
    from ptc_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Allowance:
    """How long tests may take, once there is all that they need."""

    deadline: float
    """When they must have ended, by `time.monotonic()`."""
    most: float
    """Seconds that they get of it at most."""

    @property
    def seconds(self) -> float:
        """How long they may take if they begin now.

        Raises:
            TimeoutError: the deadline has passed.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no time was left for the tests")
        return min(left, self.most)


_SANDBOX_TRIES = 2


def in_a_slot(settings: WorkerSettings, deadline: float, halt: Halt, run: Callable[[Allowance], T]) -> T:
    """Do what needs a sandbox, once one may be had; it is told how long the tests in it may take.

    A sandbox that fails is replaced once: that is our fault, not the draft's. One that is refused is not.

    Raises:
        SandboxError: no sandbox can be had.
        TimeoutError: the deadline, by `time.monotonic()`, passed before.
        HaltedError: the work must stop.
    """
    with halt.taking(_slots(settings.sandboxes_at_once), deadline, "no sandbox was free in time"):
        allowance = Allowance(deadline, settings.ptc_test_timeout)
        for attempt in range(1, _SANDBOX_TRIES + 1):
            try:
                return run(allowance)
            except IsolationRefusedError:
                raise
            except SandboxError as error:
                halt.check()
                log.warning("sandbox_failed", attempt=attempt, error=str(error))
                if attempt == _SANDBOX_TRIES:
                    raise
    raise AssertionError("the loop returns or raises")  # pragma: no cover


@once
def _slots(number: int) -> threading.BoundedSemaphore:
    """Bound the sandboxes of this process: tests want a core each, model calls do not."""
    return threading.BoundedSemaphore(number)
