"""Many plans submitted at once, and their results as they come."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from cluster import restartable
from support import PATIENCE_SECONDS, answer_with, make_plan, until

from ptc_contracts import (
    ConfigurationError,
    InvalidPlanError,
    PayloadTooLargeError,
    RunNotFinishedError,
    RunNotFoundError,
    ServerUnavailableError,
)
from ptc_contracts.blobs import Blobs
from ptc_contracts.keys import run_key
from ptc_contracts.settings import RedisSettings
from ptc_contracts.stages import LANES, Priority
from roma_bridge import PTC, Batch, submit_plans

if TYPE_CHECKING:
    from pathlib import Path

    from cluster import Cluster

    from ptc_contracts import PTCArtifactResult
    from roma_bridge import PlanHandle

    Ended = tuple[PlanHandle, PTCArtifactResult]

GREEN = answer_with(tests__test_it_py="def test_it():\n    pass")


def iterated(batch: Batch, found: list[Ended]) -> None:
    """Go through a batch in this thread."""
    for each in batch:
        found.append(each)  # noqa: PERF402 what was found before an error counts


def iterated_on_loop(batch: Batch, found: list[Ended]) -> None:
    """Go through it on an event loop."""

    async def iterate() -> None:
        async for each in batch:
            found.append(each)  # noqa: PERF401 what was found before an error counts

    asyncio.run(iterate())


either_way = pytest.mark.parametrize("go_through", [iterated, iterated_on_loop])


@either_way
def test_many_plans_give_their_results(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, go_through: Any
) -> None:
    """Each its own, whether it is new, joins another one of the batch or is in the cache."""
    monkeypatch.setenv("REDIS_URL", cluster.settings.url)
    cached, new = cluster.record([GREEN]), [cluster.record([GREEN]) for _ in range(4)]
    cluster.ptc.submit(cached).get(PATIENCE_SECONDS)
    joins = new[0].model_copy(update={"execution_id": "joins"})
    hits = cached.model_copy(update={"execution_id": "hits"})
    found: list[Ended] = []
    batch = submit_plans([*new, joins.model_dump(), hits.model_dump_json()], timeout=PATIENCE_SECONDS)
    go_through(batch, found)
    results = {handle.plan.execution_id: result for handle, result in found}

    assert [handle.plan.execution_id for handle in batch.handles][4:] == ["joins", "hits"]
    assert {name: result.execution_id for name, result in results.items()} == {name: name for name in results}
    assert [result.success for result in results.values()] == [True] * 6
    assert (results["hits"].status, results["joins"].llm_usage) == ("CACHE_HIT", [])


def test_a_plan_that_is_given_twice_costs_once(cluster: Cluster) -> None:
    """Under the same execution id, too: the second one has joined the first."""
    batch = cluster.ptc.submit_plans([cluster.record([GREEN])] * 2, timeout=PATIENCE_SECONDS)
    results = {handle.joined: result for handle, result in batch}

    assert {joined: len(result.llm_usage) for joined, result in results.items()} == {False: 1, True: 0}


@either_way
def test_nobody_waits_for_the_slowest(empty_cluster: Cluster, go_through: Any) -> None:
    """What has ended is given; what has not goes on when the time is over."""
    batch = empty_cluster.ptc.submit_plans([make_plan(f"plan {n}") for n in range(3)], timeout=0.5)
    batch.handles[1].cancel()
    found: list[Ended] = []

    with pytest.raises(RunNotFinishedError, match="on"):
        go_through(batch, found)
    assert [handle.run_id for handle, _ in found] == [batch.handles[1].run_id]


@either_way
def test_a_result_that_cannot_be_had_is_no_loss_of_the_others(
    empty_cluster: Cluster, go_through: Any
) -> None:
    """It is told of after them."""
    batch = empty_cluster.ptc.submit_plans(make_plan(f"plan {n}") for n in range(3))
    empty_cluster.ptc.store.redis.delete(run_key(batch.handles[0].run_id))
    for handle in batch.handles[1:]:
        handle.cancel()
    found: list[Ended] = []

    with pytest.raises(RunNotFoundError, match=batch.handles[0].run_id):
        go_through(batch, found)
    assert {handle.run_id for handle, _ in found} == {handle.run_id for handle in batch.handles[1:]}


def test_one_connection_listens_for_all(empty_cluster: Cluster) -> None:
    """However many plans there are; who leaves the loop early leaves nothing open."""
    ptc = empty_cluster.ptc
    batch = ptc.submit_plans(make_plan(f"plan {n}") for n in range(120))
    batch.handles[7].cancel()
    results = iter(batch)
    handle, _ = next(results)
    listeners, channels = (
        len(ptc.store.redis.client_list(_type="pubsub")),
        len(ptc.store.redis.pubsub_channels()),
    )
    results.close()  # type: ignore[attr-defined]  # it is a generator

    assert handle is batch.handles[7]
    assert (listeners, channels) == (1, 120)
    until(lambda: ptc.store.redis.client_list(_type="pubsub") == [])


def test_every_plan_is_read_before_one_is_submitted(empty_cluster: Cluster) -> None:
    """The message names each that is wrong, and nothing was submitted."""
    ptc = empty_cluster.ptc
    good, wrong = make_plan(), make_plan().model_dump() | {"max_iterations": 99}

    with pytest.raises(InvalidPlanError) as caught:
        ptc.submit_plans([good, wrong, "{", wrong])
    with pytest.raises(PayloadTooLargeError, match=r"plans\[1\]: it has [\d,]+ bytes"):
        PTC(ptc.settings, Blobs(limit=5000)).submit_many([good, make_plan(context="x" * 6000)])

    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        *("plans[1].max_iterations", "plans[2]", "plans[3].max_iterations"),
    ]
    assert ptc.list_runs().runs == []


@either_way
def test_what_was_submitted_before_an_outage_is_followed(empty_cluster: Cluster, go_through: Any) -> None:
    """The rest is raised; whoever submits all of it again loses nothing and starts nothing twice."""
    ptc = empty_cluster.ptc
    plans = [make_plan(f"plan {n}", context=random_text(n, 50_000)) for n in range(120)]
    used = ptc.store.redis.info("memory")["used_memory"]
    ptc.store.redis.config_set("maxmemory", used + 4_000_000)  # full half-way
    batch = ptc.submit_plans(plans)
    with pytest.raises(ServerUnavailableError):
        ptc.submit_many(plans)
    ptc.store.redis.config_set("maxmemory", 0)
    for handle in batch.handles:
        handle.cancel()
    found: list[Ended] = []

    with pytest.raises(ServerUnavailableError, match=r"of 120 plans may not have been submitted"):
        go_through(batch, found)
    assert 0 < len(batch.handles) < 120
    assert {handle.run_id for handle, _ in found} == {handle.run_id for handle in batch.handles}


@either_way
def test_a_batch_survives_a_restart_of_the_server(tmp_path: Path, go_through: Any) -> None:
    """What ends afterwards is heard of."""
    found: list[Ended] = []
    with restartable(tmp_path) as (ptc, restart), ThreadPoolExecutor() as pool:
        batch = ptc.submit_plans(make_plan(f"plan {n}") for n in range(20))
        iterating = pool.submit(go_through, batch, found)
        until(lambda: len(ptc.store.redis.pubsub_channels()) == 20)
        restart()
        until(lambda: len(ptc.store.redis.pubsub_channels()) == 20)
        for handle in batch.handles:
            handle.cancel()
        iterating.result()

    assert [result.error_message for _, result in found] == ["cancelled"] * 20


def test_submitting_a_batch_again_finds_its_runs(empty_cluster: Cluster) -> None:
    """Also those of which the first attempt did not hear."""
    ptc = empty_cluster.ptc
    plans = [make_plan(f"plan {n}") for n in range(60)]
    first = ptc.submit_many(plans[:30])
    again = ptc.submit_many(plans)

    assert [handle.run_id for handle in again[:30]] == [handle.run_id for handle in first]
    assert len(ptc.list_runs(limit=100).runs) == 60
    assert messages(ptc) == 60


def messages(ptc: PTC) -> int:
    """Count the messages that wait for workers."""
    return sum(int(ptc.store.redis.llen(lane.list_key)) for lane in LANES)


def random_text(seed: int, length: int) -> str:
    """Give a text that cannot be compressed well."""
    return Random(seed).randbytes(length // 2).hex()  # noqa: S311 no secret


def test_a_batch_without_a_server_says_what_to_do() -> None:
    """Nothing was submitted."""
    nowhere = PTC(RedisSettings(url="redis://localhost:1/0"))

    with pytest.raises(ServerUnavailableError, match="cannot be reached"):
        nowhere.submit_plans([make_plan()])


def test_a_batch_of_none_has_no_results(empty_cluster: Cluster) -> None:
    """Nor does anybody wait for them."""
    assert list(empty_cluster.ptc.submit_plans([])) == []


def test_runs_that_wait_begin_in_the_order_of_their_priority(empty_cluster: Cluster) -> None:
    """Whoever is in a greater hurry takes a run that waits along."""
    ptc = empty_cluster.ptc
    names = ("joined", "low", "normal", "high")
    plans = {name: empty_cluster.record([GREEN], execution_id=name, enable_testing=False) for name in names}
    ptc.submit(plans["joined"], priority="low")
    for name in names[1:]:
        ptc.submit(plans[name], priority=name)
    ptc.submit(plans["joined"].model_copy(update={"execution_id": "hasty"}), priority=Priority.HIGH)
    empty_cluster.start_worker("-c", "1")
    until(lambda: len(ptc.list_runs(state="ended").runs) == 4)

    began = sorted(ptc.list_runs().runs, key=lambda run: run.started_at or run.submitted_at)
    assert [run.execution_id for run in began] == ["high", "joined", "normal", "low"]


def test_a_priority_that_is_none_is_named(empty_cluster: Cluster) -> None:
    """Before anything is submitted."""
    with pytest.raises(ConfigurationError, match="priority='urgent' is none of high, normal, low"):
        empty_cluster.ptc.submit(make_plan(), priority="urgent")


def test_the_queues_that_workers_serve_are_named(empty_cluster: Cluster) -> None:
    """Whoever waits for the other one is told how to start a worker for it."""
    before = empty_cluster.ptc.served()
    empty_cluster.start_worker("-Q", "generate")

    assert (before, empty_cluster.ptc.served()) == (set(), {"generate"})
