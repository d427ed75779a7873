"""Sandboxes prepared ahead: each is used once and thrown away, and replaced when its run is over."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

log = structlog.get_logger(__name__)


class Box(Protocol):
    """A sandbox as a pool sees it."""

    @property
    def running(self) -> bool:
        """Whether it can still be used."""

    def destroy(self) -> None:
        """Remove every trace of it."""


K = TypeVar("K", bound="Hashable")
B = TypeVar("B", bound=Box)


class Pool(Generic[K, B]):
    """A few sandboxes of one process, for the environments that were used last."""

    def __init__(self, size: int, make: Callable[[K], B]) -> None:
        self._size = size
        self._make = make
        self._ready: OrderedDict[K, deque[B]] = OrderedDict()
        self._lock = threading.Lock()
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="ptc-pool")

    def take(self, key: K) -> B | None:
        """Hand out a prepared sandbox, None if there is none."""
        while True:
            with self._lock:
                boxes = self._ready.get(key)
                if not boxes:
                    return None
                box = boxes.popleft()
            if box.running:
                return box
            box.destroy()

    def prepare(self, key: K, number: int = 1) -> None:
        """Prepare so many sandboxes beside other work; those of environments not used lately make room."""
        with suppress(RuntimeError):  # the pool is closed, and the process about to end
            for _ in range(min(number, self._size)):
                self._preparing.submit(self._prepare, key)

    def wait(self) -> None:
        """Wait until all that was asked for is prepared."""
        self._preparing.submit(lambda: None).result()

    def close(self) -> None:
        """Prepare nothing more, and destroy what is prepared."""
        self._preparing.shutdown(cancel_futures=True)
        self.clear()

    def clear(self) -> None:
        """Destroy what is prepared."""
        with self._lock:
            boxes = [box for queue in self._ready.values() for box in queue]
            self._ready.clear()
        for box in boxes:
            box.destroy()

    def _prepare(self, key: K) -> None:
        if self._is_full_of(key):
            return
        try:
            box = self._make(key)
        except Exception as error:  # noqa: BLE001 whatever it is, the run that wants one will tell
            log.warning("sandbox_not_prepared", error=str(error))
            return
        with self._lock:
            self._ready.setdefault(key, deque()).append(box)
            self._ready.move_to_end(key)
            surplus = self._surplus()
        for old in surplus:
            old.destroy()

    def _is_full_of(self, key: K) -> bool:
        with self._lock:
            return sum(box.running for box in self._ready.get(key, ())) >= self._size

    def _surplus(self) -> list[B]:
        """Take out what is more than was asked for, of the environment that was used longest ago."""
        surplus = []
        while sum(map(len, self._ready.values())) > self._size:
            oldest, boxes = next(iter(self._ready.items()))
            if boxes:
                surplus.append(boxes.popleft())
            if not boxes:
                del self._ready[oldest]
        return surplus
