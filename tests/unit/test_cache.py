"""PTCCacheManager: strategies, hits, what is stored, and an absent server."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from fakeredis import FakeAsyncRedis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from support import make_plan

from ptc_contracts import (
    ExecutionStatus,
    LLMUsage,
    PTCArtifactResult,
    PTCCacheManager,
    PTCExecutionPlan,
    TestResult,
)
from ptc_contracts.keys import cache_key, fingerprint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def make_result(**fields: Any) -> PTCArtifactResult:
    """Make a successful, tested result."""
    moment = datetime.now(UTC)
    defaults = {
        "execution_id": "first",
        "status": "SUCCESS",
        "test_results": TestResult(test_command="pytest", exit_code=0, tests_passed=1, duration_seconds=1),
        "llm_usage": [LLMUsage(provider="claude", model="m", total_tokens=100, cost_usd=0.25)],
        "started_at": moment,
        "completed_at": moment,
        "duration_seconds": 1,
    }
    return PTCArtifactResult(**{**defaults, **fields})


def with_cache(use: Callable[[PTCCacheManager, FakeAsyncRedis], Awaitable[Any]]) -> Any:
    """Run a coroutine against a cache on an empty server."""

    async def run() -> Any:
        async with FakeAsyncRedis() as redis:
            return await use(PTCCacheManager(redis), redis)

    return asyncio.run(run())


def test_a_hit_says_what_it_is_and_costs_nothing() -> None:
    """A copy under this plan's execution id, without usage, that tells where it comes from and what it saved."""
    plan = make_plan(execution_id="second")

    async def use(cache: PTCCacheManager, _: Any) -> PTCArtifactResult | None:
        await cache.set(make_plan(), make_result())
        return await cache.get(plan)

    hit = with_cache(use)

    assert (hit.status, hit.from_cache, hit.execution_id, hit.llm_usage) == ("CACHE_HIT", True, "second", [])
    assert hit.cache_key == cache_key(plan)
    assert {k: hit.metadata[k] for k in ("cached_execution_id", "saved_cost_usd", "saved_tokens")} == {
        "cached_execution_id": "first",
        "saved_cost_usd": 0.25,
        "saved_tokens": 100,
    }
    assert datetime.fromisoformat(hit.metadata["cached_at"]).tzinfo is not None


def test_both_keys_have_the_contracts_form_and_the_same_expiry() -> None:
    """Other installations read them."""
    plan = make_plan()

    async def use(cache: PTCCacheManager, redis: FakeAsyncRedis) -> Any:
        await cache.set(plan, make_result(), ttl=50)
        key = cache_key(plan)
        texts = await redis.mget(f"ptc:exec:{key}", f"ptc:meta:{key}")
        return [*texts, await redis.ttl(f"ptc:exec:{key}"), await redis.ttl(f"ptc:meta:{key}")]

    result, meta, result_ttl, meta_ttl = with_cache(use)

    assert PTCArtifactResult.model_validate_json(result).status is ExecutionStatus.SUCCESS
    assert json.loads(meta).keys() >= {"cached_at", "execution_id", "cache_key", "ttl"}
    assert result_ttl == meta_ttl == 50


@pytest.mark.parametrize(
    ("plan_ttl", "argument", "stored_for"),
    [(3600, None, 3600), (7, None, 7), (None, None, 3600), (7, 9, 9), (0, None, None), (7, 0, None)],
)
def test_the_time_to_live_is_the_arguments_or_the_plans(
    plan_ttl: int | None, argument: int | None, stored_for: int | None
) -> None:
    """0 stores nothing; None is the default of an hour."""
    plan = make_plan(cache_ttl=plan_ttl)

    async def use(cache: PTCCacheManager, redis: FakeAsyncRedis) -> Any:
        stored = await cache.set(plan, make_result(), ttl=argument)
        return stored, await redis.ttl(f"ptc:exec:{cache_key(plan)}")

    assert with_cache(use) == ((True, stored_for) if stored_for else (False, -2))


@pytest.mark.parametrize("status", [s for s in ExecutionStatus if s is not ExecutionStatus.SUCCESS])
def test_only_fresh_successes_are_stored(status: ExecutionStatus) -> None:
    """A hit is never stored again, and nothing red ever is."""
    assert with_cache(lambda cache, _: cache.set(make_plan(), make_result(status=status))) is False


