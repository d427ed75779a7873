"""Sandboxes on this machine."""

from __future__ import annotations

import atexit
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from ptc_worker.environments import environment, hold, sweep
from ptc_worker.halt import Halt
from ptc_worker.once import once
from ptc_worker.sandbox import cgroups, leftovers
from ptc_worker.sandbox.local import LocalSandbox
from ptc_worker.sandbox.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from ptc_worker.environments import Addition
    from ptc_worker.sandbox.protocol import Purpose
    from ptc_worker.settings import WorkerSettings

_TRIAL_SECONDS = 20.0
_INSTALL_SECONDS = 120.0


@once
def kind_for(settings: WorkerSettings) -> LocalKind:
    """Return this process's sandboxes for these settings."""
    return LocalKind(settings)


class LocalKind:
    """The sandboxes that this process has."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings

    @contextmanager
    def equipped(
        self,
        requirements: Sequence[str],
        timeout: float,
        halt: Halt,
        addition: Addition | None,
        _: Purpose,
    ) -> Iterator[Callable[[], AbstractContextManager[LocalSandbox]]]:
        """Build the environment, if need be, and hold it; see `ptc_worker.environments.environment`."""
        with environment(self._settings, requirements, timeout, halt, addition) as folder:
            yield lambda: opened(self._settings, folder)

    def prepared(self, _: Purpose) -> str:
        """Build the base environment, remove what dead workers left, fill the pool; return what isolates programs here."""
        with environment(self._settings, (), _INSTALL_SECONDS, Halt()) as folder:
            sweep(self._settings)
            leftovers.sweep()
            cgroups.sweep()
            with LocalSandbox(self._settings, folder) as box:
                box.exec(["/bin/sh", "-c", ":"], env={}, cwd=".", timeout=_TRIAL_SECONDS)
            pool_for(self._settings).prepare(folder, self._settings.sandboxes_ahead)
            return box.isolation

    def reaped(self, _: Purpose, _alive: Callable[[Collection[str]], Collection[str]]) -> int:
        """Find nothing: sandboxes of this machine end with their workers, and the next start sweeps the rest."""
        return 0


@contextmanager
def opened(settings: WorkerSettings, folder: Path) -> Iterator[LocalSandbox]:
    """Give a sandbox for the environment in a folder, a prepared one if there is one; then prepare another.

    Raises:
        SandboxError: it cannot be had.
    """
    pool = pool_for(settings)
    box = pool.take(folder) or LocalSandbox(settings, folder)
    try:
        box.start()
        yield box
    finally:
        box.destroy()
        pool.prepare(folder)


@once
def pool_for(settings: WorkerSettings) -> Pool[Path, LocalSandbox]:
    """Return this process's pool for these settings."""
    pool = Pool(settings.sandboxes_ahead, partial(_made, settings))
    atexit.register(pool.close)
    return pool


def _made(settings: WorkerSettings, folder: Path) -> LocalSandbox:
    box = LocalSandbox(settings, folder)
    try:
        box.keep(hold(folder))
        box.start()
    except BaseException:
        box.destroy()
        raise
    return box
