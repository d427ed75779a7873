"""The ways to have a sandbox, each with what it promises: a new kind is one line here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ptc_worker.sandbox import open_sandbox
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from ptc_worker.sandbox.protocol import Sandbox

MEMORY_MB, DISK_MB = 384, 64
"""What these sandboxes may hold: small, so that exhausting it is quick."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to have a sandbox, and what its documentation promises."""

    isolation: str
    """What keeps programs in, as the sandbox and every result name it."""
    pool: int
    """Sandboxes that are prepared ahead."""
    loopback: bool
    """Whether programs inside can talk to themselves over the network."""
    own_processes: bool
    """Whether programs inside are alone with their processes, so that signals to all reach no one else."""

    def __str__(self) -> str:
        """Name it as the summary does."""
        return f"{self.isolation}-{'pooled' if self.pool else 'cold'}"

    def settings(self, cache_dir: Path, **more: Any) -> WorkerSettings:
        """Settings that lead to it."""
        return WorkerSettings(
            ptc_sandbox_isolation=self.isolation,
            ptc_sandbox_pool=self.pool,
            ptc_cache_dir=cache_dir,
            ptc_sandbox_memory_mb=MEMORY_MB,
            ptc_sandbox_disk_mb=DISK_MB,
            **more,
        )

    def program(self, python: str, path: str) -> list[str]:
        """A command that runs a Python file: as a process of its own, or in a fork of what was prepared."""
        if not self.pool:
            return [python, path]
        return [python, "-P", "-B", "-m", "timeit", "-n1", "-r1", f"exec(open({path!r}).read(), {{}})"]

    def open(self, cache_dir: Path, environment: Path) -> AbstractContextManager[Sandbox]:
        """Open a sandbox in this way."""
        return open_sandbox(self.settings(cache_dir), environment)


WAYS = (
    Way(isolation="bubblewrap", pool=0, loopback=True, own_processes=True),
    Way(isolation="bubblewrap", pool=1, loopback=True, own_processes=True),
    Way(isolation="landlock", pool=0, loopback=False, own_processes=False),
    Way(isolation="landlock", pool=1, loopback=False, own_processes=False),
)
