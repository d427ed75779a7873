"""Sends again what runs wait for and nobody sent, and ends those whose time is over."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from ptc_contracts import RunNotFoundError
from ptc_contracts.submitting import GRACE_MS
from ptc_contracts.work import SWEEP_MS

if TYPE_CHECKING:
    from collections.abc import Callable

    from ptc_contracts import PTCArtifactResult
    from ptc_contracts.stages import Unsent
    from ptc_contracts.work import WorkStore

log = structlog.get_logger(__name__)


class Recovery(threading.Thread):
    """Sweeps until the process ends; every worker runs one, and one of them at a time finds work."""

    def __init__(
        self,
        store: WorkStore,
        send: Callable[[Unsent], None],
        tell: Callable[[str, PTCArtifactResult], None],
    ) -> None:
        super().__init__(name="ptc-recovery", daemon=True)
        self._store = store
        self._send = send
        self._tell = tell

    def run(self) -> None:
        """Sweep for as long as the process lives, with one script each time, whatever the number of runs."""
        pause = threading.Event()
        while not pause.wait(SWEEP_MS / 1000):
            try:
                self.sweep()
            except (RedisError, OSError) as error:
                log.warning("recovery_paused", error=type(error).__name__)
            except Exception:
                log.exception("recovery_failed")  # a thread that ended here would be missed by nobody

    def sweep(self) -> None:
        """Send what is owed now, and end what is over."""
        until = time.monotonic() + GRACE_MS / 2000
        found = self._store.sweep()
        for owed in found.owed:
            if time.monotonic() > until:
                break  # others will soon be owed the rest
            log.warning("run_published_again", run=owed.run_id, stage=owed.stage.value, message=owed.sending)
            self._send(owed)
        for run_id in found.over:
            self._end(run_id)

    def _end(self, run_id: str) -> None:
        try:
            result = self._store.end_if_over(run_id, grace_ms=0)
        except RunNotFoundError:
            return
        except (RedisError, OSError):
            raise
        except Exception:
            log.exception("run_cannot_be_ended", run=run_id)  # the next one can
            return
        if result:
            self._tell(run_id, result)
            log.info("run_ended_unheld", run=run_id, status=result.status.value)
