"""What a sandbox can do, free of every vendor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Labels = Mapping[str, str]


class SandboxError(Exception):
    """The sandbox itself failed; nothing is known about the program that was to run in it."""


class UnsureError(SandboxError):
    """Whether a vendor has done what it was asked to is not known: it is to be asked again."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after
        """Seconds that it wants to be left alone; None if it did not say."""


class IsolationRefusedError(SandboxError):
    """There is nothing here that would keep a program in; another try would end the same way."""


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """What a sandbox is for. One at a vendor's carries it, so that whoever finds it knows whether it is wanted."""

    installation: str = ""
    """Whose sandboxes these are: workers that share a Redis."""
    worker: str = ""
    """The worker process that made it."""
    run_id: str = ""
    """The run whose tests it is for; empty for one that is made ahead."""
    fence: int = 0
    """The start of a stage of that run: another start has no use for it."""

    @property
    def labels(self) -> Labels:
        """What a vendor keeps beside the sandbox, and finds it by."""
        return {
            "ptc": self.installation,
            "ptc-worker": self.worker,
            "ptc-run": self.run_id,
            "ptc-fence": str(self.fence),
        }

    @classmethod
    def of(cls, labels: Labels) -> Purpose:
        """Read it back.

        Raises:
            ValueError: these are not labels of ours.
        """
        return cls(
            installation=labels.get("ptc", ""),
            worker=labels.get("ptc-worker", ""),
            run_id=labels.get("ptc-run", ""),
            fence=int(labels.get("ptc-fence", "")),
        )


NOBODYS = Purpose()
"""Of a sandbox that nobody will look for: it ends with whoever made it."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """The programs that a sandbox has, by their paths as programs inside see them."""

    python: str
    """A Python that can import what was wanted, and `ptc_inside`."""
    path: str
    """What `PATH` is to be."""
    plugins: tuple[str, ...]
    """The pytest plugins that this Python has, by the names of their entry points."""
    inside: str
    """The folder of `ptc_inside`."""
    node: str = ""
    """Node, if it was wanted."""
    node_options: tuple[str, ...] = ()
    """What Node is to be started with."""
    node_modules: str = ""
    """The folder of the packages for it; empty where there are none."""


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

    @property
    def isolation(self) -> str:
        """What keeps the program in, by name."""

    @property
    def root(self) -> str:
        """The sandbox's directory as programs inside see it; where that is not known yet, whoever asks waits for it."""

    @property
    def tools(self) -> Tools:
        """Its programs, in the same way."""

    def start(self) -> None:
        """Make it ready for use.

        Raises:
            SandboxError: it cannot be had.
        """

    def write(self, files: Mapping[str, bytes], *, read_only: bool = False) -> None:
        """Write files, making the directories they need; programs inside own them, and can undo `read_only`."""

    def read(self, path: str, limit: int) -> bytes | None:
        """Read at most `limit` bytes of a regular file; None if there is none. Links are not followed."""

    def changed(self, files: Mapping[str, bytes]) -> list[str]:
        """Name those of these files that are not, byte for byte, what is said here."""

    def exec(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        timeout: float,
        heard: Callable[[bytes], None] | None = None,
    ) -> ExecResult:
        """Run a command with this environment and no other, for at most `timeout` seconds.

        Beside `env` it finds `PTC_EVENTS`: a file, or `fd:N` for an open descriptor, to which it may write what
        `ExecResult.events` returns. `heard` gets the same in pieces, as soon as they are here, and all before this returns;
        it must neither wait nor raise. Nothing the command started is alive when this returns or raises.

        Raises:
            SandboxError: it could not be run, or the sandbox was stopped or died, before or meanwhile.
        """

    def stop(self) -> None:
        """End whatever runs in it, at once and for good.

        Any thread may call it, at any time and again. It does not wait: the `exec` that it ends raises soon after.
        """

    def destroy(self) -> None:
        """End whatever runs in it and remove every trace. May be called again."""
