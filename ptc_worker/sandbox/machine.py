"""A machine at a vendor's: what is asked of it, and asked again, what it has, and what goes along to it."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import structlog

from ptc_worker.sandbox.protocol import SandboxError, UnsureError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

log = structlog.get_logger(__name__)

T = TypeVar("T")

BASE = "ptc"
"""Where everything of ours lies on a machine: a folder in the directory that its vendor's commands start in."""

_TRIES = 4
_PAUSE_SECONDS = 0.25
MOST_PATIENCE_SECONDS = 300.0
"""Longest wait that a vendor is believed to want: its clock, or ours, may be wrong."""

Network = Literal["machine", "own", "none"]
"""What tests may use: whatever the machine has; a loopback, for nothing outside can be reached; only one that is their own."""


class Machine(Protocol):
    """A machine at a vendor's, for one sandbox. All that is awaited runs on the loop of `ptc_worker.loop`."""

    alone: bool
    """Whether nothing of its vendor's serves there, such as a daemon that runs commands."""
    blocked: bool
    """Whether the vendor keeps it from every network; known once it was started."""
    until: float
    """By `time.monotonic()`: from when on its vendor may remove it before a run on it ends; known once it was started."""

    async def start(self) -> None:
        """Have it made, and wait until it can be used; one that was made and lost sight of is found again.

        Raises:
            BusyError: the vendor has no room for it just now.
            IsolationRefusedError: it never will; the message names the setting and the way out.
            SandboxError: it came to nothing.
        """

    async def put(self, files: Mapping[str, bytes]) -> None:
        """Write files, paths relative to where commands start, with the folders they need, in one request.

        Raises:
            UnsureError, SandboxError: they may not be there, or are not.
        """

    async def run(self, command: str, seconds: float) -> tuple[int, bytes]:
        """Run a command in a POSIX shell; return its exit code and what it wrote to standard output.

        Raises:
            UnsureError: it may have run, or still be running; also when it takes longer than it may.
            SandboxError: it cannot be run.
        """

    async def get(self, path: str) -> bytes | None:
        """Read a file; None if there is none.

        Raises:
            UnsureError, SandboxError: it cannot be read.
        """

    async def delete(self) -> None:
        """Remove it, and return when the vendor says that it is gone. May be called at any time, and again.

        Raises:
            SandboxError: it may still be there.
        """


@dataclass(frozen=True)
class Facts:
    """What a machine has, as `inside/facts.py` tells it."""

    told: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 JSON
        return self.told[name]


@dataclass(frozen=True)
class Parcel:
    """What goes along with a sandbox: the packages that its machine does not have."""

    facts: Facts
    archive: Path | None
    """A tar of what belongs into its environment; None if there is nothing."""
    plugins: tuple[str, ...]
    """The pytest plugins of the whole, by the names of their entry points."""
    node_modules: bool = False
    """Whether there are packages for Node among them."""
    node_options: tuple[str, ...] = ()
    """What its Node is to be started with."""


class ChangedError(SandboxError):
    """What was known of the machines of this kind does not hold any more."""


async def again(act: Callable[[], Awaitable[T]]) -> T:
    """Do what may be done twice until it is sure, a few times at most.

    Raises:
        UnsureError: it never was.
    """
    for attempt in itertools.count(1):
        try:
            return await act()
        except UnsureError as error:
            if attempt == _TRIES:
                raise
            log.info("sandbox_asked_again", attempt=attempt, error=str(error))
            pause = _PAUSE_SECONDS * 2**attempt if error.after is None else error.after
            await asyncio.sleep(min(MOST_PATIENCE_SECONDS, pause))
    raise AssertionError("it counts on")  # pragma: no cover
