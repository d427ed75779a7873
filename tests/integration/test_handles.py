"""How handles follow their runs: from threads and from event loops, through outages, and in other processes."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from math import nan
from typing import TYPE_CHECKING, Any

import pytest
from cluster import restartable
from support import PATIENCE_SECONDS, answer_with, make_plan, until

from ptc_contracts import (
    ConfigurationError,
    RunNotFinishedError,
    RunNotFoundError,
    ServerUnavailableError,
    UnreadableBlobError,
)
from ptc_contracts.blobs import Blobs
from ptc_contracts.keys import digest, run_key
from ptc_contracts.run import Departure
from roma_bridge import PTC, PlanHandle, submit_plan_async

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cluster import Cluster

    from ptc_contracts import PTCArtifactResult

GREEN = answer_with(tests__test_it_py="def test_it():\n    pass")


def waited(handle: PlanHandle, timeout: float | None) -> PTCArtifactResult:
    """Wait in this thread."""
    return handle.get(timeout)


def awaited(handle: PlanHandle, timeout: float | None) -> PTCArtifactResult:
    """Wait on an event loop."""
    return asyncio.run(handle.get_async(timeout))


either_way = pytest.mark.parametrize("get", [waited, awaited])


@either_way
def test_whoever_waits_gets_the_result(cluster: Cluster, get: Any) -> None:
    """With its own execution id; one of two callers pays."""
    plan = cluster.record([GREEN])
    first = cluster.ptc.submit(plan)
    second = cluster.ptc.submit(plan.model_copy(update={"execution_id": "second"}))

    ours, theirs = get(first, PATIENCE_SECONDS), get(second, PATIENCE_SECONDS)

    assert (ours.status, ours.execution_id, theirs.execution_id) == ("SUCCESS", plan.execution_id, "second")
    assert [usage.api_calls for usage in ours.llm_usage] == [1]
    assert (theirs.llm_usage, theirs.metadata["joined_run"]) == ([], first.run_id)


@either_way
def test_a_run_that_is_over_is_ended_by_whoever_waits(empty_cluster: Cluster, get: Any) -> None:
    """There is no worker."""
    result = get(empty_cluster.ptc.submit(make_plan(), expires=0.2), PATIENCE_SECONDS)

    assert (result.status, result.llm_usage) == ("TIMEOUT", [])


@either_way
def test_a_wait_has_its_time(empty_cluster: Cluster, get: Any) -> None:
    """The run goes on; where the server does not answer, that is said."""
    handle = empty_cluster.ptc.submit(make_plan())

    with pytest.raises(RunNotFinishedError, match="goes on"):
        get(handle, 0)
    with pytest.raises(RunNotFinishedError, match="goes on"):
        get(handle, 0.2)
    with empty_cluster.frozen_server(), pytest.raises(ServerUnavailableError):
        get(handle, 0.5)


@either_way
@pytest.mark.parametrize("timeout", [nan, True, "5"])
def test_a_time_that_is_no_number_of_seconds_is_refused(
    empty_cluster: Cluster, get: Any, timeout: Any
) -> None:
    """It would never be over; whoever follows or submits hears of it at once."""
    ptc = empty_cluster.ptc
    handle = ptc.submit(make_plan())

    with pytest.raises(ConfigurationError, match=f"timeout={timeout!r} is not a number of seconds"):
        get(handle, timeout)
    with pytest.raises(ConfigurationError, match="timeout="):
        handle.events(timeout=timeout)
    with pytest.raises(ConfigurationError, match="timeout="):
        ptc.submit_plans([make_plan("Another")], timeout=timeout)
    assert [run.run_id for run in ptc.list_runs().runs] == [handle.run_id]


@either_way
def test_a_record_that_has_expired_is_not_waited_for(empty_cluster: Cluster, get: Any) -> None:
    """There will never be a result."""
    handle = empty_cluster.ptc.submit(make_plan())
    empty_cluster.ptc.store.redis.delete(run_key(handle.run_id))

    with pytest.raises(RunNotFoundError, match=handle.run_id):
        get(handle, None)


def test_a_plan_is_submitted_and_awaited(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """`await` on the handle is all it takes, or what takes anything that can be awaited."""
    monkeypatch.setenv("REDIS_URL", cluster.settings.url)
    plan = cluster.record([GREEN])

    async def build() -> tuple[PTCArtifactResult, PTCArtifactResult]:
        first = await submit_plan_async(plan)
        await first
        again = await submit_plan_async(plan.model_copy(update={"execution_id": "again"}))
        return await asyncio.gather(first, again)

    result, again = asyncio.run(build())

    assert (result.status, again.status) == ("SUCCESS", "CACHE_HIT")


def connections(ptc: PTC) -> int:
    """Count the connections of all clients of a server."""
    return len(ptc.store.redis.client_list())


def listening_for(ptc: PTC, runs: int) -> Callable[[], bool]:
    """Tell whether the ends of so many runs are listened for."""
    return lambda: len(ptc.store.redis.pubsub_channels()) == runs


async def until_on_loop(holds: Callable[[], bool]) -> None:
    """Wait for something without holding up the loop."""
    await asyncio.to_thread(until, holds)


def test_two_hundred_awaits_share_a_few_connections_and_leave_none(empty_cluster: Cluster) -> None:
    """They need no thread each; the end of one of them is no end of the others; cancelled ones leave nothing."""
    ptc = empty_cluster.ptc
    handles = ptc.submit_many(make_plan(f"plan {n}") for n in range(200))
    pool = ptc.store.redis.connection_pool  # threads that end a run may leave it a connection more
    pool.disconnect()
    before = connections(ptc)

    async def wait() -> tuple[int, list[str]]:
        waits = [asyncio.ensure_future(handle.get_async()) for handle in handles]
        await until_on_loop(listening_for(ptc, 200))
        meanwhile = connections(ptc)
        for handle in handles[:100]:
            handle.cancel()
        ended = [(await each).error_message or "" for each in waits[:100]]
        await until_on_loop(listening_for(ptc, 100))
        for each in waits[100:]:
            each.cancel()
        left = await asyncio.gather(*waits[100:], return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in left)
        return meanwhile, ended

    meanwhile, ended = asyncio.run(wait())

    assert ended == ["cancelled"] * 100
    assert meanwhile <= before + 4
    pool.disconnect()
    until(lambda: connections(ptc) == before)
    assert ptc.store.redis.pubsub_channels() == []


def test_awaits_survive_a_restart_of_the_server(tmp_path: Path) -> None:
    """Fifty wait while it is killed and started again; all of them hear what ends afterwards."""

    async def wait(ptc: PTC, restart: Callable[[], None]) -> list[PTCArtifactResult]:
        handles = ptc.submit_many(make_plan(f"plan {n}") for n in range(50))
        waits = [asyncio.ensure_future(handle.get_async()) for handle in handles]
        await until_on_loop(listening_for(ptc, 50))
        await asyncio.to_thread(restart)
        await until_on_loop(listening_for(ptc, 50))
        for handle in handles:
            handle.cancel()
        return await asyncio.gather(*waits)

    with restartable(tmp_path) as (ptc, restart):
        results = asyncio.run(wait(ptc, restart))

    assert [result.error_message for result in results] == ["cancelled"] * 50


@either_way
def test_an_announcement_that_was_lost_is_made_up_for(empty_cluster: Cluster, get: Any) -> None:
    """Pub/sub promises nothing: the record is looked at as well."""
    ptc, plan = empty_cluster.ptc, make_plan()
    handle, other = ptc.submit(plan), ptc.submit(make_plan("another"))
    other.cancel()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(get, handle, None)
        until(listening_for(ptc, 1))
        _, sealed = ptc.store.form.result(handle.run_id, digest(plan), other.get())
        ptc.store.redis.hset(run_key(handle.run_id), mapping={"state": "ended", "result": sealed})

        assert waiting.result().error_message == "cancelled"


def test_a_run_is_followed_by_its_id(cluster: Cluster) -> None:
    """Whoever does so submitted nothing: the plan and the result are the run's own."""
    plan = cluster.record([GREEN], project_name="ours")
    submitted = cluster.ptc.submit(plan)

    handle = PlanHandle.of(submitted.run_id, cluster.ptc)
    result = handle.get(PATIENCE_SECONDS)

    assert (handle.plan, handle.key, handle.from_cache) == (plan, submitted.key, False)
    assert (result.execution_id, [usage.api_calls for usage in result.llm_usage]) == (plan.execution_id, [1])
    assert awaited(handle, 1) == result
    assert (handle.ready(), handle.status().status) == (True, "SUCCESS")


