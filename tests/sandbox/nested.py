"""A machine that is a sandbox of this machine: what vendors' stand-ins are made of."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from ptc_worker.sandbox.local import LocalSandbox
from ptc_worker.sandbox.protocol import UnsureError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ptc_worker.settings import WorkerSettings

FILE_BYTES = 2**27
_ROOM_MB = 256
"""What a courier takes beside the commands that it runs."""


def host_of(settings: WorkerSettings, environment: Path) -> LocalSandbox:
    """Make a sandbox with room for another one in it; the environment is its image."""
    more = {
        "ptc_sandbox_memory_mb": settings.ptc_sandbox_memory_mb + settings.ptc_sandbox_disk_mb + _ROOM_MB,
        "ptc_sandbox_disk_mb": settings.ptc_sandbox_disk_mb + _ROOM_MB,
        "ptc_sandbox_isolation": "auto",
    }
    return LocalSandbox(settings.model_copy(update=more), environment, preload=False)


class NestedMachine:
    """One of them."""

    alone = False
    blocked = True
    until = math.inf

    def __init__(self, settings: WorkerSettings, environment: Path) -> None:
        self._box = host_of(settings, environment)
        self._path = f"{environment}/bin:/usr/bin:/bin"

    async def start(self) -> None:
        """Start the sandbox."""
        await asyncio.to_thread(self._box.start)

    async def put(self, files: Mapping[str, bytes]) -> None:
        """Write files."""
        await asyncio.to_thread(self._box.write, files)

    async def run(self, command: str, seconds: float) -> tuple[int, bytes]:
        """Run a command."""
        env = {"PATH": self._path}
        ran = await asyncio.to_thread(
            self._box.exec, ["/bin/sh", "-c", command], env=env, cwd=".", timeout=seconds
        )
        if ran.timed_out:
            raise UnsureError("no answer")
        return ran.exit_code, ran.stdout + ran.stderr

    async def get(self, path: str) -> bytes | None:
        """Read a file."""
        return await asyncio.to_thread(self._box.read, path, FILE_BYTES)

    async def delete(self) -> None:
        """Remove the sandbox."""
        await asyncio.to_thread(self._box.destroy)
