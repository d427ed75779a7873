"""Lets runs that may be killing their worker go one at a time, so that the innocent do not die of the guilty."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ptc_contracts.work import WorkStore
    from ptc_worker.leases import Hold

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.2

_suspects = threading.Lock()


@contextmanager
def quarantined(hold: Hold, store: WorkStore, most_starts: int) -> Iterator[None]:
    """Let a run pass whose stage was begun in vain about half as often as it may be; one at a time in a process.

    A worker that dies takes all its runs with it, and each start counts for all of them alike. While a suspect waits for
    its turn its start does not count, so only the one whose turn it is can come closer to being given up.

    Raises:
        HaltedError: the work must stop.
        TimeoutError: the run's time was over before its turn came.
    """
    run = hold.run
    if run.starts <= max(1, most_starts // 2):
        yield
        return
    if waited := not _suspects.acquire(blocking=False):
        _wait_for_the_turn(hold, store)
    try:
        if waited:
            store.count_start(run, 1)
        yield
    finally:
        _suspects.release()


def _wait_for_the_turn(hold: Hold, store: WorkStore) -> None:
    log.info("run_waits_in_quarantine", starts=hold.run.starts)
    store.count_start(hold.run, -1)
    try:
        while not _suspects.acquire(timeout=_LOOK_SECONDS):
            hold.halt.check()
            if hold.run.time_left() <= 0:
                raise TimeoutError  # noqa: TRY301 it is counted below, like every other way out
    except BaseException:
        store.count_start(hold.run, 1)
        raise
