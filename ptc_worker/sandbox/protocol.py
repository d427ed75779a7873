"""What a sandbox can do, free of every vendor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class SandboxError(Exception):
    """The sandbox itself failed; nothing is known about the program that was to run in it."""


class IsolationRefusedError(SandboxError):
    """There is nothing here that would keep a program in; another try would end the same way."""


@dataclass(frozen=True, kw_only=True)
class ExecResult:
    """How a command ended. A failing command is a value, not an exception."""

    exit_code: int
    """Its exit code; negative for the signal that ended it."""
    stdout: bytes
    """Its standard output, up to the limit."""
    stderr: bytes
    """Its standard error, up to the limit."""
    duration_seconds: float
    """Wall time."""
    timed_out: bool = False
    """Whether it was ended because its time was over."""
    output_limited: bool = False
    """Whether it was ended because it wrote too much."""
    out_of_memory: bool = False
    """Whether it was ended because it, its children and its files held too much memory."""
    events: bytes = b""
    """What it wrote to where its `PTC_EVENTS` pointed, up to the limit."""


class Sandbox(Protocol):
    """One isolated place for one project; relative paths are below its own directory."""

    isolation: str
    """What keeps the program in, by name."""
    root: str
    """The sandbox's directory as programs inside see it."""

    def start(self) -> None:
        """Make it ready for use.

        Raises:
            SandboxError: it cannot be had.
        """

    def write(self, files: Mapping[str, bytes], *, read_only: bool = False) -> None:
        """Write files, making the directories they need; programs inside own them, and can undo `read_only`."""

    def read(self, path: str, limit: int) -> bytes | None:
        """Read at most `limit` bytes of a regular file; None if there is none. Links are not followed."""

    def exec(self, command: Sequence[str], *, env: Mapping[str, str], cwd: str, timeout: float) -> ExecResult:
        """Run a command with this environment and no other, for at most `timeout` seconds.

        Beside `env` it finds `PTC_EVENTS`: a file, or `fd:N` for an open descriptor, to which it may write what
        `ExecResult.events` returns. Nothing it started is alive when this returns or raises.

        Raises:
            SandboxError: it could not be run, or the sandbox was stopped or died, before or meanwhile.
        """

    def stop(self) -> None:
        """End whatever runs in it, at once and for good.

        Any thread may call it, at any time and again. It does not wait: the `exec` that it ends raises soon after.
        """

    def destroy(self) -> None:
        """End whatever runs in it and remove every trace. May be called again."""
