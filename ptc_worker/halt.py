"""Tells the work on one run to stop, from another thread."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager, suppress
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2


class Why(str, Enum):
    """What ends the work on a run before its time."""

    CANCELLED = "cancelled"
    """Its callers no longer want it."""
    LEASE_LOST = "lease_lost"
    """Another worker may have taken it over."""
    SHUTDOWN = "shutdown"
    """This worker ends."""


class HaltedError(Exception):
    """The work was told to stop; whatever it has brought so far is incomplete."""

    def __init__(self, why: Why) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"halted: {self.why.value}"


class Lock(Protocol):
    """What is held by one at a time, or by a few."""

    def acquire(self, *, timeout: float) -> bool:
        """Take it; tell whether that was possible within so many seconds."""

    def release(self) -> None:
        """Let go of it."""


class Halt:
    """One signal, set once, for all the work on one run.

    Work that cannot look at it all the time names what ends it, and `set` calls that, in its own thread. A signal
    handler may call `set` for work of other threads; where it interrupts the work itself, locks may be held.
    """

    def __init__(self) -> None:
        self.why: Why | None = None
        """Why the work must stop: the first reason given; None while it may go on."""
        self._stops: list[Callable[[], object]] = []
        self._lock = threading.RLock()

    def set(self, why: Why) -> None:
        """Tell the work to stop, and return when everything that was to be called has been called.

        Of several reasons the first stays. One that fails to stop is logged and keeps no other from being called.
        """
        with self._lock:  # held during the calls, so that no block is left while its `stop` still runs
            self.why = self.why or why
            while self._stops:
                stop = self._stops.pop()
                try:
                    stop()
                except Exception:
                    log.exception("halt_failed_to_stop")

    def check(self) -> None:
        """Go on only if the work may go on.

        Raises:
            HaltedError: it must stop.
        """
        if self.why is not None:
            raise HaltedError(self.why)

    @contextmanager
    def calling(self, stop: Callable[[], object]) -> Iterator[None]:
        """While the block runs, let `set` call `stop`: from its own thread, at most once, never afterwards.

        `stop` must not wait for the block to be left.

        Raises:
            HaltedError: the work must stop. The block was not begun; or it was, and what it returned or raised
                is no result, for it may have been cut short.
        """
        try:
            with self._standing(stop):
                self.check()
                yield
        except HaltedError:
            raise
        except Exception as error:
            if self.why is not None:
                raise HaltedError(self.why) from error
            raise
        self.check()

    @contextmanager
    def taking(self, lock: Lock, deadline: float, otherwise: str) -> Iterator[None]:
        """Hold a lock while the block runs, once it can be had.

        Raises:
            HaltedError: the work must stop.
            TimeoutError: the deadline, by `time.monotonic()`, passed before; this is what it says then.
        """
        self.check()
        while not lock.acquire(timeout=max(0.0, min(_LOOK_SECONDS, deadline - time.monotonic()))):
            self.check()
            if time.monotonic() >= deadline:
                raise TimeoutError(otherwise)
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _standing(self, stop: Callable[[], object]) -> Iterator[None]:
        with self._lock:
            self._stops.append(stop)
        try:
            yield
        finally:
            with self._lock, suppress(ValueError):  # `set` has taken it
                self._stops.remove(stop)
