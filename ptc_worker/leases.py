"""Keeps the leases of all runs that this process works on, from one thread, with one script per beat."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from ptc_contracts.work import LEASE_MS
from ptc_worker.halt import Halt, Why

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ptc_contracts.run import Run
    from ptc_contracts.work import WorkStore
    from ptc_worker.reporting import Reporter

log = structlog.get_logger(__name__)

BEAT_SECONDS = 1.0
"""Eight beats a lease: a run that is cancelled stops within one, and a slow server may lose several."""

_SURE_SECONDS = LEASE_MS / 1000 - BEAT_SECONDS

_REASONS = {"lost": Why.LEASE_LOST, "cancelled": Why.CANCELLED}


@dataclass
class Hold:
    """A run that this process works on."""

    run: Run
    report: Reporter
    """What it tells while it is held."""
    halt: Halt = field(default_factory=Halt)
    """Set when the work must stop."""
    renewed_at: float = field(init=False)
    """When this process last asked for the lease that it was given: it may have slept before it got the answer."""

    def __post_init__(self) -> None:
        self.renewed_at = self.run.renewed_at

    def sure(self) -> bool:
        """Tell whether nobody else can hold the run by now.

        Whoever cannot renew, because the server or the way to it is down, starts nothing new that is paid for.
        What is under way goes on: its answer is paid already, and the lease may still be ours when the server is
        back.
        """
        return time.monotonic() - self.renewed_at < _SURE_SECONDS


class LeaseKeeper:
    """Renews leases while their runs are held; goes on during a warm shutdown, for it has its own thread."""

    def __init__(self, store: WorkStore) -> None:
        self._store = store
        self._held: dict[str, Hold] = {}
        self._lock = threading.RLock()  # a signal handler may ask for the end
        self._thread: threading.Thread | None = None
        self.ending = False
        """Whether this process works on nothing any more."""

    @contextmanager
    def holding(self, run: Run, report: Reporter) -> Iterator[Hold]:
        """Keep a run's lease alive for the time of the block."""
        hold = Hold(run, report)
        with self._lock:
            if older := self._held.get(
                run.run_id
            ):  # it slept beyond its lease, and the message came back to us
                older.halt.set(Why.LEASE_LOST)
            self._held[run.run_id] = hold
            if self.ending:
                hold.halt.set(Why.SHUTDOWN)
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, name="ptc-leases", daemon=True)
                self._thread.start()
        try:
            yield hold
        finally:
            with self._lock:
                if self._held.get(run.run_id) is hold:
                    del self._held[run.run_id]

    def end(self) -> None:
        """Stop all work, so that its runs can be handed back."""
        with self._lock:
            self.ending = True
            held = list(self._held.values())
        for hold in held:
            hold.halt.set(Why.SHUTDOWN)

    def _beat(self) -> None:
        pause = threading.Event()
        while not pause.wait(BEAT_SECONDS):
            with self._lock:
                held = dict(self._held)
            if not held:
                continue
            try:
                self._renew(held)
            except (RedisError, OSError) as error:
                log.warning("leases_not_renewed", runs=len(held), error=type(error).__name__)
            except Exception:
                log.exception("leases_failed")  # a thread that ended here would be missed by nobody

    def _renew(self, held: dict[str, Hold]) -> None:
        asked_at = time.monotonic()
        stop = dict(self._store.renew({run_id: hold.run.fence for run_id, hold in held.items()}))
        for run_id, hold in held.items():
            if reason := stop.get(run_id):
                hold.halt.set(_REASONS[reason])
            else:
                hold.renewed_at = asked_at
