"""Keeps the leases of all runs that this process works on, from one thread, with one script per beat."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from ptc_contracts.runs import LEASE_MS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ptc_contracts.run import Run
    from ptc_contracts.runs import RunStore

log = structlog.get_logger(__name__)

BEAT_SECONDS = LEASE_MS / 4000
"""Four beats a lease: three may be lost to a slow server."""


class LeaseKeeper:
    """Renews leases while their runs are held; goes on during a warm shutdown, for it has its own thread."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def holding(self, run: Run) -> Iterator[None]:
        """Keep a run's lease alive for the time of the block."""
        with self._lock:
            self._held[run.run_id] = run.fence
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, name="ptc-leases", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                if self._held.get(run.run_id) == run.fence:
                    del self._held[run.run_id]

    def _beat(self) -> None:
        pause = threading.Event()
        while not pause.wait(BEAT_SECONDS):
            with self._lock:
                held = dict(self._held)
            if not held:
                continue
            try:
                lost = self._store.renew(held)
            except (RedisError, OSError) as error:
                log.warning("leases_not_renewed", runs=len(held), error=type(error).__name__)
                continue
            except Exception:
                log.exception("leases_failed")  # a thread that ended here would be missed by nobody
                continue
            for run_id in lost:
                log.warning("lease_lost", run=run_id)
