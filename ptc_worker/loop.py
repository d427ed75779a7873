"""The one asyncio loop of this process, on which all calls of others' services run, whichever thread makes them."""

from __future__ import annotations

import asyncio
import os
import threading
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from ptc_worker.halt import HaltedError

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from concurrent.futures import Future

    from ptc_worker.halt import Halt

log = structlog.get_logger(__name__)

T = TypeVar("T")

_END_SECONDS = 5.0
"""Time an abandoned call has to close its connection, and a model's to bill itself."""


@cache
def _loop(_pid: int) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="ptc-calls", daemon=True).start()
    return loop


_starting = threading.Lock()


def run_async(coroutine: Coroutine[Any, Any, T], halt: Halt) -> T:
    """Run a coroutine on the shared loop and wait for it; a halt, or an interrupt of the caller, cancels it.

    When this raises, the coroutine has ended, its `finally` blocks included, unless those take longer than
    five seconds. One that ends well in spite of a halt is not wasted: what it returns is paid for.

    Raises:
        HaltedError: the work must stop.
    """
    try:
        halt.check()
    except HaltedError:
        coroutine.close()
        raise
    loop = _running()
    ended, woken = threading.Event(), threading.Event()
    task = asyncio.run_coroutine_threadsafe(_begun(coroutine, ended, woken), loop).result()
    try:
        with halt.calling(woken.set):
            woken.wait()
    except BaseException:
        loop.call_soon_threadsafe(task.cancel)
        if not ended.wait(_END_SECONDS):
            log.warning("call_does_not_end")
        elif not task.cancelled() and task.exception() is None:
            return task.result()
        raise
    return task.result()


def begin_async(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Run a coroutine on the shared loop beside other work."""
    return asyncio.run_coroutine_threadsafe(coroutine, _running())


def _running() -> asyncio.AbstractEventLoop:
    with _starting:
        return _loop(os.getpid())  # a forked child has no thread that runs its parent's loop


async def _begun(
    coroutine: Coroutine[Any, Any, T], ended: threading.Event, woken: threading.Event
) -> asyncio.Task[T]:
    """Start a task that tells when it has ended."""

    def tell(task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # asyncio complains about one that nobody looks at
        ended.set()
        woken.set()

    task = asyncio.create_task(coroutine)
    task.add_done_callback(tell)
    return task
