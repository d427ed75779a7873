"""Bounds the sandboxes that this process runs at a time, and replaces one that fails."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import structlog

from ptc_worker.once import once
from ptc_worker.sandbox.protocol import IsolationRefusedError, SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ptc_worker.halt import Halt
    from ptc_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

T = TypeVar("T")

_SANDBOX_TRIES = 2
_LOOK_SECONDS = 0.2


def in_a_slot(settings: WorkerSettings, deadline: float, halt: Halt, run: Callable[[float], T]) -> T:
    """Do what needs a sandbox, once one may be had; it is told for how many seconds at most.

    A sandbox that fails is replaced once: that is our fault, not the draft's. One that is refused is not.

    Raises:
        SandboxError: no sandbox can be had.
        TimeoutError: the deadline, by `time.monotonic()`, passed before.
        HaltedError: the work must stop.
    """
    with _slot(settings.ptc_sandbox_concurrency, deadline, halt):
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


@contextmanager
def _slot(number: int, deadline: float, halt: Halt) -> Iterator[None]:
    """Bound the sandboxes of this process: tests want a core each, model calls do not."""
    halt.check()
    while not _slots(number).acquire(timeout=max(0.0, min(_LOOK_SECONDS, deadline - time.monotonic()))):
        halt.check()
        if time.monotonic() >= deadline:
            raise TimeoutError("no sandbox was free in time")
    try:
        yield
    finally:
        _slots(number).release()


@once
def _slots(number: int) -> threading.BoundedSemaphore:
    return threading.BoundedSemaphore(number)
