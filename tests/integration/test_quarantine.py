"""Runs that may be killing their worker go one at a time."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support import make_plan

from ptc_contracts.keys import run_key
from ptc_contracts.run import Run
from ptc_contracts.stages import Stage
from ptc_contracts.work import WorkStore
from ptc_worker.halt import HaltedError, Why
from ptc_worker.leases import Hold
from ptc_worker.quarantine import quarantined
from ptc_worker.redaction import Redactor
from ptc_worker.reporting import Reporter
from roma_bridge.embedded import embedded_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WorkStore]:
    """An empty store."""
    with embedded_server(tmp_path) as settings:
        yield WorkStore.connect(settings)


def hold(store: WorkStore, name: str, starts: int) -> Hold:
    """Hold a run that was begun so many times."""
    run_id = store.submit(make_plan(name)).run_id
    run = store.begin(run_id, Stage.GENERATE, 1)
    assert isinstance(run, Run)
    store.redis.hset(run_key(run_id), "starts", starts)
    run = replace(run, starts=starts)
    return Hold(run, Reporter(run, Redactor(()), threading.Event()))


def starts_of(store: WorkStore, suspect: Hold) -> int:
    """Tell how many starts of a run count."""
    return int(store.redis.hget(run_key(suspect.run.run_id), "starts") or 0)


def test_a_second_suspect_waits_and_its_start_does_not_count(store: WorkStore) -> None:
    """If the first one kills the process, only the first one has come closer to its end."""
    guilty, innocent = hold(store, "guilty", 3), hold(store, "innocent", 3)
    inside = threading.Event()

    def go() -> None:
        with quarantined(innocent, store, 5):
            inside.set()

    with quarantined(guilty, store, 5):
        thread = threading.Thread(target=go)
        thread.start()
        while starts_of(store, innocent) == 3:
            assert not inside.is_set()
        while_waiting = starts_of(store, guilty), starts_of(store, innocent)
    thread.join()

    assert while_waiting == (3, 2)
    assert (inside.is_set(), starts_of(store, innocent)) == (True, 3)


def test_runs_beyond_suspicion_pass(store: WorkStore) -> None:
    """Most runs are begun once, and some twice because of somebody else."""
    with (
        quarantined(hold(store, "suspect", 3), store, 5),
        quarantined(hold(store, "fresh", 1), store, 5),
        quarantined(hold(store, "unlucky", 2), store, 5),
    ):
        pass


def test_a_suspect_that_waits_can_be_halted(store: WorkStore) -> None:
    """It is cancelled, or its worker ends."""
    first, second = hold(store, "first", 3), hold(store, "second", 3)
    second.halt.set(Why.CANCELLED)

    with quarantined(first, store, 5), pytest.raises(HaltedError), quarantined(second, store, 5):
        pass
    assert (starts_of(store, first), starts_of(store, second)) == (3, 3)
