"""A sandbox of the loopback Daytona: what was asked for, and the sandbox of this machine that does it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sandbox.nested import FILE_BYTES

from ptc_worker.sandbox.inside.agent import EVENTS_FD
from ptc_worker.sandbox.protocol import SandboxError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ptc_worker.sandbox.local import LocalSandbox
    from ptc_worker.sandbox.protocol import ExecResult

NO_LIMIT_SECONDS = 24 * 3600.0
"""What a command may take that nobody set a limit for: as at Daytona, as good as none."""


@dataclass
class Command:
    """A command of a session."""

    id: str
    text: str
    exit_code: int | None = None
    """None until it has ended, and for ever if it took its session's shell along."""
    stdout: str = ""
    stderr: str = ""


@dataclass(kw_only=True, eq=False)
class Box:
    """One sandbox, as its owner and as tests see it."""

    id: str
    name: str
    asked: Mapping[str, Any]
    """The request that made it."""
    local: LocalSandbox
    environment: str
    state: str = "creating"
    error: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    born: float = field(default_factory=time.monotonic)
    touched: float = field(default_factory=time.monotonic)
    stopped: float = 0.0
    sessions: dict[str, dict[str, Command]] = field(default_factory=dict)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _running: bool = False

    async def start(self) -> None:
        """Start it.

        Raises:
            SandboxError: it does not.
        """
        await asyncio.to_thread(self.local.start)

    async def end(self) -> None:
        """Stop what it runs, at once, and remove it."""
        self.local.stop()
        await asyncio.to_thread(self.local.destroy)

    # ── files ──────────────────────────────────────────────────────────────────────────────────────────────

    async def write(self, files: Mapping[str, bytes]) -> None:
        """Write files below its working directory.

        Raises:
            SandboxError: a path leads elsewhere, or there is no room.
        """
        below = {self._below(path): content for path, content in files.items()}
        async with self._turn:
            await asyncio.to_thread(self.local.write, below)

    async def read(self, path: str) -> bytes | None:
        """Read a file; None if there is none.

        While a command runs there is none either: the local sandbox does one thing at a time, and whoever
        reads while it does not know how a command ended must not wait for it.
        """
        if self._running:
            return None
        async with self._turn:
            try:
                return await asyncio.to_thread(self.local.read, self._below(path), FILE_BYTES)
            except SandboxError:
                return None

    def _below(self, path: str) -> str:
        if path.startswith(self.local.root + "/"):
            return path.removeprefix(self.local.root + "/")
        if path.startswith("/"):
            raise SandboxError(f"open {path}: permission denied")
        return path

    # ── commands ───────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, command: str, *, cwd: str = "", env: Mapping[str, str], seconds: float) -> ExecResult:
        """Run a shell command after those that were asked for before.

        Raises:
            SandboxError: the sandbox ended meanwhile.
        """
        path = {"PATH": f"{self.environment}/bin:/usr/local/bin:/usr/bin:/bin"}
        async with self._turn:
            self._running = True
            try:
                return await asyncio.to_thread(
                    self.local.exec,
                    ["/bin/sh", "-c", command],
                    env={**path, **self.asked.get("env", {}), **env},
                    cwd=cwd or ".",
                    timeout=seconds,
                )
            finally:
                self._running = False

    async def run_in_session(self, command: Command) -> None:
        """Run a command as a session does, in its shell: with `exit` or `exec` that ends too, and tells no exit code.

        Each has a shell of its own here, so directories and variables are not kept from one to the next.
        """
        script = f"{{ {command.text}\n}} {EVENTS_FD}>&-; echo $? >&{EVENTS_FD}"
        ran = await self.run(script, env={}, seconds=NO_LIMIT_SECONDS)
        command.stdout, command.stderr = (_text(part) for part in (ran.stdout, ran.stderr))
        command.exit_code = int(ran.events) if ran.events else None


def _text(output: bytes) -> str:
    return output.decode(errors="replace")