def test_a_never_plan_makes_no_round_trip() -> None:
    """Neither read nor written, not even looked at."""
    redis = Redis(port=1, retry=Retry(NoBackoff(), 0))  # nobody listens there
    cache, plan = PTCCacheManager(redis), make_plan(cache_strategy="never")

    async def use() -> Any:
        return await cache.get(plan), await cache.set(plan, make_result())

    assert asyncio.run(use()) == (None, False)
    assert cache._away is False


SMART_CASES = [
    ({}, {}, {}, True),
    ({}, {"test_results": None}, {}, False),
    ({}, {"test_results": TestResult(test_command="x", exit_code=1, duration_seconds=0)}, {}, False),
    ({"enable_testing": False}, {"test_results": None}, {}, True),
    ({"cache_ttl": 60}, {}, {"cached_at": timedelta(seconds=70)}, False),
    ({"cache_ttl": 60}, {}, {"cached_at": timedelta(seconds=50)}, True),
    ({"cache_ttl": 0}, {}, {}, False),
    ({"cache_ttl": None}, {}, {"cached_at": timedelta(seconds=3500)}, True),
    ({}, {}, {"cached_at": "naive"}, True),
    ({"context": "c"}, {}, {}, False),
    ({}, {}, {"fingerprint": "0123456789abcdef"}, False),
    ({"context": "c"}, {}, {"fingerprint": fingerprint(make_plan(context="c"))}, True),
    ({}, {}, {"ttl": None, "execution_id": None, "cache_key": None}, True),
    ({}, {"status": "FAILURE"}, {}, False),
]


@pytest.mark.parametrize(("plan_fields", "result_fields", "meta_fields", "serves"), SMART_CASES)
def test_smart_takes_only_what_was_right_for_this_plan(
    plan_fields: dict[str, Any],
    result_fields: dict[str, Any],
    meta_fields: dict[str, Any],
    serves: bool,
) -> None:
    """Successful, tested if asked for, of the same fingerprint, and younger than this plan's own limit."""
    plan = make_plan(**plan_fields)
    age = meta_fields.get("cached_at", timedelta())
    now = datetime.now(UTC)
    cached_at = now.replace(tzinfo=None) if age == "naive" else now - age
    meta = {"execution_id": "first", "cache_key": "k", "ttl": 60, **meta_fields, "cached_at": cached_at}

    async def use(cache: PTCCacheManager, redis: FakeAsyncRedis) -> Any:
        await redis.set(f"ptc:exec:{cache_key(plan)}", make_result(**result_fields).model_dump_json())
        await redis.set(f"ptc:meta:{cache_key(plan)}", json.dumps(meta, default=str))
        return await cache.get(plan) is not None

    assert with_cache(use) is serves


def test_a_lifetime_without_end_is_bounded() -> None:
    """Redis refuses what lies too far ahead."""
    assert with_cache(lambda cache, _: cache.set(make_plan(cache_ttl=10**17), make_result())) is True


def test_a_joiners_copy_is_not_stored_over_the_original() -> None:
    """It leaves out what the code cost, and later hits would tell of no saving."""
    copy = make_result(metadata={"joined_run": "x"}, llm_usage=[])

    assert with_cache(lambda cache, _: cache.set(make_plan(), copy)) is False


def test_one_manager_serves_callers_on_several_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synchronous callers bring a new one each time."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    cache = PTCCacheManager()

    assert [asyncio.run(cache.get(make_plan())) for _ in range(2)] == [None, None]


def test_always_takes_any_entry() -> None:
    """It may serve stale results of other fingerprints, as documented."""

    async def use(cache: PTCCacheManager, _: Any) -> Any:
        await cache.set(make_plan(context="c"), make_result())
        return await cache.get(make_plan(cache_strategy="always", cache_ttl=0))

    assert with_cache(use) is not None


def test_an_entry_that_lost_its_meta_is_as_old_as_its_result() -> None:
    """Its own time of storing is not known any more."""
    old = make_result(completed_at=datetime.now(UTC) - timedelta(hours=2))

    async def use(cache: PTCCacheManager, redis: FakeAsyncRedis) -> Any:
        await redis.set(f"ptc:exec:{cache_key(make_plan())}", old.model_dump_json())
        return await cache.get(make_plan()), await cache.get(make_plan(cache_ttl=9000))

    stale, fresh = with_cache(use)
    assert (stale is None, fresh is None) == (True, False)


