"""How runs end before their time: cancelled, handed back, given up, expired; and what their callers see."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import psutil
import pytest
from cluster import START_SECONDS
from support import answer_with

from ptc_contracts import RunNotFinishedError, RunNotFoundError, ServerUnavailableError
from ptc_contracts.keys import RESULTS_PREFIX, run_key
from ptc_contracts.run import Departure, Run, RunState
from ptc_contracts.stages import FRESH, LANES, Lane, Stage
from ptc_contracts.work import LEASE_MS
from ptc_worker.llm.replay.faults import Fault
from roma_bridge import PTC, PlanHandle, submit_plan
from roma_bridge.embedded import embedded_server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cluster import Cluster

    from ptc_contracts import PTCExecutionPlan

GREEN = answer_with(tests__test_it_py="def test_it():\n    pass")
ENDLESS = answer_with(tests__test_it_py="import time\n\ndef test_it():\n    time.sleep(1000)")


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once it holds."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.02)


def written(cluster: Cluster, plan: PTCExecutionPlan) -> PlanHandle:
    """Submit a plan whose model writes and writes, and wait until it does."""
    cluster.replay.chunk_chars, cluster.replay.chunk_seconds = 10, 60.0
    handle = cluster.ptc.submit(plan)
    wait_until(lambda: cluster.calls_for(plan) == 1)
    return handle


def running(handle: PlanHandle, stage: Stage) -> bool:
    """Tell whether a worker is at this stage of the run."""
    status = handle.status()
    return status.state is RunState.RUNNING and status.stage is stage


def test_cancelling_stops_the_model_and_keeps_the_bill(cluster: Cluster) -> None:
    """The stream is closed, the claim is free at once, and what was paid for is in the usage."""
    plan = cluster.record([GREEN])
    handle = written(cluster, plan)
    left_before = cluster.replay.stats()["left"]
    departure = handle.cancel()
    claims = list(handle.ptc.store.redis.scan_iter(f"ptc:claim:{handle.key}:*"))

    result = handle.get(timeout=START_SECONDS)

    assert (departure, claims) == (Departure.STOPPED, [])
    assert (result.status, result.error_message) == ("FAILURE", "cancelled")
    assert [usage.api_calls for usage in result.llm_usage] == [1]
    wait_until(lambda: cluster.replay.stats()["left"] == left_before + 1)


def test_cancelling_stops_the_sandbox(cluster: Cluster) -> None:
    """Tests that would run for a quarter of an hour are gone when the run has ended."""
    cluster.replay.chunk_seconds = 0.0
    mark = os.urandom(8).hex()
    handle = cluster.ptc.submit(cluster.record([answer_with(tests__test_it_py=f"{MARKED.format(mark)}")]))
    wait_until(lambda: mark in processes())
    handle.cancel()

    result = handle.get(timeout=START_SECONDS)

    assert (result.error_message, result.test_results) == ("cancelled", None)
    assert mark not in processes()


MARKED = (
    "import subprocess, sys\n\ndef test_it():\n"
    "    subprocess.run([sys.executable, '-c', 'import time; time.sleep(1000)', '{}'])"
)


def processes() -> str:
    """List the command lines of all processes."""
    return str([process.info["cmdline"] for process in psutil.process_iter(["cmdline"])])


def test_one_of_two_callers_leaves_and_the_other_gets_its_result(empty_cluster: Cluster) -> None:
    """Cancelling takes away whoever cancels."""
    plan = empty_cluster.record([GREEN])
    first = empty_cluster.ptc.submit(plan)
    second = empty_cluster.ptc.submit(plan.model_copy(update={"execution_id": "second"}))
    departure = first.cancel()
    empty_cluster.start_worker()

    result = second.get(timeout=START_SECONDS)

    assert (departure, second.joined, result.status) == (Departure.LEFT, True, "SUCCESS")


def test_a_plan_that_was_cancelled_can_be_submitted_again(empty_cluster: Cluster) -> None:
    """Whoever cancelled has withdrawn the submission: the next one is no retry."""
    plan = empty_cluster.record([GREEN])
    cancelled = empty_cluster.ptc.submit(plan)
    cancelled.cancel()
    empty_cluster.start_worker()

    assert empty_cluster.ptc.submit(plan).get(timeout=START_SECONDS).status == "SUCCESS"
    assert cancelled.get(timeout=1).error_message == "cancelled"


def test_a_worker_that_ends_finishes_what_fits_into_its_grace(empty_cluster: Cluster) -> None:
    """SIGTERM is enough; the lease is renewed meanwhile, longer than it lasts."""
    seconds = LEASE_MS / 1000 + 2
    slow = answer_with(tests__test_it_py=f"import time\n\ndef test_it():\n    time.sleep({seconds})")
    plan = empty_cluster.record([slow])
    worker = empty_cluster.start_worker(environment={**empty_cluster.environment, "PTC_SHUTDOWN_GRACE": "60"})
    handle = empty_cluster.ptc.submit(plan)
    wait_until(lambda: running(handle, Stage.SANDBOX))
    worker.process.terminate()

    result = handle.get(timeout=START_SECONDS)

    assert (result.status, empty_cluster.calls_for(plan)) == ("SUCCESS", 1)
    assert worker.process.wait(START_SECONDS) == 0
    messages = handle.ptc.store.redis.hget(run_key(handle.run_id), "sending")
    assert messages == b"2"  # one for each stage: nobody thought that its worker was silent


@pytest.mark.parametrize("signals", [(signal.SIGQUIT,), (signal.SIGINT, signal.SIGINT)])
def test_a_worker_in_a_hurry_hands_everything_back(
    empty_cluster: Cluster, signals: tuple[signal.Signals, ...]
) -> None:
    """A cold shutdown has no grace, and loses nothing either."""
    worker = empty_cluster.start_worker()
    handle = written(empty_cluster, empty_cluster.record([GREEN]))
    for number in signals:
        ended = worker.log.read_text().count("Ctrl+C")
        worker.process.send_signal(number)
        wait_until(
            lambda ended=ended: (
                worker.log.read_text().count("Ctrl+C") > ended  # type: ignore[misc]
                or worker.process.poll() is not None
            )
        )
    worker.process.wait(START_SECONDS)
    empty_cluster.replay.chunk_seconds = 0.0
    state = handle.status().state
    empty_cluster.start_worker()

    assert (state, handle.get(timeout=START_SECONDS).status) == (RunState.QUEUED, "SUCCESS")
    assert "Traceback" not in worker.log.read_text()


@pytest.mark.parametrize("stage", list(Stage))
def test_a_worker_hands_back_what_its_grace_is_too_short_for(empty_cluster: Cluster, stage: Stage) -> None:
    """Another one goes on at once, without waiting for a lease to pass; the start does not count."""
    plan = empty_cluster.record([GREEN if stage is Stage.GENERATE else ENDLESS])
    ends = empty_cluster.start_worker(environment={**empty_cluster.environment, "PTC_SHUTDOWN_GRACE": "0.1"})
    if stage is Stage.GENERATE:
        empty_cluster.replay.latency = 1000.0
    handle = empty_cluster.ptc.submit(plan)
    wait_until(lambda: running(handle, stage))
    ends.process.terminate()
    code = ends.process.wait(START_SECONDS)
    state, starts = handle.ptc.store.redis.hmget(run_key(handle.run_id), "state", "starts")

    assert code == 0
    assert (handle.status().stage, state, starts) == (stage, b"queued", b"0")


def test_a_run_that_kills_its_workers_is_given_up(empty_cluster: Cluster) -> None:
    """After so many starts without progress it ends, is listed, shown, and can be sent again."""
    plan = empty_cluster.record([GREEN], cache_strategy="never")
    handle = empty_cluster.ptc.submit(plan)
    store = empty_cluster.work
    for _ in range(3):
        assert isinstance(store.begin(handle.run_id, Stage.GENERATE, 1), Run)
        store.redis.hset(run_key(handle.run_id), "state", "queued")  # as a sweep does when a lease has passed
    environment = {**empty_cluster.environment, "PTC_MAX_DELIVERIES": "3"}
    empty_cluster.start_worker(environment=environment)

    result = handle.get(timeout=START_SECONDS)
    calls = empty_cluster.calls_for(plan)
    listed = json.loads(enqueue(empty_cluster, "dead", "list", "--json"))
    shown = enqueue(empty_cluster, "dead", "show", handle.run_id)
    again = json.loads(enqueue(empty_cluster, "dead", "retry", handle.run_id, "--json"))["run_id"]

    assert (result.status, calls) == ("FAILURE", 0)
    assert "given up: generate was begun 3 times" in (result.error_message or "")
    assert [(each["run_id"], each["reason"]) for each in listed] == [(handle.run_id, result.error_message)]
    assert "given up" in shown
    assert PlanHandle(ptc=empty_cluster.ptc, plan=plan, run_id=again).get(START_SECONDS).status == "SUCCESS"


def enqueue(cluster: Cluster, *arguments: str) -> str:
    """Run `ptc-enqueue` and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "roma_bridge.cli", *arguments],
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_a_run_can_be_cancelled_from_the_terminal(empty_cluster: Cluster) -> None:
    """The command says what became of it."""
    handle = empty_cluster.ptc.submit(empty_cluster.record([GREEN]))

    assert "'nobody' does not wait for it" in enqueue(
        empty_cluster, "--cancel", handle.run_id, "--caller", "nobody"
    )
    assert "cancelled; it stops" in enqueue(empty_cluster, "--cancel", handle.run_id)
    assert "had ended before" in enqueue(empty_cluster, "--cancel", handle.run_id)
    assert "is not known" in enqueue(empty_cluster, "--cancel", "no-such-run")


