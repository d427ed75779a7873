"""What runs live through: lost messages, long queues, a server that stands still, suspects beside them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support import PATIENCE_SECONDS, answer_with, until

from ptc_contracts import RunNotFinishedError, ServerUnavailableError
from ptc_contracts.keys import RESULTS_PREFIX, run_key
from ptc_contracts.stages import FRESH, LANES, Lane, Stage
from ptc_contracts.work import LEASE_MS
from ptc_worker.llm.replay.faults import Fault
from roma_bridge import PTC
from roma_bridge.embedded import embedded_server

if TYPE_CHECKING:
    from pathlib import Path

    from cluster import Cluster

GREEN = answer_with(tests__test_it_py="def test_it():\n    pass")


def test_messages_that_the_broker_lost_are_sent_again(empty_cluster: Cluster) -> None:
    """Somebody emptied the list; every run ends, once."""
    plans = [empty_cluster.record([GREEN], enable_testing=False) for _ in range(20)]
    handles = [empty_cluster.ptc.submit(plan) for plan in plans]
    for lane in LANES:
        empty_cluster.ptc.store.redis.delete(lane.list_key)
    empty_cluster.start_worker()

    results = [handle.get(timeout=PATIENCE_SECONDS) for handle in handles]

    assert {result.status for result in results} == {"SUCCESS"}
    assert [empty_cluster.calls_for(plan) for plan in plans] == [1] * 20


def test_a_queue_that_waits_gets_no_duplicates(empty_cluster: Cluster) -> None:
    """A worker is busy for longer than messages may be on their way; the others merely wait."""
    environment = {**empty_cluster.environment, "MAX_CONCURRENT_EXECUTIONS": "1"}
    empty_cluster.start_worker(environment=environment)
    slow = empty_cluster.record([GREEN], enable_testing=False)
    handle = empty_cluster.written(slow)
    waiting = [empty_cluster.ptc.submit(empty_cluster.record([GREEN])) for _ in range(50)]
    sweeps = "ptc:sweeps"
    store = empty_cluster.ptc.store
    since = int(store.redis.hget(sweeps, "last") or 0)
    until(lambda: int(store.redis.hget(sweeps, "last") or 0) > since + 2 * LEASE_MS)
    messages = store.redis.llen(Lane(Stage.GENERATE, FRESH).list_key)

    assert (messages, len(waiting)) == (50, 50)
    handle.cancel()


def test_a_worker_that_cannot_renew_its_lease_pays_for_nothing_new(empty_cluster: Cluster) -> None:
    """The run may be somebody else's by now; once the server is back and it is not, the worker goes on."""
    worker = empty_cluster.start_worker()
    empty_cluster.replay.latency = LEASE_MS / 1000 + 1
    empty_cluster.replay.faults.script([Fault.OVERLOADED])
    handle = empty_cluster.ptc.submit(empty_cluster.record([GREEN]))
    until(lambda: empty_cluster.replay.stats()["faults"] == 1)
    with empty_cluster.frozen_server():
        until(lambda: "leases_not_renewed" in worker.log.read_text().partition("overloaded")[2])
        calls = empty_cluster.replay.stats()["calls"]
        empty_cluster.replay.latency = 0.0

    assert calls == 0
    assert handle.get(timeout=PATIENCE_SECONDS).status == "SUCCESS"
    assert empty_cluster.replay.stats()["calls"] == 1


def test_a_run_that_a_sweep_ends_has_its_result_in_celery(empty_cluster: Cluster) -> None:
    """Its message was lost and its time is over: who follows the task sees the end too."""
    handle = empty_cluster.ptc.submit(empty_cluster.record([GREEN]), expires=0.1)
    for lane in LANES:
        empty_cluster.ptc.store.redis.delete(lane.list_key)
    empty_cluster.start_worker()
    redis = empty_cluster.ptc.store.redis
    stored = f"{RESULTS_PREFIX}celery-task-meta-{handle.run_id}"
    until(lambda: bool(redis.exists(stored)))
    meta = json.loads(redis.get(stored) or b"")

    assert (meta["status"], meta["result"]["status"]) == ("SUCCESS", "TIMEOUT")


def test_the_command_waits_for_a_server_that_stands_still(empty_cluster: Cluster, tmp_path: Path) -> None:
    """It says so, and goes on when the server is back."""
    plan = empty_cluster.record([GREEN])
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    with subprocess.Popen(
        [sys.executable, "-m", "roma_bridge.cli", str(tmp_path / "plan.json"), "--json"],
        env=empty_cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stderr
        assert command.stdout
        assert "submitted" in command.stderr.readline()
        with empty_cluster.frozen_server():
            assert any("waiting for it" in line for line in iter(command.stderr.readline, ""))
        empty_cluster.start_worker()
        result = json.loads(command.stdout.read())

    assert (result["status"], command.wait()) == ("SUCCESS", 0)


def test_a_suspect_of_a_real_worker_is_put_in_quarantine(empty_cluster: Cluster) -> None:
    """Two runs that were begun in vain share a worker: the model is asked for one of them at a time."""
    plans = [empty_cluster.record([GREEN], enable_testing=False) for _ in range(2)]
    handles = [empty_cluster.ptc.submit(plan) for plan in plans]
    for handle in handles:
        handle.ptc.store.redis.hset(run_key(handle.run_id), "starts", 3)
    empty_cluster.replay.chunk_chars, empty_cluster.replay.chunk_seconds = 10, 60.0
    worker = empty_cluster.start_worker()
    until(lambda: "run_waits_in_quarantine" in worker.log.read_text())
    until(lambda: sum(map(empty_cluster.calls_for, plans)) > 0)
    calls = sum(map(empty_cluster.calls_for, plans))
    for handle in handles:
        handle.cancel()

    assert calls == 1
    assert [handle.get(timeout=PATIENCE_SECONDS).error_message for handle in handles] == ["cancelled"] * 2


def test_get_ends_on_its_own_timeout_while_the_server_stands_still(tmp_path: Path) -> None:
    """The caller is told that nobody answers, in about the time it gave."""
    with embedded_server(tmp_path / "server", dies_with_us=True) as settings:
        ptc = PTC(settings)
        handle = ptc.submit({"execution_id": "x", "scaffolding": {"task_description": "x"}})
        pid = ptc.store.redis.info("server")["process_id"]
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(ServerUnavailableError):
                handle.get(timeout=1)
        finally:
            os.kill(pid, signal.SIGCONT)
        with pytest.raises(RunNotFinishedError):
            handle.get(timeout=0.1)
