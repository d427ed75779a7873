"""What all plans of a day spend together, reserved before a call and settled after it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import uuid4

from ptc_contracts.keys import spent_key
from ptc_contracts.scripts import NOW
from ptc_worker.llm.settling import settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from redis.asyncio import Redis

    from ptc_worker.llm.budget import Offer

_TTL_SECONDS = 3 * 24 * 3600

_LOOK_SECONDS = 5.0
"""After which it is worth asking again for what calls under way have reserved: few cost what they may."""

_RESERVE = (
    NOW
    + """
-- KEYS: a day   ARGV: its limit, the most and the least to reserve (US dollars), whose call it is, its own name, ms that
-- it may take, seconds to live
-- Beside what was spent there is a field for whoever has a call under way. One that stands for longer than its call may
-- take, or whose owner makes another call, was left by a worker that was killed: it counts as spent. Whoever asks again
-- in the name of the same call, because the answer was lost, gets it again.
-- Returns what is reserved ('' if not even the least fits), what was spent, and what other calls have reserved.
local spent, reserved, ours = 0, 0, nil
local kept = redis.call('HGETALL', KEYS[1])
for i = 1, #kept, 2 do
  local usd, until_, call = string.match(kept[i + 1], '^(%S+) (%d+) (%S+)$')
  if call == ARGV[5] then
    ours = usd
  elseif call and kept[i] ~= ARGV[4] and tonumber(until_) > now then
    reserved = reserved + tonumber(usd)
  else
    spent = spent + tonumber(usd or kept[i + 1])
    if call then
      redis.call('HINCRBYFLOAT', KEYS[1], 'spent', usd)
      redis.call('HDEL', KEYS[1], kept[i])
    end
  end
end
local fits = math.min(tonumber(ARGV[2]), tonumber(ARGV[1]) - spent - reserved)
if not ours and fits >= tonumber(ARGV[3]) then
  ours = string.format('%.9f', fits)
  redis.call('HSET', KEYS[1], ARGV[4], ours .. ' ' .. string.format('%d', now + tonumber(ARGV[6])) .. ' ' .. ARGV[5])
  redis.call('EXPIRE', KEYS[1], ARGV[7])
end
return {ours or '', string.format('%.9f', spent), string.format('%.9f', reserved)}
"""
)

_SETTLE = """
-- KEYS: a day   ARGV: whose call it was, its own name, the US dollars it cost
local call = string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '%S+$')
if call == ARGV[2] then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('HINCRBYFLOAT', KEYS[1], 'spent', ARGV[3])
end
return 1
"""


class Spending:
    """Keeps the sum of a day. What a worker that was killed had reserved stays counted."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._reserve, self._settle = redis.register_script(_RESERVE), redis.register_script(_SETTLE)

    @asynccontextmanager
    async def reserving(
        self, offer: Offer, limit: float, owner: str, seconds: float, paid: Callable[[], float]
    ) -> AsyncIterator[Offer]:
        """Reserve an offer's worst case, or as much of it as fits; afterwards count what `paid` tells instead.

        The call may take so many seconds, and its owner makes no other one meanwhile.

        Raises:
            NotAskedError: not even a short answer fits; `retry_after` tells when it may, if calls under way cost less than
                they have reserved.
        """
        key, call = spent_key(await self._today()), uuid4().hex
        args: list[str | float] = [limit, offer.most, offer.least]
        args += [owner, call, max(0, round(seconds * 1000)), _TTL_SECONDS]
        ours, *sums = await self._reserve(keys=[key], args=args)
        if not ours:
            spent, reserved = map(float, sums)
            waits = limit - spent >= offer.least
            raise offer.refused(
                limit,
                spent,
                "today",
                "PTC_MAX_COST_USD_PER_DAY",
                reserved=reserved,
                retry_after=_LOOK_SECONDS if waits else None,
            )
        try:
            yield offer.costing(float(ours))
        finally:
            await settled(self._settle(keys=[key], args=[owner, call, f"{paid():.9f}"]))

    async def _today(self) -> str:
        """Name the day by the server's clock, which all workers share."""
        seconds, _ = await self._redis.time()
        return datetime.fromtimestamp(seconds, UTC).date().isoformat()
