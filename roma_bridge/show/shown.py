"""Where runs are shown while they go on: a region of a terminal, lines for anything else, or nowhere."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Protocol, Self

from roma_bridge.show.plain import PlansWatch, RunWatch, colours

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from ptc_contracts.events import StreamMessage
    from roma_bridge.show.view import PlanRow, PlansView, RunView


class Shown(Protocol):
    """Entered before anything is shown, and left when nothing more comes."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def say(self, line: str) -> None:
        """Tell what is no message of a run."""

    def warn(self, line: str) -> None:
        """Tell what somebody has to do something about."""


class ShownRun(Shown, Protocol):
    """Shows one run."""

    def take(self, message: StreamMessage) -> None:
        """Take the run's next message."""


class ShownPlans(Shown, Protocol):
    """Shows many plans."""

    listens: bool
    """Whether it wants to hear what runs tell on their way."""

    def begin(self, row: PlanRow, *, pays: bool) -> None:
        """Note that a plan was submitted, and whether it pays for its run: of several that share one, one does."""

    def take(self, row: PlanRow, message: StreamMessage) -> None:
        """Take the next message of a plan's run."""

    def end(self, row: PlanRow, status: str, cost_usd: float | None, words: str) -> None:
        """Note what became of a plan and what it cost; `words` say it where there is a line for it."""


def show_run(view: RunView, *, quiet: bool = False) -> ShownRun:
    """Show one run on standard error, as it is fit for it."""
    if quiet or not _draws():
        return RunWatch(view, quiet=quiet)
    from roma_bridge.show.live import RunScreen  # rich takes 0.1 s: only for a terminal

    return RunScreen(view, _console())


def show_plans(view: PlansView, *, quiet: bool = False) -> ShownPlans:
    """Show many plans on standard error, as it is fit for it."""
    if quiet or not _draws():
        return PlansWatch(quiet=quiet)
    from roma_bridge.show.live import PlansScreen  # rich takes 0.1 s: only for a terminal

    return PlansScreen(view, _console())


def _draws() -> bool:
    """Tell whether standard error is a terminal that can be drawn on."""
    drawable = os.environ.get("TERM", "dumb") not in {"dumb", "unknown", ""}
    return drawable and sys.stderr is not None and sys.stderr.isatty()


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True, no_color=not colours(), highlight=False, force_terminal=True)
