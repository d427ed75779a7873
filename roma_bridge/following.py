"""Follows what a run tells, from its start to its end, through outages and from where one left off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing, contextmanager
from math import inf
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from ptc_contracts import PTCError, RunNotFinishedError, ServerUnavailableError
from ptc_contracts.events import ENDS, StreamMessage, ended_message, hit_messages
from ptc_contracts.keys import events_key
from ptc_contracts.run import RunState
from roma_bridge.reaching import (
    AWAY,
    RETRY_PAUSE,
    cancellable,
    deadline_after,
    left_until,
    patience_within,
    unavailable,
)

if TYPE_CHECKING:
    from roma_bridge.handle import PlanHandle

SLICE_SECONDS = 2.0
"""How long is listened before the record is looked at: a run may end with nobody there to tell."""

_PAGE = 500
_FETCH_SECONDS = 30.0


class Events(Iterator[StreamMessage], AsyncIterator[StreamMessage]):
    """The messages of a run, for one consumer: `for`, `next`, `async for` or `anext`. Whoever stops half-way may go on.

    Whoever comes late gets what was told before, then follows; whoever comes back names the last message that it has.
    It ends after the message that tells of the run's end. Asked again after an error, it goes on. It may raise:

        RunNotFoundError: there is no such run, or no longer.
        RunNotFinishedError: the time, which begins with the first message that is asked for, is over; the run goes on.
        ServerUnavailableError: the time is over, and Redis cannot be reached.
        RuntimeError: somebody else waits for a message of the same object.
    """

    def __init__(self, handle: PlanHandle, after: str | None = None, timeout: float | None = None) -> None:
        self._handle = handle
        self._after = after
        self._timeout = timeout
        self._over = False
        self._taken = Lock()
        self._heard: Iterator[StreamMessage] | None = None
        self._awaited: AsyncIterator[StreamMessage] | None = None

    def __next__(self) -> StreamMessage:
        """Give the next message; block while nothing comes."""
        with self._alone():
            if self._over:
                raise StopIteration
            self._awaited = None
            self._heard = self._heard or self._hear()
            try:
                message = next(self._heard)
            except BaseException:
                self._heard = None
                raise
            self._after = message.id
            return message

    async def __anext__(self) -> StreamMessage:
        """Give the next message without blocking the loop."""
        with self._alone():
            while not self._over:
                self._heard = None
                self._awaited = self._awaited or self._await()
                try:
                    message = await anext(self._awaited)
                except StopAsyncIteration:
                    self._awaited = None  # the run has ended, or the loop that was used before
                except BaseException:
                    self._awaited = None
                    raise
                else:
                    self._after = message.id
                    return message
            raise StopAsyncIteration

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep everybody else away while somebody waits for a message.

        Raises:
            RuntimeError: somebody does already.
        """
        if not self._taken.acquire(blocking=False):
            raise RuntimeError("these events are somebody else's: call events() once for each consumer")
        try:
            yield
        finally:
            self._taken.release()

    def _hear(self) -> Iterator[StreamMessage]:
        if self._handle.from_cache:
            yield from self._left_of_hit()
            self._over = True
            return
        reader = _Reader(self._handle, self._after, self._timeout)
        with closing(Redis.from_url(self._handle.ptc.settings.url, **self._options(Retry))) as redis:
            while not reader.ended:
                try:
                    answer = redis.xread(**reader.question())
                    messages = reader.take(answer) or reader.looked()
                except Exception as error:  # noqa: BLE001 the reader raises it again unless it will pass
                    time.sleep(reader.pause_after(error))
                else:
                    yield from messages
        self._over = True

    async def _await(self) -> AsyncIterator[StreamMessage]:
        if self._handle.from_cache:
            for message in self._left_of_hit():
                yield message
            self._over = True
            return
        reader = _Reader(self._handle, self._after, self._timeout)
        async with AsyncRedis.from_url(self._handle.ptc.settings.url, **self._options(AsyncRetry)) as redis:
            while not reader.ended:
                try:
                    answer = await cancellable(redis.xread(**reader.question()))
                    messages = reader.take(answer) or await asyncio.to_thread(reader.looked)
                except Exception as error:  # noqa: BLE001 the reader raises it again unless it will pass
                    await asyncio.sleep(reader.pause_after(error))
                else:
                    for message in messages:
                        yield message
        self._over = True

    def _left_of_hit(self) -> Sequence[StreamMessage]:
        """Give the messages of a plan that the cache answered, but for those that the caller has."""
        messages = hit_messages(self._handle.get())
        ids = [message.id for message in messages]
        return messages[ids.index(self._after) + 1 :] if self._after in ids else messages

    def _options(self, retry: type[Retry | AsyncRetry]) -> dict[str, Any]:
        """Let a server that stands still hold nobody up for longer than was given."""
        patience = patience_within(inf if self._timeout is None else self._timeout)
        return {
            "socket_timeout": SLICE_SECONDS + patience,
            "socket_connect_timeout": patience,
            "retry": retry(NoBackoff(), 0),
        }


