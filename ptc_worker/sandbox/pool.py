"""Sandboxes prepared ahead, pytest loaded: each is used once and thrown away, and replaced when its run is over."""

from __future__ import annotations

import atexit
import threading
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import structlog

from ptc_worker.environments import CacheDirError, hold
from ptc_worker.once import once
from ptc_worker.sandbox import cgroups, leftovers
from ptc_worker.sandbox.local import LocalSandbox
from ptc_worker.sandbox.protocol import SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ptc_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

_TRIAL_SECONDS = 20.0


class Pool:
    """A few sandboxes of one process, for the environments that were used last."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._ready: OrderedDict[Path, deque[LocalSandbox]] = OrderedDict()
        self._lock = threading.Lock()
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="ptc-pool")

    def take(self, environment: Path) -> LocalSandbox | None:
        """Hand out a prepared sandbox, None if there is none."""
        while True:
            with self._lock:
                boxes = self._ready.get(environment)
                if not boxes:
                    return None
                box = boxes.popleft()
            if box.running:
                return box
            box.destroy()

    def prepare(self, environment: Path, number: int = 1) -> None:
        """Prepare so many sandboxes beside other work; those of environments not used lately make room."""
        with suppress(RuntimeError):  # the pool is closed, and the process about to end
            for _ in range(min(number, self._settings.ptc_sandbox_pool)):
                self._preparing.submit(self._prepare, environment)

    def wait(self) -> None:
        """Wait until all that was asked for is prepared."""
        self._preparing.submit(lambda: None).result()

    def close(self) -> None:
        """Prepare nothing more, and destroy what is prepared."""
        self._preparing.shutdown(cancel_futures=True)
        with self._lock:
            boxes = [box for queue in self._ready.values() for box in queue]
            self._ready.clear()
        for box in boxes:
            box.destroy()

    def _prepare(self, environment: Path) -> None:
        box = LocalSandbox(self._settings, environment)
        try:
            box.keep(hold(environment))
            box.start()
        except (SandboxError, CacheDirError, OSError) as error:
            log.warning("sandbox_not_prepared", error=str(error))
            box.destroy()
            return
        with self._lock:
            self._ready.setdefault(environment, deque()).append(box)
            self._ready.move_to_end(environment)
            surplus = self._surplus()
        for old in surplus:
            old.destroy()

    def _surplus(self) -> list[LocalSandbox]:
        """Take out what is more than the settings ask for, of the environment that was used longest ago."""
        surplus = []
        while sum(map(len, self._ready.values())) > self._settings.ptc_sandbox_pool:
            oldest, boxes = next(iter(self._ready.items()))
            if boxes:
                surplus.append(boxes.popleft())
            if not boxes:
                del self._ready[oldest]
        return surplus


@once
def pool_for(settings: WorkerSettings) -> Pool:
    """Return this process's pool for these settings."""
    pool = Pool(settings)
    atexit.register(pool.close)
    return pool


@contextmanager
def opened(settings: WorkerSettings, environment: Path) -> Iterator[LocalSandbox]:
    """Give a sandbox, a prepared one if there is one; another is prepared once it is used up.

    Raises:
        SandboxError: it cannot be had.
    """
    pool = pool_for(settings)
    box = pool.take(environment) or LocalSandbox(settings, environment)
    try:
        box.start()
        yield box
    finally:
        box.destroy()
        pool.prepare(environment)


def prepared(settings: WorkerSettings, environment: Path) -> str:
    """Remove what dead workers left, and fill the pool; return what isolates programs here.

    Raises:
        SandboxError: nothing does, or it cannot be had.
    """
    leftovers.sweep()
    cgroups.sweep()
    with LocalSandbox(settings, environment) as box:
        box.exec(["/bin/sh", "-c", ":"], env={}, cwd=".", timeout=_TRIAL_SECONDS)
    pool_for(settings).prepare(environment, settings.ptc_sandbox_pool)
    return box.isolation
