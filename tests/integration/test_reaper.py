"""Which workers live, and whose sandboxes at a vendor's go."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from daytona_server import SNAPSHOT
from daytona_workers import daytona

from ptc_contracts.keys import SWEEPS, worker_key
from ptc_contracts.work import WORKER_MS, WorkStore
from ptc_worker.halt import Halt
from ptc_worker.loop import run_async
from ptc_worker.reaper import Pulse
from ptc_worker.sandbox import reap_sandboxes
from ptc_worker.sandbox.kinds.daytona import Daytona
from ptc_worker.sandbox.protocol import Purpose
from ptc_worker.settings import WorkerSettings
from roma_bridge.embedded import embedded_server

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WorkStore]:
    """An empty store."""
    with embedded_server(tmp_path) as settings:
        yield WorkStore.connect(settings)


def sweeps_were(store: WorkStore, *, steady_ms: int, ago_ms: int = 0) -> None:
    """Let recovery have swept for so long without a pause, so long ago."""
    seconds, micro = store.redis.time()
    last = seconds * 1000 + micro // 1000 - ago_ms
    store.redis.hset(SWEEPS, mapping={"last": last, "since": last - steady_ms})


def test_who_beats_lives_and_who_is_silent_does_not(store: WorkStore) -> None:
    """A beat is there before its thread is, and goes by itself."""
    sweeps_were(store, steady_ms=2 * WORKER_MS)
    Pulse(store, "living").start()

    assert store.living({"living", "dead"}) == {"living"}
    assert 0 < store.redis.pttl(worker_key("living")) <= WORKER_MS
    assert store.living(set()) == set()


@pytest.mark.parametrize(
    ("steady_ms", "ago_ms"),
    [(WORKER_MS // 2, 0), (2 * WORKER_MS, WORKER_MS), (2 * WORKER_MS, -60_000)],
    ids=["just back", "away", "clock set back"],
)
def test_after_an_outage_nobody_counts_as_dead(store: WorkStore, steady_ms: int, ago_ms: int) -> None:
    """While the server was away nobody could beat."""
    sweeps_were(store, steady_ms=steady_ms, ago_ms=ago_ms)

    assert store.living({"silent"}) == {"silent"}


def test_where_nobody_has_swept_yet_nobody_counts_as_dead(store: WorkStore) -> None:
    """The server is new, or has lost everything."""
    assert store.living({"silent"}) == {"silent"}


def test_what_the_dead_have_left_goes_and_nothing_else(store: WorkStore, cache: Path) -> None:
    """Sandboxes of other installations and of living workers stay, and so do strangers'."""
    us = Purpose(installation="ours", worker="me")
    makers = {
        "lost": us,
        "dead": replace(us, worker="dead", run_id="r", fence=2),
        "busy": replace(us, worker="living"),
        "foreign": Purpose(installation="theirs", worker="dead"),
        "stranger": Purpose(),
    }

    def alive(workers: Collection[str]) -> set[str]:
        sweeps_were(store, steady_ms=2 * WORKER_MS)
        store.beat("living")
        return store.living(workers)

    with daytona(cache) as server:
        settings = WorkerSettings(
            daytona_api_key=server.key,
            daytona_api_url=server.url,
            ptc_daytona_snapshot=SNAPSHOT,
            ptc_cache_dir=cache,
        )
        vendor = Daytona(settings)
        for name, purpose in makers.items():
            run_async(vendor.machine(name, purpose).start(), Halt())
        number = reap_sandboxes(settings, us, alive)

        assert number == 2
        assert set(server.left()) == {"busy", "foreign", "stranger"}
        vendor.close()
