"""Removes what dead workers have left at a vendor's, and tells others that this one lives."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from ptc_contracts.work import WORKER_MS
from ptc_worker.busy import BusyError
from ptc_worker.sandbox.protocol import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ptc_contracts.work import WorkStore

log = structlog.get_logger(__name__)

_BEAT_SECONDS = WORKER_MS / 5000

_FIRST_SECONDS = 1.2 * WORKER_MS / 1000
"""Before, the silence of others says nothing: the server itself may just have come back."""

_EVERY_SECONDS = 30.0
_CHANCE = random.Random()  # noqa: S311 it only keeps workers that started together from asking together


class Pulse(threading.Thread):
    """Says until the process ends that it lives."""

    def __init__(self, store: WorkStore, worker: str) -> None:
        super().__init__(name="ptc-pulse", daemon=True)
        self._store = store
        self._worker = worker

    def start(self) -> None:
        """Say it once at least: who has a name before that is taken for dead.

        Raises:
            RedisError: it could not be said.
        """
        self._store.beat(self._worker)
        super().start()

    def run(self) -> None:
        """Go on saying it."""
        pause = threading.Event()
        while not pause.wait(_BEAT_SECONDS):
            try:
                self._store.beat(self._worker)
            except (RedisError, OSError) as error:
                log.warning("pulse_missed", error=type(error).__name__)
            except Exception:
                log.exception("pulse_failed")  # a thread that ended here would be missed by nobody


class Reaper(threading.Thread):
    """Reaps until the process ends; every worker that has sandboxes at a vendor's runs one."""

    def __init__(self, reap: Callable[[], int]) -> None:
        super().__init__(name="ptc-reaper", daemon=True)
        self._reap = reap

    def run(self) -> None:
        """Reap now and then: it costs a request to the vendor, and one for each sandbox that goes."""
        pause = threading.Event()
        seconds, told = _FIRST_SECONDS, ""
        while not pause.wait(seconds * _CHANCE.uniform(1, 1.2)):
            seconds = _EVERY_SECONDS
            try:
                if number := self._reap():
                    log.warning("sandboxes_reaped", number=number)
            except (SandboxError, BusyError, RedisError, OSError) as error:
                reason = str(error) or type(error).__name__
                if reason != told:  # a key that is missing is missing at every look
                    log.warning("sandboxes_not_reaped", reason=reason)
                told = reason
            except Exception:
                log.exception("reaper_failed")  # a thread that ended here would be missed by nobody