def test_following_by_id_is_no_joining(empty_cluster: Cluster) -> None:
    """It stops a run for one caller, but takes no caller away from those who share it."""
    ptc, plan = empty_cluster.ptc, make_plan()
    handle = PlanHandle.of(ptc.submit(plan).run_id, ptc)
    other = ptc.submit(plan.model_copy(update={"execution_id": "other"}))

    assert handle.cancel() is Departure.SHARED
    assert other.cancel() is Departure.LEFT
    assert handle.cancel() is Departure.STOPPED


def test_an_id_that_nobody_knows_is_an_error(empty_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is wrong, or its record has expired; and without the key nothing of a signed one is believed."""
    monkeypatch.setenv("REDIS_URL", empty_cluster.settings.url)
    signing = PTC(empty_cluster.settings, Blobs(signing_key=b"a key of this test alone"))
    signed = signing.submit(make_plan()).run_id

    nobodys: Any = None  # of a handle that the cache has answered, perhaps
    for ask in (PlanHandle.of, PTC().cancel, PTC().revive):
        with pytest.raises(RunNotFoundError, match="no-such-run"):
            ask("no-such-run")
        with pytest.raises(RunNotFoundError, match="None is not the id of a run"):
            ask(nobodys)
    with pytest.raises(UnreadableBlobError, match="PTC_SIGNING_KEY is missing"):
        PlanHandle.of(signed)
    with pytest.raises(UnreadableBlobError, match="wrong signature"):
        PlanHandle.of(signed, PTC(empty_cluster.settings, Blobs(signing_key=b"another key of this test")))
    assert PlanHandle.of(signed, signing).plan == make_plan(
        created_at=PlanHandle.of(signed, signing).plan.created_at
    )
