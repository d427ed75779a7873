"""How often a provider may be asked, and for how much, in any minute: one count for all workers."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ptc_contracts.keys import limit_key
from ptc_contracts.scripts import NOW
from ptc_worker.llm.errors import NotAskedError
from ptc_worker.llm.settling import settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from ptc_worker.llm.protocol import Prompt, Provider, Tally

HOLD_SECONDS = 3.0
"""Longest wait that is worth the slot of a worker; beyond, another provider is asked or another run goes on."""

OUTPUT_SHARE = 0.25
"""Of the tokens an answer may have, those that are reserved for it: few answers need them all."""

_RESERVE = (
    NOW
    + """
-- KEYS: a provider's count   ARGV: most requests and most tokens a minute ('' = no limit), tokens to reserve
-- Counts a request and its tokens, or neither: a field for each second and kind, kept until all of that second is more
-- than a minute ago. Returns the milliseconds to wait (0 = reserved) and the second it is counted in.
local second = math.floor(now / 1000)
local rpm, tpm, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if tpm then wanted = math.min(wanted, tpm) end
local sums, seconds, by_second = {r = 0, t = 0}, {}, {}
local kept = redis.call('HGETALL', KEYS[1])
for i = 1, #kept, 2 do
  local at, kind = string.match(kept[i], '^(%d+):(%a)$')
  at = tonumber(at)
  if at <= second - 61 then
    redis.call('HDEL', KEYS[1], kept[i])
  else
    if not by_second[at] then
      by_second[at] = {r = 0, t = 0}
      table.insert(seconds, at)
    end
    by_second[at][kind] = tonumber(kept[i + 1])
    sums[kind] = sums[kind] + tonumber(kept[i + 1])
  end
end
local function fits()
  return (not rpm or sums.r + 1 <= rpm) and (not tpm or sums.t + wanted <= tpm)
end
if fits() then
  redis.call('HINCRBY', KEYS[1], second .. ':r', 1)
  redis.call('HINCRBY', KEYS[1], second .. ':t', wanted)
  redis.call('EXPIRE', KEYS[1], 62)
  return {0, second, wanted}
end
table.sort(seconds)
for _, at in ipairs(seconds) do
  sums.r, sums.t = sums.r - by_second[at].r, sums.t - by_second[at].t
  if fits() then return {(at + 61) * 1000 - now, 0, 0} end
end
return {61000, 0, 0}
"""
)

_SETTLE = (
    NOW
    + """
-- KEYS: a provider's count   ARGV: the second of the reservation, tokens used, tokens reserved
-- What a long answer used beyond its reservation counts now, once the second it began in is forgotten.
local more = tonumber(ARGV[2]) - tonumber(ARGV[3])
local field = ARGV[1] .. ':t'
if redis.call('HEXISTS', KEYS[1], field) == 0 then
  if more <= 0 then return end
  field = math.floor(now / 1000) .. ':t'
end
redis.call('HINCRBY', KEYS[1], field, more)
redis.call('EXPIRE', KEYS[1], 62)
"""
)


class Limits:
    """Counts requests and tokens of the last minute, by provider."""

    def __init__(self, redis: Redis) -> None:
        self._reserve, self._settle = redis.register_script(_RESERVE), redis.register_script(_SETTLE)

    @asynccontextmanager
    async def counting(
        self, provider: Provider, prompt: Prompt, max_output_tokens: int, tally: Tally
    ) -> AsyncIterator[None]:
        """Wait for a place, if it comes soon, and count the call; afterwards count what it used instead.

        Raises:
            NotAskedError: no place comes soon; `retry_after` tells when.
        """
        if provider.rpm is None and provider.tpm is None:
            yield
            return
        key = limit_key(provider.name)
        tokens = prompt.tokens + round(OUTPUT_SHARE * max_output_tokens)
        limits = ["" if limit is None else limit for limit in (provider.rpm, provider.tpm)]
        second, reserved = await self._place(key, [*limits, tokens])
        try:
            yield
        finally:
            await settled(self._settle(keys=[key], args=[second, tally.used_tokens, reserved]))

    async def _place(self, key: str, args: list[str | int]) -> tuple[int, int]:
        """Reserve; return the second and the tokens that are counted."""
        patient_until = time.monotonic() + HOLD_SECONDS
        while True:
            milliseconds, second, reserved = await self._reserve(keys=[key], args=args)
            if not milliseconds:
                return second, reserved
            wait = milliseconds / 1000
            if time.monotonic() + wait > patient_until:
                raise NotAskedError(
                    "limited", f"the next request may be sent in {wait:.0f} s", retry_after=wait
                )
            await asyncio.sleep(wait)
