"""Hears the ends of runs for all who wait on one event loop, over connections that they share."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from math import isinf
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from ptc_contracts.keys import ended_channel
from ptc_contracts.runs import ask_whether_settled, read_settled
from roma_bridge.reaching import AWAY, cancellable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from ptc_contracts.settings import RedisSettings

SLICE_SECONDS = 2.0
"""How long is listened before records are looked at: an announcement can be lost, a record cannot."""

_CONNECTIONS = 4
_PATIENCE = 2.0

_listeners: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[RedisSettings, Listener]] = WeakKeyDictionary()
_closing: set[asyncio.Task[None]] = set()
"""Listeners that nobody needs any more; a task that nothing holds may be forgotten half-way."""


@asynccontextmanager
async def listening(settings: RedisSettings) -> AsyncIterator[Listener]:
    """Give the listener of this event loop, which lives as long as anybody is in such a block."""
    here = _listeners.setdefault(asyncio.get_running_loop(), {})
    listener = here.get(settings)
    if listener is None or listener.lost:
        listener = here[settings] = Listener.connect(settings)
    listener.users += 1
    try:
        yield listener
    finally:
        listener.users -= 1
        if not listener.users:
            if here.get(settings) is listener:
                del here[settings]
            closing = asyncio.ensure_future(listener.close())
            _closing.add(closing)
            closing.add_done_callback(_closing.discard)
            await asyncio.shield(closing)  # whoever is cancelled here leaves nothing open


@dataclass(eq=False)
class _Awaited:
    """A run that is waited for."""

    run_id: str
    asked: bool = False
    """Whether the server was asked to tell of its end."""
    subscribed: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: set[asyncio.Event] = field(default_factory=set)

    def wake(self) -> None:
        """Let everybody look at it."""
        for event in (self.subscribed, *self.waiting):
            event.set()


@dataclass(eq=False)
class Listener:
    """One connection that listens, and a few that look."""

    redis: Redis = field(repr=False)
    users: int = 0
    lost: Exception | None = None
    """Why nothing is heard any more; whoever comes next gets another listener."""
    _runs: dict[bytes, _Awaited] = field(default_factory=dict)
    """By their channels."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._pubsub = self.redis.pubsub()
        self._start(self._keep)

    @classmethod
    def connect(cls, settings: RedisSettings) -> Listener:
        """Make one; nothing is sent before somebody waits for a run."""
        pool = BlockingConnectionPool.from_url(
            settings.url,
            max_connections=_CONNECTIONS,
            timeout=_PATIENCE,
            socket_timeout=_PATIENCE,
            socket_connect_timeout=_PATIENCE,
            retry=Retry(NoBackoff(), 1),
        )
        return cls(Redis.from_pool(pool))

    async def close(self) -> None:
        """Stop, and close all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        await self.redis.aclose()

    @asynccontextmanager
    async def announcements(self, run_id: str) -> AsyncIterator[Callable[[float], Awaitable[None]]]:
        """Listen for a run's end: the block gets a function that waits until it may have come, at most so many seconds.

        What ended before the block began is not announced again; the record tells.
        """
        run = self._runs.setdefault(ended_channel(run_id).encode(), _Awaited(run_id))
        heard = asyncio.Event()
        run.waiting.add(heard)
        self._changed.set()

        async def wait(seconds: float) -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(None if isinf(seconds) else seconds):
                    await heard.wait()
            heard.clear()
            self._check()

        try:
            async with asyncio.timeout(_PATIENCE):
                await run.subscribed.wait()
            self._check()
            yield wait
        finally:
            run.waiting.discard(heard)
            self._changed.set()

    def _check(self) -> None:
        if isinstance(self.lost, AWAY):
            raise RedisConnectionError(str(self.lost)) from self.lost
        if self.lost:
            raise self.lost

    def _start(self, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.ensure_future(self._guarded(work)))

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do some work, and tell everybody who waits when it fails."""
        try:
            await work()
        except Exception as error:  # noqa: BLE001 whatever it is, those who wait have to hear of it
            self.lost = error
            for run in self._runs.values():
                run.wake()

    async def _keep(self) -> None:
        """Subscribe to what is waited for, and look at it now and then."""
        loop = asyncio.get_running_loop()
        look_at = loop.time() + SLICE_SECONDS
        while True:
            await self._subscribe()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(look_at):
                    await self._changed.wait()
            if loop.time() >= look_at:
                await self._look()
                look_at = loop.time() + SLICE_SECONDS

    async def _subscribe(self) -> None:
        """Tell the server what is waited for that was not, and what is no more."""
        self._changed.clear()
        new = [channel for channel, run in self._runs.items() if run.waiting and not run.asked]
        old = [channel for channel, run in self._runs.items() if not run.waiting]
        for channel in old:
            del self._runs[channel]
        if old:
            await cancellable(self._pubsub.unsubscribe(*old))
        if new:
            for channel in new:
                self._runs[channel].asked = True
            await cancellable(self._pubsub.subscribe(*new))
            if len(self._tasks) == 1:
                self._start(self._hear)

    async def _look(self) -> None:
        """Wake those whose runs need not be waited for."""
        runs = {run.run_id: run for run in self._runs.values()}
        pipe = self.redis.pipeline(transaction=False)
        ask_whether_settled(pipe, runs)
        for run_id in read_settled(runs, await cancellable(pipe.execute())):
            runs[run_id].wake()

    async def _hear(self) -> None:
        """Wake those whose runs have ended, or are listened to from now on."""
        while True:
            message = await cancellable(self._pubsub.get_message(timeout=SLICE_SECONDS))
            run = self._runs.get(message["channel"]) if message else None
            if run and message["type"] == "message":
                run.wake()
            elif run and message["type"] == "subscribe":
                run.subscribed.set()
