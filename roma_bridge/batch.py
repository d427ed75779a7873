"""Follows many submitted plans at once, and gives their results as they come."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ptc_contracts import PTCError, RunNotFinishedError, ServerUnavailableError
from roma_bridge.listening import SLICE_SECONDS
from roma_bridge.reaching import AWAY, RETRY_PAUSE, deadline_after, left_until, unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from ptc_contracts import PTCArtifactResult
    from ptc_contracts.runs import RunStore
    from roma_bridge.handle import PlanHandle

    Ended = tuple[PlanHandle, PTCArtifactResult]


@dataclass
class Batch:
    """Plans that were submitted together: iterate over it, also with `async for`, for a handle and its result at a time.

    A plan that failed has a result as any other. What cannot be read, such as the result of a run whose record has
    expired, is raised when all others were given; so is what kept plans from being submitted.

    Raises:
        RunNotFinishedError: `timeout` seconds after the iteration began some had not ended; they go on.
        RunNotFoundError, UnreadableBlobError: as `PlanHandle.get` does.
        ServerUnavailableError: Redis cannot be reached, and the time is over; or it could not be reached any more
            while plans were submitted.
    """

    handles: list[PlanHandle] = field(default_factory=list)
    """Those that were submitted, in the order in which they were given."""
    timeout: float | None = None
    """Seconds that an iteration may take."""
    interrupted: ServerUnavailableError | None = None
    """What kept the other plans from being submitted."""

    def __len__(self) -> int:
        return len(self.handles)

    def __iter__(self) -> Iterator[Ended]:
        """Give handles and results, over one connection that listens for all of them."""
        following = _Following(self.handles, deadline_after(self.timeout))
        yield from following.results()
        _raise_first(self.interrupted, following.error)

    async def __aiter__(self) -> AsyncIterator[Ended]:
        """Do the same on an event loop."""
        waits = {asyncio.ensure_future(handle.get_async(self.timeout)): handle for handle in self.handles}
        pending, failed = set(waits), None
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for wait in done:
                    if isinstance(error := wait.exception(), PTCError):
                        failed = failed or error
                    else:
                        yield waits[wait], wait.result()
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        _raise_first(self.interrupted, failed)


def _raise_first(*errors: PTCError | None) -> None:
    for error in filter(None, errors):
        raise error


class _Following:
    """Handles whose results have yet to come."""

    def __init__(self, handles: list[PlanHandle], deadline: float) -> None:
        self.error: PTCError | None = None
        """The first of what could not be read."""
        self._deadline = deadline
        self._waiting: dict[str, list[PlanHandle]] = {}
        for handle in handles:
            self._waiting.setdefault(handle.run_id, []).append(handle)

    def results(self) -> Iterator[Ended]:
        """Give them as they come, through outages of Redis."""
        yield from ((handle, handle.get()) for handle in self._waiting.pop("", []))  # the cache has answered
        while self._waiting:
            ptc = next(iter(self._waiting.values()))[0].ptc
            try:
                yield from self._heard(ptc.store_within(left_until(self._deadline)))
            except PTCError:
                raise
            except AWAY as error:
                if left_until(self._deadline) <= RETRY_PAUSE:
                    raise unavailable(ptc.settings, error) from error
                time.sleep(RETRY_PAUSE)

    def _heard(self, store: RunStore) -> Iterator[Ended]:
        """Listen for the ends of all runs; whatever is heard or missed, the records decide."""
        with store.announcements(*self._waiting) as next_end:
            settled = store.settled(self._waiting)
            while True:
                for run_id in settled:
                    yield from self._ended(run_id, store)
                if not self._waiting:
                    return
                left = max(0.0, left_until(self._deadline))
                heard = next_end(min(SLICE_SECONDS, left))
                settled = {heard} if heard in self._waiting else store.settled(self._waiting)
                if not settled and not left:
                    raise RunNotFinishedError(
                        f"{len(self._waiting)} runs have not ended in the time given, such as "
                        f"{next(iter(self._waiting))}; they go on"
                    )

    def _ended(self, run_id: str, store: RunStore) -> Iterator[Ended]:
        """Give what those get who wait for a run, unless it goes on."""
        while handles := self._waiting.get(run_id):
            result = None
            try:
                if (result := handles[0].result_in(store)) is None:
                    return
            except PTCError as error:
                self.error = self.error or error
            handle = handles.pop(0)
            if not handles:
                del self._waiting[run_id]
            if result:
                yield handle, result