class _Reader:
    """Where somebody is in the messages of a run, and what to ask next."""

    def __init__(self, handle: PlanHandle, after: str | None, timeout: float | None) -> None:
        self.ended = False
        """Whether there is nothing more to come."""
        self._handle = handle
        self._place = "0-0"
        self._has = after
        self._after = after
        self._before: list[StreamMessage] = []
        self._deadline = deadline_after(timeout)
        self._caught_up = False
        self._over = False

    def question(self) -> dict[str, Any]:
        """Give the arguments of the next XREAD: it waits once all that was told before is read.

        Raises:
            RunNotFinishedError: the time is over.
        """
        asked = {"streams": {events_key(self._handle.run_id): self._place}, "count": _PAGE}
        if not self._caught_up or self._over:
            return asked
        left = left_until(self._deadline)
        if left <= 0:
            raise RunNotFinishedError(
                f"run {self._handle.run_id} has not ended in the time given; it goes on"
            )
        return {**asked, "block": max(1, round(1000 * min(SLICE_SECONDS, left)))}

    def take(self, answer: Any) -> list[StreamMessage]:  # noqa: ANN401 redis-py types it for two protocols
        """Read what came; nothing if nothing did, or if the caller has all of it."""
        entries = _entries(answer)
        self._caught_up = not entries
        if not entries:
            return self._unless_resumed()
        self._place = entries[-1][0].decode()
        messages = [message for _, fields in entries if (message := self._read(fields))]
        self.ended = any(message.event_type in ENDS for message in messages)
        return messages if self._after is None else self._resumed(messages)

    def looked(self) -> list[StreamMessage]:
        """Look at the record, where nothing more came: end a run that nobody else ends, and tell of an end that was not told.

        Raises:
            RunNotFoundError: the record is gone.
        """
        if not self._caught_up or self.ended:
            return []
        if self._over:  # it had ended, and what it told was read after that
            end = ended_message(self._handle.get(timeout=_FETCH_SECONDS))
            self.ended = True
            return [] if end.id == self._has else [end]
        self._handle.end_if_over()
        self._over = self._handle.status().state is RunState.ENDED
        return []

    def pause_after(self, error: Exception) -> float:
        """Tell how long to wait after an error that will pass, and raise any other.

        Raises:
            ServerUnavailableError: it has not passed in the time given.
        """
        passing = isinstance(error, ServerUnavailableError) or (
            isinstance(error, AWAY) and not isinstance(error, PTCError)
        )
        if not passing:
            raise error
        if left_until(self._deadline) <= RETRY_PAUSE:
            raise unavailable(self._handle.ptc.settings, error) from error
        return RETRY_PAUSE

    def _resumed(self, messages: list[StreamMessage]) -> list[StreamMessage]:
        """Leave out what the caller has; what that is shows when the last message that it has is met."""
        places = [place for place, message in enumerate(messages) if message.id == self._after]
        if not places:
            self._before += messages
            return self._unless_resumed() if self.ended else []
        self._after, self._before = None, []
        return messages[places[0] + 1 :]

    def _unless_resumed(self) -> list[StreamMessage]:
        """Tell all again to a caller whose last message is not there any more."""
        messages, self._after, self._before = self._before, None, []
        return messages

    def _read(self, fields: dict[bytes, bytes]) -> StreamMessage | None:
        """Read a message as told to this caller; None for one of a kind that only newer peers know."""
        try:
            message = StreamMessage.model_validate_json(fields.get(b"m", b""))
        except ValidationError:
            return None
        return message.model_copy(update={"execution_id": self._handle.plan.execution_id})


def _entries(answer: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:  # noqa: ANN401 redis-py types it for two protocols
    """Take the places and fields out of an answer about one stream."""
    if isinstance(answer, dict):  # RESP3
        return [entry for pages in answer.values() for page in pages for entry in page]
    return [entry for _, entries in cast("list[Any]", answer or []) for entry in entries]
