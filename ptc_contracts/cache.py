"""The cache of successful results, shared with every other installation."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticSerializationError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from ptc_contracts.keys import (
    CACHE_STATS,
    EXEC_PREFIX,
    META_PREFIX,
    cache_key,
    cache_names,
    exec_key,
    fingerprint,
    meta_key,
)
from ptc_contracts.plan import DEFAULT_CACHE_TTL, CacheStrategy, PTCExecutionPlan
from ptc_contracts.result import ExecutionStatus, PTCArtifactResult
from ptc_contracts.settings import RedisSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

T = TypeVar("T")

_AWAY = (RedisError, OSError)
_SCAN_BATCH = 500
_LONGEST_TTL = 10 * 365 * 24 * 3600
"""Seconds; Redis refuses what lies too far ahead."""


class CacheMeta(BaseModel):
    """The circumstances of a cached result; `ptc:meta:{key}` holds it as JSON."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    cached_at: datetime
    """When the entry was written; read as UTC when an older peer wrote no zone."""
    execution_id: str | None = None
    """The execution that produced it."""
    cache_key: str | None = None
    """The key it was stored under."""
    ttl: int | None = None
    """Seconds it was stored for."""
    fingerprint: str = ""
    """The producing plan's fingerprint; empty in entries of older peers."""

    @property
    def age_seconds(self) -> float:
        """Seconds since the entry was written."""
        return (datetime.now(UTC) - _utc(self.cached_at)).total_seconds()


class CacheEntry(BaseModel):
    """A cached result together with its circumstances."""

    result: PTCArtifactResult
    meta: CacheMeta

    @classmethod
    def parse(cls, result: str | bytes | None, meta: str | bytes | None) -> Self | None:
        """Read an entry as Redis holds it; None if there is none or it cannot be read.

        An entry without a readable meta is as old as its result, and its fingerprint is empty.
        """
        if result is None:
            return None
        try:
            stored = PTCArtifactResult.model_validate_json(result)
        except ValidationError:
            log.warning("cache entry ignored: it is not a result of a known form")
            return None
        try:
            circumstances = CacheMeta.model_validate_json(meta or b"")
        except ValidationError:
            circumstances = CacheMeta(cached_at=stored.completed_at, execution_id=stored.execution_id)
        return cls(result=stored, meta=circumstances)

    def serves(self, plan: PTCExecutionPlan) -> bool:
        """Decide whether the plan's strategy lets this entry answer it."""
        return _serves(plan, self.result, self.meta)

    def hit_for(self, plan: PTCExecutionPlan) -> PTCArtifactResult:
        """Make the result that the plan's caller gets: a copy that says it was served from the cache."""
        facts = {
            "cached_execution_id": self.result.execution_id,
            "cached_at": _utc(self.meta.cached_at).isoformat(),
            "saved_cost_usd": self.result.total_cost_usd,
            "saved_tokens": self.result.total_tokens_used,
        }
        return self.result.model_copy(
            deep=True,
            update={
                "status": ExecutionStatus.CACHE_HIT,
                "from_cache": True,
                "cache_key": cache_key(plan),
                "execution_id": plan.execution_id,
                "llm_usage": [],
                "metadata": {**self.result.metadata, **facts},
            },
        )


class CacheWrite(BaseModel):
    """What storing a result means: the names it goes under, its two texts and how long they live."""

    names: list[str]
    result: str
    meta: str
    ttl: int

    @classmethod
    def of(cls, plan: PTCExecutionPlan, result: PTCArtifactResult, ttl: int | None = None) -> Self | None:
        """Prepare the write, or None where the strategy, the status or the time to live forbid one."""
        lifetime = next((t for t in (ttl, plan.cache_ttl) if t is not None), DEFAULT_CACHE_TTL)
        lifetime = min(lifetime, _LONGEST_TTL)
        if (
            plan.cache_strategy is CacheStrategy.NEVER
            or result.status is not ExecutionStatus.SUCCESS
            or "joined_run" in result.metadata  # a joiner's copy leaves out what the code cost
            or lifetime <= 0
        ):
            return None
        meta = CacheMeta(
            cached_at=datetime.now(UTC),
            execution_id=result.execution_id,
            cache_key=cache_key(plan),
            ttl=lifetime,
            fingerprint=fingerprint(plan),
        )
        return cls(
            names=cache_names(plan),
            result=result.model_dump_json(),
            meta=meta.model_dump_json(),
            ttl=lifetime,
        )


