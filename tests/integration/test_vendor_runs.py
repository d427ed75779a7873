"""Whole runs whose tests run at a vendor's: on the loopback Daytona, with its real SDK in real workers."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from cluster import cluster_in
from daytona_faults import Fault
from daytona_server import KEY
from daytona_workers import daytona, there
from support import PATIENCE_SECONDS, answer_with, until

from ptc_contracts.keys import run_key
from ptc_contracts.run import RunState
from ptc_contracts.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cluster import Cluster, Worker
    from daytona_server import DaytonaServer

    from roma_bridge import PlanHandle

TEST = "from app import double\n\ndef test_double():\n    assert double(2) == 4"
BROKEN = answer_with(app_py="def double(x):\n    return x", tests__test_app_py=TEST)
FIXED = answer_with(app_py="def double(x):\n    return 2 * x")
GREEN = answer_with(tests__test_it_py="def test_it():\n    pass")
ENDLESS = answer_with(tests__test_it_py="import time\n\ndef test_it():\n    time.sleep(1000)")

CREATE = "POST /api/sandbox"
UPLOAD = "POST /toolbox/{id}/files/bulk-upload"
TESTS = "POST /toolbox/{id}/process/session/{session}/exec"


@pytest.fixture(scope="module")
def server(cache: Path) -> Iterator[DaytonaServer]:
    """An account at Daytona."""
    with daytona(cache) as running:
        yield running


@pytest.fixture(scope="module")
def vendors(
    tmp_path_factory: pytest.TempPathFactory, cache: Path, server: DaytonaServer
) -> Iterator[Cluster]:
    """A cluster whose one worker has a key for it, and gives a run up at its second start without progress."""
    with cluster_in(tmp_path_factory.mktemp("vendors"), cache) as running:
        started(running, server, PTC_MAX_DELIVERIES="1")
        yield running


def started(cluster: Cluster, server: DaytonaServer, **more: str) -> Worker:
    """Start a worker and wait until it has seen a sandbox."""
    worker = cluster.start_worker(environment=there(cluster.environment, server, **more))
    until(lambda: "sandbox_ready" in worker.log.read_text())
    return worker


def waits(handle: PlanHandle) -> bool:
    """Tell whether a run has been deferred in its sandbox stage."""
    status, why = handle.status(), handle.ptc.store.redis.hget(run_key(handle.run_id), "waited_for")
    return status.stage is Stage.SANDBOX and status.state is RunState.QUEUED and why is not None


def test_a_plan_goes_from_broken_to_fixed_with_a_key_alone(vendors: Cluster, server: DaytonaServer) -> None:
    """Nothing but DAYTONA_API_KEY says where tests run; each run of them has a sandbox, and none is left."""
    made = len(server.created)

    result = vendors.run([BROKEN, FIXED])

    assert (result.status, result.iterations_used) == ("SUCCESS", 2)
    assert result.metadata["isolation"] == "daytona"
    assert len(server.created) - made == 2
    until(lambda: server.left() == [])


def test_a_run_waits_in_its_queue_until_there_is_room(vendors: Cluster, server: DaytonaServer) -> None:
    """Waiting is no start in vain, and costs nobody a worker: other runs go on meanwhile."""
    server.order(Fault(where="create", how="rate-limit", times=2, seconds=2))
    asked = server.requests.count(CREATE)
    handle = vendors.ptc.submit(vendors.record([GREEN]))
    until(lambda: waits(handle))
    other = vendors.run([GREEN], enable_testing=False)
    result = handle.get(timeout=PATIENCE_SECONDS)

    assert (other.status, result.status) == ("SUCCESS", "SUCCESS")
    assert server.requests.count(CREATE) - asked == 3
    told = vendors.workers[0].log.read_text()
    assert told.count('"event": "no_sandbox_to_be_had"') == 1


def test_a_run_that_waits_in_vain_says_what_it_waited_for(vendors: Cluster, server: DaytonaServer) -> None:
    """Its deadline holds while it waits, and what it has is in the result."""
    server.order(Fault(where="create", how="quota"))
    handle = vendors.submit_with_timeout(vendors.record([GREEN]), 8)

    result = handle.get(timeout=PATIENCE_SECONDS)

    assert result.status == "TIMEOUT"
    assert "no sandbox can be had: Daytona" in (result.error_message or "")
    assert "Total CPU limit exceeded" in (result.error_message or "")
    assert KEY not in result.model_dump_json()
    assert [file.file_path for file in result.artifacts] == ["tests/test_it.py"]


def test_what_a_killed_worker_leaves_is_removed_and_made_by_nobody_twice(
    empty_cluster: Cluster, cache: Path
) -> None:
    """Whether it dies while a sandbox is made, filled or used: others finish its runs, and their reaper tidies up."""
    with daytona(cache) as server:
        doomed = started(empty_cluster, server)
        before = server.requests
        server.order(
            *(
                Fault(where=where, how="hang", done=where == "create")
                for where in ("create", "upload", "session.exec")
            )
        )
        handles = [empty_cluster.ptc.submit(empty_cluster.record([GREEN])) for _ in range(3)]
        until(
            lambda: all(
                server.requests.count(each) - before.count(each) >= number
                for each, number in ((CREATE, 3), (UPLOAD, 2), (TESTS, 1))
            )
        )
        doomed.kill()
        orphans = set(server.left())
        started(empty_cluster, server)
        results = [handle.get(timeout=PATIENCE_SECONDS) for handle in handles]
        until(lambda: server.left() == [])

    assert len(orphans) == 3
    assert [result.status for result in results] == ["SUCCESS"] * 3
    assert len(server.created) == len(set(server.created))


@pytest.mark.parametrize(
    ("how", "network", "isolation"),
    [(signal.SIGTERM, "block", "daytona"), (signal.SIGQUIT, "tier", "daytona-networked")],
)
def test_a_worker_that_is_told_to_end_leaves_nothing(
    empty_cluster: Cluster, cache: Path, how: signal.Signals, network: str, isolation: str
) -> None:
    """Neither what it has kept warm, which is used once, nor the sandbox of a run that it hands back.

    Until then its results say what kept tests in, and warn where that left them a network.
    """
    more = {"PTC_SANDBOX_POOL": "2", "PTC_SHUTDOWN_GRACE": "0.1", "PTC_DAYTONA_NETWORK": network}
    with daytona(cache) as server:
        worker = started(empty_cluster, server, **more)
        until(lambda: len(server.created) == 3 and len(server.left()) == 2)  # one was looked at
        warm = set(server.left())
        result = empty_cluster.run([GREEN])
        until(lambda: len(server.left()) == 2 and len(warm & set(server.left())) == 1)
        made_for_one_run = len(server.created) - 3
        handle = empty_cluster.ptc.submit(empty_cluster.record([ENDLESS]))
        until(lambda: server.requests.count(TESTS) == 2)
        worker.process.send_signal(how)
        worker.process.wait(PATIENCE_SECONDS)
        left = server.left()

    assert (result.status, made_for_one_run) == ("SUCCESS", 1)
    assert result.metadata["isolation"] == isolation
    assert any("PTC_DAYTONA_NETWORK" in each for each in result.warnings) == (network == "tier")
    assert left == []
    assert handle.status().state is RunState.QUEUED


def test_a_run_whose_time_passes_while_its_sandbox_is_made_ends_then(
    vendors: Cluster, server: DaytonaServer
) -> None:
    """By the worker that holds it, with what it has, and not as one that no worker ever took."""
    server.order(Fault(where="create", how="hang"))
    handle = vendors.submit_with_timeout(vendors.record([GREEN]), 6)

    result = handle.get(timeout=PATIENCE_SECONDS)

    assert result.status == "TIMEOUT"
    assert "ran out in sandbox" in (result.error_message or "")
    until(lambda: server.left() == [])


def test_a_worker_that_ends_leaves_nothing_that_is_being_made(empty_cluster: Cluster, cache: Path) -> None:
    """It does not wait until it is there: that may take longer than there is time to end."""
    with daytona(cache) as server:
        worker = started(empty_cluster, server, PTC_SHUTDOWN_GRACE="0.1")
        server._start_seconds = 1000.0
        made = len(server.created)
        handle = empty_cluster.ptc.submit(empty_cluster.record([GREEN]))
        until(lambda: len(server.created) > made)
        worker.process.terminate()
        worker.process.wait(PATIENCE_SECONDS)
        left = server.left()

    assert left == []
    assert handle.status().state is RunState.QUEUED


def test_a_worker_that_ends_by_force_leaves_nothing_either(empty_cluster: Cluster, cache: Path) -> None:
    """Its server stands still, so it gets to no orderly end; what it has at a vendor's goes before."""
    with daytona(cache) as server:
        worker = started(empty_cluster, server, PTC_SANDBOX_POOL="2", PTC_SHUTDOWN_GRACE="0.5")
        until(lambda: len(server.left()) == 2)
        empty_cluster.ptc.submit(empty_cluster.record([ENDLESS]))
        until(lambda: TESTS in server.requests)  # in one of them
        with empty_cluster.frozen_server():
            worker.process.terminate()
            code = worker.process.wait(PATIENCE_SECONDS)
        left = server.left()

    assert (code, left) == (os.EX_TEMPFAIL, [])