def test_a_run_that_nobody_begins_in_time_expires(
    empty_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting or an argument bounds the wait in the queue; whoever waits for it ends it, or a worker."""
    monkeypatch.setenv("PTC_EXPIRES", "0.5")
    waited_for, unobserved = (empty_cluster.ptc.submit(empty_cluster.record([GREEN])) for _ in range(2))
    patient = empty_cluster.ptc.submit(empty_cluster.record([GREEN]), expires=600)
    result = waited_for.get(timeout=START_SECONDS)
    state = unobserved.status().state
    empty_cluster.start_worker()
    wait_until(lambda: unobserved.status().state is RunState.ENDED)

    assert (result.status, result.llm_usage) == ("TIMEOUT", [])
    assert "it may wait in a queue" in (result.error_message or "")
    assert (state, unobserved.status().status) == (RunState.QUEUED, "TIMEOUT")
    assert patient.get(timeout=START_SECONDS).status == "SUCCESS"


def test_messages_that_the_broker_lost_are_sent_again(empty_cluster: Cluster) -> None:
    """Somebody emptied the list; every run ends, once."""
    plans = [empty_cluster.record([GREEN], enable_testing=False) for _ in range(20)]
    handles = [empty_cluster.ptc.submit(plan) for plan in plans]
    for lane in LANES:
        empty_cluster.ptc.store.redis.delete(lane.list_key)
    empty_cluster.start_worker()

    results = [handle.get(timeout=START_SECONDS) for handle in handles]

    assert {result.status for result in results} == {"SUCCESS"}
    assert [empty_cluster.calls_for(plan) for plan in plans] == [1] * 20


def test_a_queue_that_waits_gets_no_duplicates(empty_cluster: Cluster) -> None:
    """A worker is busy for longer than messages may be on their way; the others merely wait."""
    environment = {**empty_cluster.environment, "MAX_CONCURRENT_EXECUTIONS": "1"}
    empty_cluster.start_worker(environment=environment)
    slow = empty_cluster.record([GREEN], enable_testing=False)
    handle = written(empty_cluster, slow)
    waiting = [empty_cluster.ptc.submit(empty_cluster.record([GREEN])) for _ in range(50)]
    sweeps = "ptc:sweeps"
    store = empty_cluster.ptc.store
    since = int(store.redis.hget(sweeps, "last") or 0)
    wait_until(lambda: int(store.redis.hget(sweeps, "last") or 0) > since + 2 * LEASE_MS)
    messages = store.redis.llen(Lane(Stage.GENERATE, FRESH).list_key)

    assert (messages, len(waiting)) == (50, 50)
    handle.cancel()


def frozen(cluster: Cluster) -> psutil.Process:
    """Let the server stand still; the caller wakes it."""
    server = psutil.Process(cluster.ptc.store.redis.info("server")["process_id"])
    server.suspend()
    return server


def test_a_worker_ends_though_its_server_stands_still(empty_cluster: Cluster) -> None:
    """It cannot hand its run back; the lease passes."""
    worker = empty_cluster.start_worker(environment={**empty_cluster.environment, "PTC_SHUTDOWN_GRACE": "1"})
    handle = written(empty_cluster, empty_cluster.record([GREEN]))
    server = frozen(empty_cluster)
    try:
        worker.process.terminate()
        worker.process.wait(START_SECONDS)
    finally:
        server.resume()
    empty_cluster.replay.chunk_seconds = 0.0
    empty_cluster.start_worker()

    assert handle.get(timeout=START_SECONDS).status == "SUCCESS"


def test_a_worker_that_cannot_renew_its_lease_pays_for_nothing_new(empty_cluster: Cluster) -> None:
    """The run may be somebody else's by now; once the server is back and it is not, the worker goes on."""
    worker = empty_cluster.start_worker()
    empty_cluster.replay.latency = LEASE_MS / 1000 + 1
    empty_cluster.replay.faults.script([Fault.OVERLOADED])
    handle = empty_cluster.ptc.submit(empty_cluster.record([GREEN]))
    wait_until(lambda: empty_cluster.replay.stats()["faults"] == 1)
    server = frozen(empty_cluster)
    try:
        wait_until(lambda: "leases_not_renewed" in worker.log.read_text().partition("overloaded")[2])
        calls = empty_cluster.replay.stats()["calls"]
    finally:
        empty_cluster.replay.latency = 0.0
        server.resume()

    assert calls == 0
    assert handle.get(timeout=START_SECONDS).status == "SUCCESS"
    assert empty_cluster.replay.stats()["calls"] == 1


def test_a_run_that_a_sweep_ends_has_its_result_in_celery(empty_cluster: Cluster) -> None:
    """Its message was lost and its time is over: who follows the task sees the end too."""
    handle = empty_cluster.ptc.submit(empty_cluster.record([GREEN]), expires=0.1)
    for lane in LANES:
        empty_cluster.ptc.store.redis.delete(lane.list_key)
    empty_cluster.start_worker()
    redis = empty_cluster.ptc.store.redis
    stored = f"{RESULTS_PREFIX}celery-task-meta-{handle.run_id}"
    wait_until(lambda: bool(redis.exists(stored)))
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
        server = frozen(empty_cluster)
        try:
            assert any("waiting for it" in line for line in iter(command.stderr.readline, ""))
        finally:
            server.resume()
        empty_cluster.start_worker()
        result = json.loads(command.stdout.read())

    assert (result["status"], command.wait()) == ("SUCCESS", 0)


def test_signed_runs_go_from_client_to_worker_and_back(
    empty_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have the key; what lies in Redis is not to be read as text, and holds no key."""
    key = "a key of this test alone"
    monkeypatch.setenv("PTC_SIGNING_KEY", key)
    environment = {**empty_cluster.environment, "PTC_SIGNING_KEY": key}
    worker = empty_cluster.start_worker(environment=environment)
    handle = empty_cluster.ptc.submit(empty_cluster.record([GREEN]))
    result = handle.get(timeout=START_SECONDS)
    redis = empty_cluster.ptc.store.redis
    record = redis.hgetall(run_key(handle.run_id))
    dump = b"".join(redis.dump(name) or b"" for name in redis.scan_iter("*"))

    assert result.status == "SUCCESS"
    assert [record[name][:1] for name in (b"plan", b"progress", b"result")] == [b"\xff"] * 3
    assert key.encode() not in dump
    assert key not in worker.log.read_text()


def test_a_suspect_of_a_real_worker_is_put_in_quarantine(empty_cluster: Cluster) -> None:
    """Two runs that were begun in vain share a worker: the model is asked for one of them at a time."""
    plans = [empty_cluster.record([GREEN], enable_testing=False) for _ in range(2)]
    handles = [empty_cluster.ptc.submit(plan) for plan in plans]
    for handle in handles:
        handle.ptc.store.redis.hset(run_key(handle.run_id), "starts", 3)
    empty_cluster.replay.chunk_chars, empty_cluster.replay.chunk_seconds = 10, 60.0
    worker = empty_cluster.start_worker()
    wait_until(lambda: "run_waits_in_quarantine" in worker.log.read_text())
    wait_until(lambda: sum(map(empty_cluster.calls_for, plans)) > 0)
    calls = sum(map(empty_cluster.calls_for, plans))
    for handle in handles:
        handle.cancel()

    assert calls == 1
    assert [handle.get(timeout=START_SECONDS).error_message for handle in handles] == ["cancelled"] * 2


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


def test_get_does_not_wait_for_a_result_that_has_expired(empty_cluster: Cluster) -> None:
    """There will never be another one."""
    handle = empty_cluster.ptc.submit(empty_cluster.record([GREEN]))
    empty_cluster.ptc.store.redis.delete(run_key(handle.run_id))

    with pytest.raises(RunNotFoundError, match=handle.run_id):
        handle.get()


def test_ten_thousand_submissions_leave_no_subscription_behind(
    empty_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their callers listened for a moment and gave up, and nothing of them stays open."""
    monkeypatch.setenv("REDIS_URL", empty_cluster.settings.url)
    redis = empty_cluster.ptc.store.redis
    submit_plan({"execution_id": "x", "scaffolding": {"task_description": "x"}})
    clients = len(redis.client_list())
    for n in range(10_000):
        handle = submit_plan({"execution_id": "x", "scaffolding": {"task_description": f"plan {n}"}})
        with pytest.raises(RunNotFinishedError):
            handle.get(timeout=0)

    assert redis.pubsub_channels() == []
    assert len(redis.client_list()) <= clients + 1
