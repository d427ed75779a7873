"""What a process has one of."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from ptc_worker.once import once


def test_threads_that_ask_at_once_get_the_same() -> None:
    """It is made once, although making it takes as long as it takes them all to ask."""
    together = threading.Barrier(8)
    made = []

    @once
    def thing(name: str) -> object:
        made.append(name)
        return object()

    def ask(_: int) -> object:
        together.wait()
        return thing("a")

    with ThreadPoolExecutor(8) as threads:
        got = set(threads.map(ask, range(8)))

    assert (len(got), made) == (1, ["a"])
    assert thing("b") not in got
