"""The one asyncio loop of this process, on which all model calls of all its threads run."""

from __future__ import annotations

import asyncio
import threading
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


@cache
def _loop(_pid: int) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="ptc-model-calls", daemon=True).start()
    return loop


_starting = threading.Lock()


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the shared loop and wait for it; an interrupt of the caller cancels it."""
    import os

    with _starting:
        loop = _loop(os.getpid())  # a forked child has no thread that runs its parent's loop
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
