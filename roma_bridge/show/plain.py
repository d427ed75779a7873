"""Shows runs as lines on standard error, each with the time since the start."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Self

import click

from roma_bridge.show.lines import Lines

if TYPE_CHECKING:
    from types import TracebackType

    from ptc_contracts.events import StreamMessage
    from roma_bridge.show.view import PlanRow, RunView


class Watch:
    """Prints what is worth telling."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._started = time.monotonic()
        self._quiet = quiet

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        """Leave the lines where they are."""

    def say(self, line: str) -> None:
        """Print a line, unless quiet is wanted."""
        if not self._quiet:
            self.warn(line)

    def warn(self, line: str) -> None:
        """Print a line that somebody has to do something about."""
        stamp = click.style(f"[{time.monotonic() - self._started:6.1f} s]", dim=True)
        click.echo(f"{stamp} {line}", err=True, color=None if colours() else False)


class RunWatch(Watch):
    """Prints what one run tells."""

    def __init__(self, view: RunView, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._view = view
        self._lines = Lines(view)

    def take(self, message: StreamMessage) -> None:
        """Print what is new with a message."""
        self._view.take(message)
        for line in self._lines.of(message):
            self.say(line)


class PlansWatch(Watch):
    """Prints a line for each of many plans as it ends."""

    listens = False

    def begin(self, row: PlanRow, *, pays: bool) -> None:
        """Note that a plan was submitted."""
        row.begin(pays=pays)

    def take(self, row: PlanRow, message: StreamMessage) -> None:
        """Note what a run tells; of many runs only the ends are printed."""
        if row.view:
            row.view.take(message)

    def end(self, row: PlanRow, status: str, cost_usd: float | None, words: str) -> None:
        """Print what became of a plan."""
        row.end(status, cost_usd)
        self.say(words)


def colours() -> bool:
    """Tell whether colours are welcome: not where NO_COLOR, the command's own option or the terminal is against them."""
    context = click.get_current_context(silent=True)
    refused = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not refused and (context is None or context.color is not False)
