"""Providers that fail are left alone for a while, by all workers: a breaker for each provider and model."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import structlog

from ptc_contracts.keys import breaker_key
from ptc_contracts.scripts import NOW
from ptc_worker.llm.errors import ModelError, NotAskedError, TransientError
from ptc_worker.llm.settling import settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from ptc_worker.llm.protocol import Provider

log = structlog.get_logger(__name__)

FAILURES = 5
"""Failures in a row, within `WINDOW_SECONDS`, that open a breaker."""

WINDOW_SECONDS = 60

REST_SECONDS = 30.0
"""How long an open breaker keeps everybody away, unless the provider asks for more."""

LONG_REST_SECONDS = 600.0
"""The same where only people can help; and the longest that a provider is believed."""

LASTING = {"auth", "quota", "unknown_model"}
"""Failures that open a breaker at once: money, a key or a name is missing."""

_LONG_WAIT = 30.0

_PROBE_SECONDS = 60
_LOOK_SECONDS = 5
"""When to ask again while somebody probes."""

_ADMIT = (
    NOW
    + """
-- KEYS: a breaker   ARGV: ms that a probe may take, ms to wait while another one is under way
-- Returns how to go on: 'closed', 'probe' (nobody else is let through until it ends) or 'open'; the ms to wait, and
-- the kind of failure that opened it.
local h = redis.call('HMGET', KEYS[1], 'open_until', 'kind', 'probe_until')
if not h[1] then return {'closed', 0, ''} end
if tonumber(h[1]) > now then return {'open', h[1] - now, h[2]} end
if h[3] and tonumber(h[3]) > now then return {'open', tonumber(ARGV[2]), 'probed'} end
redis.call('HSET', KEYS[1], 'probe_until', now + ARGV[1])
return {'probe', 0, h[2]}
"""
)

_FAILED = (
    NOW
    + """
-- KEYS: a breaker   ARGV: kind, failures that open it, within ms, ms to keep it open
-- Returns 1 if this failure has opened it.
local h = redis.call('HMGET', KEYS[1], 'open_until', 'failures', 'since')
local failures, since = tonumber(h[2] or 0), tonumber(h[3] or now)
if since < now - ARGV[3] then failures, since = 0, now end
if not h[1] and failures + 1 < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], 'failures', failures + 1, 'since', since)
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return 0
end
local until_ = math.max(tonumber(h[1] or 0), now + ARGV[4])
redis.call('HSET', KEYS[1], 'open_until', until_, 'kind', ARGV[1])
redis.call('HDEL', KEYS[1], 'probe_until')
redis.call('PEXPIRE', KEYS[1], until_ - now + 10 * ARGV[3])
return h[1] and 0 or 1
"""
)


class _Way(NamedTuple):
    state: str
    wait: float
    kind: str


class Breaker:
    """Lets calls through, and learns from how they end."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._admit, self._failed = redis.register_script(_ADMIT), redis.register_script(_FAILED)

    @asynccontextmanager
    async def watching(self, provider: Provider) -> AsyncIterator[None]:
        """Let a call through, and note how it ends.

        Raises:
            NotAskedError: the provider is left alone; `retry_after` tells how long, if waiting helps.
        """
        key = breaker_key(f"{provider.name}:{provider.model}:{provider.mark}")
        way = await self._way(key)
        answered = False
        try:
            yield
            answered = True
        except NotAskedError:
            raise
        except ModelError as error:
            if at_fault(error):
                await settled(self._count(key, provider, error))
            else:
                answered = True
            raise
        finally:
            if answered:
                await settled(self._redis.delete(key))
            elif way.state == "probe":
                await settled(self._redis.hdel(key, "probe_until"))

    async def _way(self, key: str) -> _Way:
        state, milliseconds, kind = await self._admit(
            keys=[key], args=[_PROBE_SECONDS * 1000, _LOOK_SECONDS * 1000]
        )
        way = _Way(state.decode(), milliseconds / 1000, kind.decode())
        if way.state == "open":
            raise NotAskedError(
                "resting",
                f"it failed before ({way.kind}) and is left alone for {way.wait:.0f} s",
                retry_after=None if way.kind in LASTING else way.wait,
            )
        return way

    async def _count(self, key: str, provider: Provider, error: ModelError) -> None:
        failures = 1 if at_once(error) else FAILURES
        args: list[str | int] = [error.kind, failures, WINDOW_SECONDS * 1000, round(rest(error) * 1000)]
        if await self._failed(keys=[key], args=args):
            log.warning("provider_rests", provider=provider.name, model=provider.model, error=error.kind)


def at_fault(error: ModelError) -> bool:
    """Tell whether a failure is the provider's: a refusal and a prompt that is too long are not."""
    return isinstance(error, TransientError) or error.kind in LASTING


def at_once(error: ModelError) -> bool:
    """Tell whether one such failure is enough."""
    return error.kind in LASTING or (error.retry_after or 0) > _LONG_WAIT


def rest(error: ModelError) -> float:
    """Return the seconds to leave a provider alone after a failure."""
    if error.kind in LASTING:
        return LONG_REST_SECONDS
    return min(max(error.retry_after or 0, REST_SECONDS), LONG_REST_SECONDS)
