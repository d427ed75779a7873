"""Goes on as soon as Redis can be reached again."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import stamina
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ptc_worker.app import leases

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_PATIENCE_SECONDS = 600.0
"""How long a worker waits for Redis with what it has done; a server that is away that long has bigger troubles."""

_PASSING = (RedisConnectionError, RedisTimeoutError, OutOfMemoryError, ReadOnlyError)
"""What a server answers that is away, full or about to change its role."""


def through_outages(act: Callable[[], T]) -> T:
    """Do it as soon as Redis can be reached: what was worked or paid for is not given up for a moment's sake."""
    for attempt in stamina.retry_context(
        on=lambda error: isinstance(error, _PASSING) and not leases().ending,
        attempts=None,
        timeout=_PATIENCE_SECONDS,
        wait_initial=0.02,
        wait_max=0.2,  # a worker that dies with a paid answer in its hand takes it along
    ):
        with attempt:
            return act()
    raise AssertionError("stamina either returns or raises")  # pragma: no cover
