"""Bounds the sandboxes that this process runs at a time, and replaces one that fails."""

from __future__ import annotations

import threading
import time
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

_SANDBOX_TRIES = 2


def in_a_slot(settings: WorkerSettings, deadline: float, halt: Halt, run: Callable[[float], T]) -> T:
    """Do what needs a sandbox, once one may be had; it is told for how many seconds at most.

    A sandbox that fails is replaced once: that is our fault, not the draft's. One that is refused is not.

    Raises:
        SandboxError: no sandbox can be had.
        TimeoutError: the deadline, by `time.monotonic()`, passed before.
        HaltedError: the work must stop.
    """
    with halt.taking(_slots(settings.sandboxes_at_once), deadline, "no sandbox was free in time"):
        for attempt in range(1, _SANDBOX_TRIES + 1):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no time was left for the tests")
            try:
                return run(min(left, settings.ptc_test_timeout))
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
