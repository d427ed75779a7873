"""How workers end: with time for their work, without, in a hurry; and what becomes of the runs they had."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from support import PATIENCE_SECONDS, answer_with, until

from ptc_contracts.keys import run_key
from ptc_contracts.run import RunState
from ptc_contracts.stages import Stage
from ptc_contracts.work import LEASE_MS

if TYPE_CHECKING:
    from cluster import Cluster

    from roma_bridge import PlanHandle

GREEN = answer_with(tests__test_it_py="def test_it():\n    pass")
ENDLESS = answer_with(tests__test_it_py="import time\n\ndef test_it():\n    time.sleep(1000)")


def running(handle: PlanHandle, stage: Stage) -> bool:
    """Tell whether a worker is at this stage of the run."""
    status = handle.status()
    return status.state is RunState.RUNNING and status.stage is stage


def test_a_worker_that_ends_finishes_what_fits_into_its_grace(empty_cluster: Cluster) -> None:
    """SIGTERM is enough; the lease is renewed meanwhile, longer than it lasts."""
    seconds = LEASE_MS / 1000 + 2
    slow = answer_with(tests__test_it_py=f"import time\n\ndef test_it():\n    time.sleep({seconds})")
    plan = empty_cluster.record([slow])
    worker = empty_cluster.start_worker(environment={**empty_cluster.environment, "PTC_SHUTDOWN_GRACE": "60"})
    handle = empty_cluster.ptc.submit(plan)
    until(lambda: running(handle, Stage.SANDBOX))
    worker.process.terminate()

    result = handle.get(timeout=PATIENCE_SECONDS)

    assert (result.status, empty_cluster.calls_for(plan)) == ("SUCCESS", 1)
    assert worker.process.wait(PATIENCE_SECONDS) == 0
    messages = handle.ptc.store.redis.hget(run_key(handle.run_id), "sending")
    assert messages == b"2"  # one for each stage: nobody thought that its worker was silent


@pytest.mark.parametrize("signals", [(signal.SIGQUIT,), (signal.SIGINT, signal.SIGINT)])
def test_a_worker_in_a_hurry_hands_everything_back(
    empty_cluster: Cluster, signals: tuple[signal.Signals, ...]
) -> None:
    """A cold shutdown has no grace, and loses nothing either."""
    worker = empty_cluster.start_worker()
    handle = empty_cluster.written(empty_cluster.record([GREEN]))
    for number in signals:
        ended = worker.log.read_text().count("Ctrl+C")
        worker.process.send_signal(number)
        until(
            lambda ended=ended: (
                worker.log.read_text().count("Ctrl+C") > ended  # type: ignore[misc]
                or worker.process.poll() is not None
            )
        )
    worker.process.wait(PATIENCE_SECONDS)
    empty_cluster.replay.chunk_seconds = 0.0
    state = handle.status().state
    empty_cluster.start_worker()

    assert (state, handle.get(timeout=PATIENCE_SECONDS).status) == (RunState.QUEUED, "SUCCESS")
    assert "Traceback" not in worker.log.read_text()


@pytest.mark.parametrize("stage", list(Stage))
def test_a_worker_hands_back_what_its_grace_is_too_short_for(empty_cluster: Cluster, stage: Stage) -> None:
    """Another one goes on at once, without waiting for a lease to pass; the start does not count."""
    plan = empty_cluster.record([GREEN if stage is Stage.GENERATE else ENDLESS])
    ends = empty_cluster.start_worker(environment={**empty_cluster.environment, "PTC_SHUTDOWN_GRACE": "0.1"})
    if stage is Stage.GENERATE:
        empty_cluster.replay.latency = 1000.0
    handle = empty_cluster.ptc.submit(plan)
    until(lambda: running(handle, stage) and empty_cluster.calls_for(plan) == 1)
    ends.process.terminate()
    code = ends.process.wait(PATIENCE_SECONDS)
    state, starts = handle.ptc.store.redis.hmget(run_key(handle.run_id), "state", "starts")

    assert code == 0
    assert (handle.status().stage, state, starts) == (stage, b"queued", b"0")


def test_a_worker_ends_though_its_server_stands_still(empty_cluster: Cluster) -> None:
    """It cannot hand its run back; the lease passes."""
    worker = empty_cluster.start_worker(environment={**empty_cluster.environment, "PTC_SHUTDOWN_GRACE": "1"})
    handle = empty_cluster.written(empty_cluster.record([GREEN]))
    with empty_cluster.frozen_server():
        worker.process.terminate()
        worker.process.wait(PATIENCE_SECONDS)
    empty_cluster.replay.chunk_seconds = 0.0
    empty_cluster.start_worker()

    assert handle.get(timeout=PATIENCE_SECONDS).status == "SUCCESS"
