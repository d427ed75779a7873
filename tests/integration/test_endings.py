"""How runs end before their time: cancelled, given up, expired; and what their callers see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from support import PATIENCE_SECONDS, answer_with, until

from ptc_contracts import RunNotFinishedError, RunNotFoundError
from ptc_contracts.keys import run_key
from ptc_contracts.run import Departure, Run, RunState
from ptc_contracts.stages import Stage
from roma_bridge import PlanHandle, submit_plan

if TYPE_CHECKING:
    from cluster import Cluster

GREEN = answer_with(tests__test_it_py="def test_it():\n    pass")


def test_cancelling_stops_the_model_and_keeps_the_bill(cluster: Cluster) -> None:
    """The stream is closed, the claim is free at once, and what was paid for is in the usage."""
    plan = cluster.record([GREEN])
    handle = cluster.written(plan)
    left_before = cluster.replay.stats()["left"]
    departure = handle.cancel()
    claims = list(handle.ptc.store.redis.scan_iter(f"ptc:claim:{handle.key}:*"))

    result = handle.get(timeout=PATIENCE_SECONDS)

    assert (departure, claims) == (Departure.STOPPED, [])
    assert (result.status, result.error_message) == ("FAILURE", "cancelled")
    assert [usage.api_calls for usage in result.llm_usage] == [1]
    until(lambda: cluster.replay.stats()["left"] == left_before + 1)
    cluster.replay.chunk_seconds = 0.0


def test_cancelling_stops_the_sandbox(cluster: Cluster) -> None:
    """Tests that would run for a quarter of an hour are gone when the run has ended."""
    mark = os.urandom(8).hex()
    handle = cluster.ptc.submit(cluster.record([answer_with(tests__test_it_py=f"{MARKED.format(mark)}")]))
    until(lambda: mark in processes())
    handle.cancel()

    result = handle.get(timeout=PATIENCE_SECONDS)

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

    result = second.get(timeout=PATIENCE_SECONDS)

    assert (departure, second.joined, result.status) == (Departure.LEFT, True, "SUCCESS")


def test_a_plan_that_was_cancelled_can_be_submitted_again(empty_cluster: Cluster) -> None:
    """Whoever cancelled has withdrawn the submission: the next one is no retry."""
    plan = empty_cluster.record([GREEN])
    cancelled = empty_cluster.ptc.submit(plan)
    cancelled.cancel()
    empty_cluster.start_worker()

    assert empty_cluster.ptc.submit(plan).get(timeout=PATIENCE_SECONDS).status == "SUCCESS"
    assert cancelled.get(timeout=1).error_message == "cancelled"


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

    result = handle.get(timeout=PATIENCE_SECONDS)
    calls = empty_cluster.calls_for(plan)
    listed = json.loads(enqueue(empty_cluster, "dead", "list", "--json"))
    shown = enqueue(empty_cluster, "dead", "show", handle.run_id)
    again = json.loads(enqueue(empty_cluster, "dead", "retry", handle.run_id, "--json"))["run_id"]

    assert (result.status, calls) == ("FAILURE", 0)
    assert "given up: generate was begun 3 times" in (result.error_message or "")
    assert [(each["run_id"], each["reason"]) for each in listed] == [(handle.run_id, result.error_message)]
    assert "given up" in shown
    assert (
        PlanHandle(ptc=empty_cluster.ptc, plan=plan, run_id=again).get(PATIENCE_SECONDS).status == "SUCCESS"
    )


def enqueue(cluster: Cluster, *arguments: str) -> str:
    """Run `ptc-enqueue` and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "roma_bridge.cli", *arguments],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
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
    result = waited_for.get(timeout=PATIENCE_SECONDS)
    state = unobserved.status().state
    empty_cluster.start_worker()
    until(lambda: unobserved.status().state is RunState.ENDED)

    assert (result.status, result.llm_usage) == ("TIMEOUT", [])
    assert "it may wait in a queue" in (result.error_message or "")
    assert (state, unobserved.status().status) == (RunState.QUEUED, "TIMEOUT")
    assert patient.get(timeout=PATIENCE_SECONDS).status == "SUCCESS"


def test_signed_runs_go_from_client_to_worker_and_back(
    empty_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have the key; what lies in Redis is not to be read as text, and holds no key."""
    key = "a key of this test alone"
    monkeypatch.setenv("PTC_SIGNING_KEY", key)
    environment = {**empty_cluster.environment, "PTC_SIGNING_KEY": key}
    worker = empty_cluster.start_worker(environment=environment)
    handle = empty_cluster.ptc.submit(empty_cluster.record([GREEN]))
    result = handle.get(timeout=PATIENCE_SECONDS)
    redis = empty_cluster.ptc.store.redis
    record = redis.hgetall(run_key(handle.run_id))
    dump = b"".join(redis.dump(name) or b"" for name in redis.scan_iter("*"))

    assert result.status == "SUCCESS"
    assert [record[name][:1] for name in (b"plan", b"progress", b"result")] == [b"\xff"] * 3
    assert key.encode() not in dump
    assert key not in worker.log.read_text()


def test_get_does_not_wait_for_a_result_that_has_expired(empty_cluster: Cluster) -> None:
    """There will never be another one."""
    handle = empty_cluster.ptc.submit(empty_cluster.record([GREEN]))
    empty_cluster.ptc.store.redis.delete(run_key(handle.run_id))

    with pytest.raises(RunNotFoundError, match=handle.run_id):
        handle.get()


def test_a_thousand_submissions_leave_no_subscription_behind(
    empty_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their callers listened for a moment and gave up, and nothing of them stays open."""
    monkeypatch.setenv("REDIS_URL", empty_cluster.settings.url)
    redis = empty_cluster.ptc.store.redis
    submit_plan({"execution_id": "x", "scaffolding": {"task_description": "x"}})
    clients = len(redis.client_list())
    for n in range(1000):
        handle = submit_plan({"execution_id": "x", "scaffolding": {"task_description": f"plan {n}"}})
        with pytest.raises(RunNotFinishedError):
            handle.get(timeout=0)

    assert redis.pubsub_channels() == []
    assert len(redis.client_list()) <= clients + 1
