"""What all workers share about models, through Redis: breakers, limits, the day's spending, and responses."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from ptc_worker.llm.breaker import Breaker
from ptc_worker.llm.limits import Limits
from ptc_worker.llm.responses import Responses
from ptc_worker.llm.spending import Spending

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ptc_contracts.blobs import Blobs
    from ptc_contracts.settings import RedisSettings
    from ptc_worker.llm.budget import Offer
    from ptc_worker.llm.protocol import Prompt, Provider, Tally

_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Shared:
    """One for each process, used on its one asyncio loop alone (`loop.py`)."""

    redis: Redis
    breaker: Breaker
    limits: Limits
    spending: Spending
    responses: Responses

    @classmethod
    def connect(cls, settings: RedisSettings, blobs: Blobs, response_ttl: int) -> Self:
        """Open it; nothing is sent before it is first used. `response_ttl`: seconds that responses are kept."""
        redis = Redis.from_url(
            settings.url,
            socket_timeout=_PATIENCE_SECONDS,
            socket_connect_timeout=_PATIENCE_SECONDS,
            health_check_interval=30,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 3, supported_errors=(RedisConnectionError,)),
        )
        return cls(
            redis, Breaker(redis), Limits(redis), Spending(redis), Responses(redis, blobs, response_ttl)
        )

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose()

    @asynccontextmanager
    async def admitting(
        self,
        provider: Provider,
        prompt: Prompt,
        offer: Offer,
        *,
        day_limit: float | None,
        owner: str,
        seconds: float,
        tally: Tally,
        paid: Callable[[], float],
    ) -> AsyncIterator[Offer]:
        """Let a call through where breaker, day and limits allow it, and note afterwards what it used.

        The call may take so many seconds, and its owner makes no other one meanwhile. Yields the offer, bounded by what is left of the day.

        Raises:
            NotAskedError: one of them does not allow it.
        """
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.breaker.watching(provider))
            if day_limit is not None:
                reserving = self.spending.reserving(offer, day_limit, owner, seconds, paid)
                offer = await stack.enter_async_context(reserving)
            counting = self.limits.counting(provider, prompt, offer.max_output_tokens, tally)
            await stack.enter_async_context(counting)
            yield offer
