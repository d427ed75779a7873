"""Publishes runs again whose worker fell silent, and runs whose message nobody sent."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from ptc_contracts.runs import SWEEP_MS

if TYPE_CHECKING:
    from collections.abc import Callable

    from ptc_contracts.runs import RunStore
    from ptc_contracts.stages import Stage

log = structlog.get_logger(__name__)


class Recovery(threading.Thread):
    """Sweeps until the process ends; every worker runs one, and each run is claimed by one of them."""

    def __init__(self, store: RunStore, send: Callable[[Stage, str, str, int], None]) -> None:
        super().__init__(name="ptc-recovery", daemon=True)
        self._store = store
        self._send = send

    def run(self) -> None:
        """Sweep for as long as the process lives, with one script each time, whatever the number of runs."""
        pause = threading.Event()
        while not pause.wait(SWEEP_MS / 1000):
            try:
                self.sweep()
            except (RedisError, OperationalError, OSError) as error:
                log.warning("recovery_paused", error=type(error).__name__)
            except Exception:
                log.exception("recovery_failed")  # a thread that ended here would be missed by nobody

    def sweep(self) -> None:
        """Publish what needs a message now."""
        for unsent in self._store.reclaim():
            log.warning("run_published_again", run=unsent.run_id, stage=unsent.stage.value)
            self._send(unsent.stage, unsent.run_id, unsent.key, unsent.iteration)
