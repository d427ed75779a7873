"""What it means to a caller that Redis does not answer."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, TypeVar

from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ptc_contracts import PTCError, ServerUnavailableError
from roma_bridge.arguments import require_timeout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from ptc_contracts.settings import RedisSettings

T = TypeVar("T")

AWAY = (RedisConnectionError, RedisTimeoutError, OSError)
"""What a caller who can wait waits out."""

RETRY_PAUSE = 0.5
"""Seconds between two tries to reach a server that is away."""

_PATIENCE = (2.0, 1.0, 0.5, 0.25)


def patience_within(seconds: float) -> float:
    """Tell how long a server may take to answer a caller who has so many seconds left."""
    return next((p for p in _PATIENCE if p <= seconds), _PATIENCE[-1])


def deadline_after(seconds: float | None) -> float:
    """Tell when so many seconds are over, by `time.monotonic()`; never if None.

    Raises:
        ConfigurationError: it is no number of seconds.
    """
    require_timeout(seconds)
    return inf if seconds is None else time.monotonic() + seconds


def left_until(deadline: float) -> float:
    """Tell the seconds until then; negative past it."""
    return deadline - time.monotonic()


async def cancellable(asked: Awaitable[T]) -> T:
    """Await what redis-py does, and be cancelled if this task is.

    redis-py sends with `asyncio.wait_for`, which before Python 3.12 swallows a cancellation that comes just as what it
    waits for is done (https://github.com/python/cpython/issues/86296).
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    answer = await asked
    if task and task.cancelling() > before:
        raise asyncio.CancelledError
    return answer


@contextmanager
def reaching(settings: RedisSettings) -> Iterator[None]:
    """Say in our words what goes wrong with a server.

    Raises:
        ServerUnavailableError: it cannot be reached, or refuses.
    """
    try:
        yield
    except PTCError:  # some of ours are OSErrors, too
        raise
    except (RedisError, *AWAY) as error:
        raise unavailable(settings, error) from error


def unavailable(settings: RedisSettings, error: Exception) -> ServerUnavailableError:
    """Say what is wrong with a server, and what to do."""
    if isinstance(error, AuthenticationError):
        return ServerUnavailableError(
            f"Redis at {settings.shown} wants another password ({error}): set REDIS_PASSWORD, or REDIS_URL"
        )
    if isinstance(error, ResponseError):
        return ServerUnavailableError(f"Redis at {settings.shown} refuses: {error}")
    return ServerUnavailableError(
        f"Redis at {settings.shown} cannot be reached ({type(error).__name__}): start it, or set REDIS_URL"
    )