def test_neighbours_with_other_fingerprints_do_not_push_each_other_out() -> None:
    """Each is found under its own name."""
    plans = [make_plan(context=text) for text in "ab"]

    async def use(cache: PTCCacheManager, _: Any) -> Any:
        for number, plan in enumerate(plans):
            await cache.set(plan, make_result(execution_id=f"run {number}"))
        return [await cache.get(plan) for plan in plans]

    assert [hit.metadata["cached_execution_id"] for hit in with_cache(use)] == ["run 0", "run 1"]


def test_a_plan_with_a_fingerprint_also_writes_the_plain_key() -> None:
    """Older peers, which know that one alone, find it."""
    plan = make_plan(context="c")

    async def use(cache: PTCCacheManager, redis: FakeAsyncRedis) -> Any:
        await cache.set(plan, make_result())
        return sorted([key async for key in redis.scan_iter("ptc:exec:*")])

    key = cache_key(plan)
    assert with_cache(use) == [f"ptc:exec:{key}".encode(), f"ptc:exec:{key}:{fingerprint(plan)}".encode()]


@pytest.mark.parametrize("text", [b"", b"{", b'{"status": "DONE"}', b"\xff\xfe"])
def test_an_entry_that_cannot_be_read_is_a_miss(text: bytes) -> None:
    """A broken or foreign entry stops nobody."""

    async def use(cache: PTCCacheManager, redis: FakeAsyncRedis) -> Any:
        await redis.set(f"ptc:exec:{cache_key(make_plan())}", text)
        return await cache.get(make_plan())

    assert with_cache(use) is None


def test_invalidate_tells_whether_there_was_anything() -> None:
    """Exec and meta go, under both names."""
    plan = make_plan(context="c")

    async def use(cache: PTCCacheManager, redis: FakeAsyncRedis) -> Any:
        await cache.set(plan, make_result())
        return await cache.invalidate(plan), await cache.invalidate(plan), await redis.dbsize()

    assert with_cache(use) == (True, False, 0)


def test_clear_all_counts_results_and_touches_nothing_else() -> None:
    """Runs and other keys of ours stay."""

    async def use(cache: PTCCacheManager, redis: FakeAsyncRedis) -> Any:
        await redis.set("ptc:run:x", "1")
        for text in "abc":
            await cache.set(make_plan(text), make_result())
        return await cache.clear_all(), [key async for key in redis.scan_iter("*")]

    assert with_cache(use) == (3, [b"ptc:run:x"])


class ServerWithMemory(FakeAsyncRedis):
    """A server that answers INFO, which the fake one does not know."""

    async def info(self, *_: Any, **__: Any) -> dict[str, str]:
        """Tell of memory."""
        return {"used_memory_human": "1M", "maxmemory_human": "0B"}


def test_statistics_count_entries_hits_and_misses() -> None:
    """All names of the contract are there."""

    async def use() -> Any:
        async with ServerWithMemory() as redis:
            cache = PTCCacheManager(redis)
            await cache.get(make_plan())
            await cache.set(make_plan(), make_result())
            await cache.get(make_plan())
            return await cache.get_stats()

    assert asyncio.run(use()) == {
        "cached_executions": 1,
        "metadata_entries": 1,
        "used_memory_human": "1M",
        "maxmemory_human": "0B",
        "hits": 1,
        "misses": 1,
        "hit_rate": 0.5,
    }


def test_without_a_server_every_operation_degrades_and_one_line_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The caller carries on."""

    async def use() -> Any:
        async with Redis(port=1, retry=Retry(NoBackoff(), 0)) as nobody:
            cache, plan = PTCCacheManager(nobody), make_plan()
            return [
                await cache.get(plan),
                await cache.set(plan, make_result()),
                await cache.invalidate(plan),
                await cache.clear_all(),
                await cache.get_stats(),
            ]

    with caplog.at_level(logging.WARNING):
        answers = asyncio.run(use())

    assert answers == [None, False, False, 0, {"error": "Redis cannot be reached"}]
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("plan", "cached", "used"),
    [
        (make_plan(), None, False),
        (make_plan(), make_result(), True),
        (make_plan(cache_strategy="never"), make_result(), False),
        (make_plan(cache_strategy="always"), make_result(status="FAILURE"), True),
        (make_plan(context="c"), make_result(), False),
    ],
)
def test_should_use_cache_judges_a_result_by_the_plans_strategy(
    plan: PTCExecutionPlan,
    cached: PTCArtifactResult | None,
    used: bool,
) -> None:
    """Without a meta the fingerprint counts as empty."""
    assert PTCCacheManager().should_use_cache(plan, cached) is used
