"""Where a command does its work: at the installation that the environment names, or all on this machine."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptc_contracts import RunNotFinishedError
from roma_bridge.cli.endings import Afterwards

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from roma_bridge.client import PTC
    from roma_bridge.local import LocalStack


@dataclass(frozen=True)
class Place:
    """An installation, and what of it runs for this command."""

    ptc: PTC
    stack: LocalStack | None = None
    """Server and worker of `--local`."""

    @property
    def brings_worker(self) -> bool:
        """Whether the command starts a worker."""
        return self.stack is not None

    def check(self) -> None:
        """Make sure that waiting is not vain.

        Raises:
            ConfigurationError: the worker of `--local` has ended.
        """
        if self.stack:
            self.stack.check()

    @property
    def afterwards(self) -> Afterwards:
        """What becomes of runs that have not ended when this command does: a worker of its own ends with it."""
        if self.stack is None:
            return Afterwards.GOES_ON
        return Afterwards.IS_LEFT if self.stack.lasts else Afterwards.ENDS

    def unfinished(self, run_id: str, error: RunNotFinishedError) -> RunNotFinishedError:
        """Say what becomes of a run that this command does not wait for any longer."""
        match self.afterwards:
            case Afterwards.GOES_ON:
                return error
            case Afterwards.IS_LEFT:
                what = f"to go on with it: {hint('--watch', run_id, local=True)}"
            case Afterwards.ENDS:
                what = "it ended with its server, as a replay's do"
        return RunNotFinishedError(f"run {run_id} has not ended in the time given; {what}")


@contextmanager
def place(*, local: bool, replay: Path | None = None) -> Iterator[Place]:
    """Find the installation; with `local`, start its server and a worker for the time of the block.

    Raises:
        ConfigurationError: a setting is wrong, or something cannot be started.
    """
    if local:
        from roma_bridge.local import local_stack

        with local_stack(replay) as stack:
            yield Place(stack.ptc, stack)
        return
    from roma_bridge.client import PTC

    yield Place(PTC())


@contextmanager
def server(*, local: bool) -> Iterator[PTC]:
    """Find the installation; with `local`, start the user's own server and no worker, for a look at what it keeps.

    Raises:
        ConfigurationError: a setting is wrong, or the server cannot be started.
    """
    import os

    from roma_bridge.client import PTC

    if local and not os.environ.get("REDIS_URL"):
        from roma_bridge.embedded import embedded_server, state_directory

        with embedded_server(state_directory()) as settings:
            yield PTC(settings)
        return
    yield PTC()


def hint(option: str, run_id: str, *, local: bool) -> str:
    """Write a command about a run that its user may type next, at the same installation."""
    return f"ptc-enqueue {'--local ' if local else ''}{option} {run_id}"
