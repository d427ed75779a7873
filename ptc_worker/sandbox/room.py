"""How long a vendor that has no room is left alone: however many runs wait, one of them asks now and then."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import structlog

from ptc_worker.busy import BusyError
from ptc_worker.sandbox.machine import MOST_PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.get_logger(__name__)

_GROWTH = 1.5
_MOST_SECONDS = 30.0
"""Longest pause that grows by itself; a vendor may ask for more, up to `MOST_PATIENCE_SECONDS`."""

_ASKING_SECONDS = 3.0
"""How long the others wait for what the one is told that asks."""

_SPREAD = 1.3
_CHANCE = random.Random()  # noqa: S311 it only keeps those that wait from coming at once


class Room:
    """What this process knows of one vendor's room. It is used on the loop of `ptc_worker.loop` alone."""

    def __init__(self) -> None:
        self._pause = 0.0
        self._until = 0.0
        self._why = ""
        self._asking = False

    async def taken(self, make: Callable[[], Awaitable[None]]) -> None:
        """Have a machine made, unless it is known that there is no room.

        Raises:
            BusyError: there is none; as whatever else `make` raises.
        """
        if self._asking:
            raise self._refusal(_ASKING_SECONDS)
        if (left := self._until - time.monotonic()) > 0:
            raise self._refusal(left)
        again = self._asking = bool(self._why)
        try:
            await make()
        except BusyError as error:
            raise self._refused(error, again=again) from error
        finally:
            self._asking = self._asking and not again
        if self._why:
            log.info("sandboxes_to_be_had_again")
        self._why, self._pause, self._until = "", 0.0, 0.0

    def _refused(self, error: BusyError, *, again: bool) -> BusyError:
        grown = min(_MOST_SECONDS, _GROWTH * self._pause) if again else self._pause
        self._pause = min(MOST_PATIENCE_SECONDS, max(error.seconds, grown))
        self._until = time.monotonic() + self._pause
        if not self._why:
            log.warning("no_sandbox_to_be_had", reason=str(error), seconds=round(self._pause, 1))
        self._why = f"no sandbox can be had: {error}"
        return self._refusal(self._pause)

    def _refusal(self, seconds: float) -> BusyError:
        return BusyError(seconds * _CHANCE.uniform(1, _SPREAD), self._why)
