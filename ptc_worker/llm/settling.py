"""Telling Redis what became of a call, without ever losing the call's answer over it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Awaitable

log = structlog.get_logger(__name__)

_PATIENCE_SECONDS = 1.0
"""A halted call has five seconds to end; several things may be settled in them."""


async def settled(telling: Awaitable[object]) -> None:
    """Tell it, or log that nobody could be told: an answer that is paid for counts more."""
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await telling
    except (RedisError, TimeoutError) as error:
        log.warning("call_not_settled", error=type(error).__name__)
