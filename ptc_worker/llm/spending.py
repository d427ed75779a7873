"""What all plans of a day spend together, reserved before a call and settled after it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ptc_contracts.keys import spent_key
from ptc_worker.llm.settling import settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from redis.asyncio import Redis

    from ptc_worker.llm.budget import Offer

_TTL_SECONDS = 3 * 24 * 3600

_RESERVE = """
-- KEYS: what a day has spent   ARGV: its limit, the most and the least to reserve (US dollars), seconds to live
-- Returns what was reserved ('' if not even the least fits) and what had been spent or reserved before
local spent = tonumber(redis.call('GET', KEYS[1]) or '0')
local fits = math.min(tonumber(ARGV[2]), tonumber(ARGV[1]) - spent)
if fits < tonumber(ARGV[3]) then return {'', string.format('%.9f', spent)} end
redis.call('INCRBYFLOAT', KEYS[1], string.format('%.9f', fits))
redis.call('EXPIRE', KEYS[1], ARGV[4])
return {string.format('%.9f', fits), string.format('%.9f', spent)}
"""


class Spending:
    """Keeps the sum of a day. What a worker that was killed had reserved stays counted."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._reserve = redis.register_script(_RESERVE)

    @asynccontextmanager
    async def reserving(self, offer: Offer, limit: float, paid: Callable[[], float]) -> AsyncIterator[Offer]:
        """Reserve an offer's worst case, or as much of it as fits; afterwards count what `paid` tells instead.

        Raises:
            NotAskedError: not even a short answer fits.
        """
        key = spent_key(await self._today())
        args = [limit, offer.most, offer.least, _TTL_SECONDS]
        reserved, spent = await self._reserve(keys=[key], args=args)
        if not reserved:
            raise offer.refused(limit, float(spent), "today", "PTC_MAX_COST_USD_PER_DAY")
        try:
            yield offer.costing(float(reserved))
        finally:
            await settled(self._redis.incrbyfloat(key, paid() - float(reserved)))

    async def _today(self) -> str:
        """Name the day by the server's clock, which all workers share."""
        seconds, _ = await self._redis.time()
        return datetime.fromtimestamp(seconds, UTC).date().isoformat()
