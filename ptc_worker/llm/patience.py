"""How long one provider is waited for: its silence, the times it is asked, and the waits in between."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ptc_worker.llm.errors import TransientError
from ptc_worker.llm.limits import HOLD_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from ptc_worker.llm.errors import ModelError
    from ptc_worker.llm.protocol import Reply, Tally

ATTEMPTS = 4
"""Times one provider is asked before the next one is."""

DEAR_ATTEMPTS = 2
"""The same after failures that take long or cost much: a silent stream, an empty answer."""

LONGEST_WAIT = 30.0
"""Seconds we wait at most when a provider asks us to; beyond, the fallback is asked at once."""

COME_BACK_SECONDS = 5.0
"""After which a run comes back for a provider that failed in passing as often as it was asked."""

_DEAR = {"timeout", "empty"}
_FIRST_WAIT, _LONGEST_BACKOFF = 0.5, 8.0
_SHORTEST_SILENCE, _LONGEST_SILENCE = 10.0, 120.0


@dataclass
class Patience:
    """What is granted to one provider for one answer."""

    deadline: float
    """`time.monotonic()` at which everything stops."""
    last: bool
    """Whether nobody else can be asked after it."""
    failures: Counter[str] = field(default_factory=Counter)
    """How often it failed, by kind."""

    @property
    def silence(self) -> float | None:
        """Seconds a stream may be silent; None, which is up to the deadline, where there is nobody else to ask."""
        if self.last:
            return None
        return max(_SHORTEST_SILENCE, min(_LONGEST_SILENCE, self._time_left() / 3))

    def wait_after(self, error: Exception) -> float | bool:
        """Return the seconds to wait before the same provider is asked again, False if it is not."""
        if not isinstance(error, TransientError):
            return False
        self.failures[error.kind] += 1
        if error.kind in _DEAR and self.failures[error.kind] >= DEAR_ATTEMPTS:
            return False
        if error.retry_after is None:
            wait = self._backoff()
            return wait if wait < self._time_left() else False
        longest = HOLD_SECONDS if self.last else LONGEST_WAIT
        return error.retry_after if error.retry_after <= min(longest, self._time_left()) else False

    def _backoff(self) -> float:
        """Wait longer each time, and each worker differently."""
        wait = min(_LONGEST_BACKOFF, _FIRST_WAIT * 2.0 ** (self.failures.total() - 1))
        return wait + random.uniform(0, _FIRST_WAIT)  # noqa: S311 no secret

    def _time_left(self) -> float:
        return self.deadline - time.monotonic()


def worth_coming_back(error: ModelError) -> float | None:
    """Return after how many seconds a provider that was given up for now may well answer; None if it will not."""
    if error.retry_after is not None:
        return max(HOLD_SECONDS, error.retry_after)
    passing = isinstance(error, TransientError) and error.kind not in _DEAR
    return COME_BACK_SECONDS if passing else None


async def unless_silent(reply: Awaitable[Reply], tally: Tally, seconds: float | None) -> Reply:
    """Await a reply for as long as text or thoughts keep coming; keep-alives do not count.

    Raises:
        TransientError: nothing came for so many seconds.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds) as patience:
            if seconds is not None:
                tally.heard = lambda: patience.reschedule(loop.time() + seconds)
            return await reply
    except TimeoutError:
        raise TransientError("timeout", f"nothing came for {seconds:.0f} s") from None