class PTCCacheManager:
    """Reads and writes cached results; without Redis it finds nothing, stores nothing and raises nothing."""

    def __init__(self, redis_client: Redis | None = None) -> None:
        """Use the given client, or connect to `REDIS_URL` when first needed."""
        self._given = redis_client
        self._own: tuple[asyncio.AbstractEventLoop, Redis] | None = None
        self._away = False

    @staticmethod
    def compute_cache_key(plan: PTCExecutionPlan) -> str:
        """Compute the plan's cache key: 16 hex digits."""
        return cache_key(plan)

    def should_use_cache(
        self, plan: PTCExecutionPlan, cached: PTCArtifactResult | None, meta: CacheMeta | None = None
    ) -> bool:
        """Decide whether a cached result may answer the plan.

        Without its meta an entry's age is not known and not judged, and its fingerprint counts as empty.
        """
        return cached is not None and _serves(plan, cached, meta)

    async def get(self, plan: PTCExecutionPlan) -> PTCArtifactResult | None:
        """Return the cached result as a hit for this plan, or None."""
        if plan.cache_strategy is CacheStrategy.NEVER:
            return None

        async def read(client: Redis) -> PTCArtifactResult | None:
            names = cache_names(plan)
            keys = [key for name in names for key in (exec_key(name), meta_key(name))]
            texts = await client.mget(keys)
            entries = (CacheEntry.parse(*texts[i : i + 2]) for i in range(0, len(texts), 2))
            hit = next((entry.hit_for(plan) for entry in entries if entry and entry.serves(plan)), None)
            with suppress(RedisError):  # a server that is full refuses to count and still answers
                await client.hincrby(CACHE_STATS, "hits" if hit else "misses", 1)
            return hit

        return await self._degrading(read, None)

    async def set(self, plan: PTCExecutionPlan, result: PTCArtifactResult, ttl: int | None = None) -> bool:
        """Store a successful result for `ttl` seconds (default: the plan's); tell whether it was stored."""
        try:
            write = CacheWrite.of(plan, result, ttl)
        except PydanticSerializationError as error:
            log.warning("result not cached: %s", error)
            return False
        if write is None:
            return False

        async def store(client: Redis) -> bool:
            async with client.pipeline(transaction=True) as pipe:
                for name in write.names:
                    pipe.set(exec_key(name), write.result, ex=write.ttl)
                    pipe.set(meta_key(name), write.meta, ex=write.ttl)
                await pipe.execute()
            return True

        return await self._degrading(store, default=False)

    async def invalidate(self, plan: PTCExecutionPlan) -> bool:
        """Remove the plan's entries; tell whether there were any."""

        async def remove(client: Redis) -> bool:
            keys = [key for name in cache_names(plan) for key in (exec_key(name), meta_key(name))]
            return bool(await client.delete(*keys))

        return await self._degrading(remove, default=False)

    async def get_stats(self) -> dict[str, Any]:
        """Count entries, hits and misses, and tell what memory Redis uses."""

        async def count(client: Redis) -> dict[str, Any]:
            memory = await client.info("memory")
            counted = await client.hmget(CACHE_STATS, ["hits", "misses"])
            hits, misses = (int(number or 0) for number in counted)
            return {
                "cached_executions": await _count(client, EXEC_PREFIX),
                "metadata_entries": await _count(client, META_PREFIX),
                "used_memory_human": memory.get("used_memory_human", "unknown"),
                "maxmemory_human": memory.get("maxmemory_human", "unknown"),
                "hits": hits,
                "misses": misses,
                "hit_rate": hits / (hits + misses) if hits + misses else 0.0,
            }

        return await self._degrading(count, {"error": "Redis cannot be reached"})

    async def clear_all(self) -> int:
        """Remove every cached result, and nothing else; return how many there were."""

        async def clear(client: Redis) -> int:
            await _unlink(client, META_PREFIX)
            return await _unlink(client, EXEC_PREFIX)

        return await self._degrading(clear, 0)

    async def close(self) -> None:
        """Close the connection."""
        if self._given is not None:
            await self._given.aclose()
        elif self._own is not None:
            await self._own[1].aclose()
            self._own = None

    async def _degrading(self, ask: Callable[[Redis], Awaitable[T]], default: T) -> T:
        """Ask Redis, or answer with the default while it is away; say so once per absence."""
        try:
            answer = await ask(self._client())
        except _AWAY as error:
            if not self._away:
                log.warning("cache is off: Redis does not answer (%s)", type(error).__name__)
            self._away = True
            return default
        self._away = False
        return answer

    def _client(self) -> Redis:
        """Give the client; our own one belongs to the loop it was made on, and callers may bring another."""
        if self._given is not None:
            return self._given
        loop = asyncio.get_running_loop()
        if self._own is None or self._own[0] is not loop:
            client = Redis.from_url(
                RedisSettings.from_environment().url,
                socket_timeout=5,
                socket_connect_timeout=2,
                retry=Retry(NoBackoff(), 1),
            )
            self._own = (loop, client)
        return self._own[1]


def _serves(plan: PTCExecutionPlan, cached: PTCArtifactResult, meta: CacheMeta | None) -> bool:
    if plan.cache_strategy is not CacheStrategy.SMART:
        return plan.cache_strategy is CacheStrategy.ALWAYS
    tested = cached.test_results is not None and cached.test_results.success
    oldest = DEFAULT_CACHE_TTL if plan.cache_ttl is None else plan.cache_ttl
    return (
        cached.success
        and (tested or not plan.enable_testing)
        and fingerprint(plan) == (meta.fingerprint if meta else "")
        and (meta is None or meta.age_seconds < oldest)
    )


async def _count(client: Redis, prefix: str) -> int:
    return sum([1 async for _ in client.scan_iter(match=f"{prefix}*", count=_SCAN_BATCH)])


async def _unlink(client: Redis, prefix: str) -> int:
    removed = 0
    keys = client.scan_iter(match=f"{prefix}*", count=_SCAN_BATCH)
    async for key in keys:
        removed += await client.unlink(key)
    return removed


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
