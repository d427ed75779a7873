"""Shows runs on a terminal while they go on: a region that is drawn anew, never higher or wider than there is room."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from roma_bridge.show.lines import MOST_ISSUES
from roma_bridge.show.view import GREEN, few
from roma_bridge.terminal import knows_unicode, marks, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from rich.console import OverflowMethod, RenderableType

    from ptc_contracts.events import StreamMessage
    from roma_bridge.show.view import PlanRow, PlansView, RunView, TestMark

REFRESHES_PER_SECOND = 8

MOST_TESTS = 24
"""Tests that are shown where there is room for them."""

MOST_WRITTEN = 8
"""Lines of what a model writes that are shown where there is room for them."""

ROOM_FOR_FIGURES = 60
"""Columns from which on a row of a plan has figures."""

MOST_SAID = 4
"""Lines that were said beside the messages and are shown; the last ones."""


@dataclass(frozen=True)
class Canvas:
    """The room there is to draw on, and what can be drawn there."""

    width: int
    height: int
    encoding: str
    now: datetime

    @classmethod
    def of(cls, console: Console) -> Self:
        """Measure a console as it is now."""
        return cls(console.width, console.height, console.encoding, datetime.now(UTC))

    @property
    def rich_signs(self) -> bool:
        """Whether there is more than ASCII."""
        return knows_unicode(self.encoding)

    @property
    def spinner(self) -> str:
        """A sign that turns with time."""
        frames = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏" if self.rich_signs else "-\\|/"
        return frames[int(self.now.timestamp() * REFRESHES_PER_SECOND) % len(frames)]

    def sign(self, *, good: bool) -> tuple[str, str]:
        """Return a mark with its style."""
        right, wrong = marks(self.encoding)
        return (right, "green") if good else (wrong, "red")

    def line(self, *parts: str | tuple[str, str]) -> Text:
        """Put a line together that takes one row, whatever its length."""
        fitted = [
            (self.fit(part), "") if isinstance(part, str) else (self.fit(part[0]), part[1]) for part in parts
        ]
        return Text.assemble(*fitted, no_wrap=True, overflow="ellipsis" if self.rich_signs else "crop")

    def fit(self, words: str) -> str:
        """Replace what this terminal's encoding does not have."""
        return words if self.rich_signs else words.encode(self.encoding, "replace").decode(self.encoding)


class Screen:
    """A region of the terminal: entered, drawn until it is left, and then replaced by what it ends with."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()  # messages are taken and drawn by two threads
        self._said: list[tuple[str, str]] = []
        self._over = False
        self._live = Live(
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            get_renderable=self._drawn,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._over = True
        self._live.stop()

    def say(self, line: str) -> None:
        """Show a line beside what the messages tell; it stays when the region has gone."""
        with self._lock:
            self._said.append((line, ""))

    def warn(self, line: str) -> None:
        """Show a line that somebody has to do something about."""
        with self._lock:
            self._said.append((line, "yellow"))

    def draw(self, canvas: Canvas) -> RenderableType:
        """Draw what is known now."""
        raise NotImplementedError

    def draw_end(self, canvas: Canvas) -> RenderableType:
        """Draw what stays."""
        raise NotImplementedError

    def _drawn(self) -> RenderableType:
        canvas = Canvas.of(self._console)
        with self._lock:
            return self.draw_end(canvas) if self._over else self.draw(canvas)

    def _said_last(self, canvas: Canvas) -> list[Text]:
        return [canvas.line(said) for said in self._said[-MOST_SAID:]]

    def _said_all(self, canvas: Canvas) -> list[Text]:
        return [Text(canvas.fit(line), style) for line, style in self._said]


class RunScreen(Screen):
    """Shows one run."""

    def __init__(self, view: RunView, console: Console) -> None:
        self._view = view
        super().__init__(console)

    def take(self, message: StreamMessage) -> None:
        """Take a message in; it is drawn when its turn comes."""
        with self._lock:
            self._view.take(message)

    def draw(self, canvas: Canvas) -> RenderableType:
        """Draw what is known now, in one row less than there are: the last one is the cursor's."""
        top = [*self._said_last(canvas), header(self._view, canvas), stage(self._view, canvas)]
        room = max(canvas.height - 1 - len(top), 0)
        return Group(*[*top, *body(self._view, canvas, room)][: max(canvas.height - 1, 1)])

    def draw_end(self, canvas: Canvas) -> RenderableType:
        """Draw what became of the iterations."""
        view = self._view
        left_at = [] if view.ended else [stage(view, canvas, turning=False)]
        return Group(*self._said_all(canvas), header(view, canvas), *verdicts(view, canvas), *left_at)


def header(view: RunView, canvas: Canvas) -> Text:
    """Tell which plan it is, how long it has been going on, and what it used."""
    facts = [clock(view.seconds(canvas.now)), str(view.usage)]
    return canvas.line((view.name, "bold"), *(f" | {fact}" for fact in facts if fact))


def stage(view: RunView, canvas: Canvas, *, turning: bool = True) -> Text:
    """Tell what it does."""
    place = f"iteration {view.iteration} of {view.max_iterations}: " if view.iteration else ""
    writes = [view.model, f"{view.characters:,} characters" if view.characters else ""]
    details = "".join(f" | {detail}" for detail in writes if detail and view.doing == "a model writes")
    return canvas.line(
        (canvas.spinner if turning else " ", "cyan"), f" {place}{view.doing}", (details, "dim")
    )


def verdicts(view: RunView, canvas: Canvas) -> list[Text]:
    """Tell what became of each iteration."""
    return [
        canvas.line(
            "  ", canvas.sign(good=one.green), f" iteration {one.iteration}: ", (str(one), _colour(one.green))
        )
        for one in view.examined.values()
    ]


def body(view: RunView, canvas: Canvas, room: int) -> list[Text]:
    """Tell of iterations, files, the gate and tests, or of what the model writes, in so many rows."""
    told = verdicts(view, canvas)[-max(room // 3, 1) :]
    if view.file_count:
        told.append(canvas.line(("  files  ", "dim"), few(view.files, view.file_count, _names(canvas))))
    told += _gate(view, canvas, max(room // 4, 1))
    left = room - len(told)
    return [*told, *(_tests(view, canvas, left) if view.stage == "sandbox" else _written(view, canvas, left))]


def _names(canvas: Canvas) -> int:
    return max(canvas.width // 20, 1)


def _gate(view: RunView, canvas: Canvas, most: int) -> list[Text]:
    shown = view.issues[: min(most, MOST_ISSUES)]
    more = view.issue_count - len(shown)
    lines = [canvas.line(("  gate   ", "dim"), (issue, "yellow")) for issue in shown]
    return [*lines, canvas.line(("         ", ""), (f"… and {more} more", "dim"))] if more else lines


def _tests(view: RunView, canvas: Canvas, room: int) -> list[Text]:
    """Count the tests up, and show those that fail, then the last ones that do not."""
    marks = view.tests
    if not (marks.ended or marks.expected):
        return []
    most = min(room - 1, MOST_TESTS)
    failures = marks.failures[: max(most, 0)]
    others = list(marks.others)[-(most - len(failures)) :] if most > len(failures) else []
    rows = [_test(mark, canvas, failed=True) for mark in failures]
    rows += [_test(mark, canvas, failed=False) for mark in others]
    return [canvas.line(("  tests  ", "dim"), str(marks)), *rows]


def _test(mark: TestMark, canvas: Canvas, *, failed: bool) -> Text:
    if not failed and mark.outcome != "passed":
        return canvas.line("    - ", (f"{mark.test} ({mark.outcome})", "dim"))
    took = f" {mark.seconds:.2f} s" if mark.seconds is not None else ""
    outcome = f" ({mark.outcome})" if failed else ""
    return canvas.line("    ", canvas.sign(good=not failed), f" {mark.test}{outcome}", (took, "dim"))


def _written(view: RunView, canvas: Canvas, room: int) -> list[Text]:
    return [
        canvas.line(("  | ", "dim"), (line, "dim"))
        for line in view.last_lines(MOST_WRITTEN)[-max(room, 0) :]
        if room > 0
    ]


class PlansScreen(Screen):
    """Shows many plans, a row each, and their sums."""

    listens = True

    def __init__(self, view: PlansView, console: Console) -> None:
        self._view = view
        super().__init__(console)

    def begin(self, row: PlanRow, *, pays: bool) -> None:
        """Note that a plan was submitted."""
        with self._lock:
            row.begin(pays=pays)

    def take(self, row: PlanRow, message: StreamMessage) -> None:
        """Take a message of a plan's run in."""
        with self._lock:
            if row.view:
                row.view.take(message)

    def end(self, row: PlanRow, status: str, cost_usd: float | None, _: str) -> None:
        """Note what became of a plan."""
        with self._lock:
            row.end(status, cost_usd)

    def draw(self, canvas: Canvas) -> RenderableType:
        """Draw the rows that there is room for, those under way first, and the sums below."""
        said = self._said_last(canvas)
        room = max(canvas.height - 2 - len(said), 0)
        total = len(self._view.rows)
        rows = self._view.bounded(room if total <= room else max(room - 1, 0))
        if not rows:
            return Group(self._sums(canvas))
        more = [canvas.line((f"  … and {total - len(rows)} more", "dim"))] if total > len(rows) else []
        return Group(*said, _table(rows, canvas), *more, self._sums(canvas))

    def draw_end(self, canvas: Canvas) -> RenderableType:
        """Draw the sums: the table that stays is the command's."""
        return Group(*self._said_all(canvas), self._sums(canvas))

    def _sums(self, canvas: Canvas) -> Text:
        return canvas.line((str(self._view), "bold"))


def _table(rows: Sequence[PlanRow], canvas: Canvas) -> Table:
    """Put rows below each other; a narrow terminal has no room for figures."""
    table = Table.grid(padding=(0, 2, 0, 0))
    cells = [_cells(row, canvas)[: None if canvas.width >= ROOM_FOR_FIGURES else 2] for row in rows]
    for place, column in enumerate(zip(*cells, strict=True)):
        widest = max(cell.cell_len for cell in column)
        overflow: OverflowMethod = "ellipsis" if canvas.rich_signs else "crop"
        table.add_column(no_wrap=True, overflow=overflow, min_width=widest if place > 1 else None)
    for row in cells:
        table.add_row(*row)
    return table


def _cells(row: PlanRow, canvas: Canvas) -> list[Text]:
    """Tell of a plan: name, what it does or became, and figures: time, tests and cost."""
    view = row.view
    name = canvas.line(_row_sign(row, canvas), f" {one_line(row.name)}")
    if view is None:
        return [name, canvas.line((row.status or "waits for its turn", "dim")), Text(), Text(), Text()]
    place = f"{view.iteration} of {view.max_iterations}: " if view.iteration else ""
    doing = canvas.line((row.status, _colour(row.status in GREEN)) if row.status else place + view.doing)
    time = clock(view.seconds(row.ended_at or canvas.now))
    return [name, doing, *map(canvas.line, (time, view.tests.short, view.usage.cost))]


def _row_sign(row: PlanRow, canvas: Canvas) -> tuple[str, str]:
    if row.status:
        return canvas.sign(good=row.status in GREEN)
    return (canvas.spinner, "cyan") if row.view else (" ", "")


def _colour(good: bool) -> str:  # noqa: FBT001 a colour for each
    return "green" if good else "red"


def clock(seconds: float) -> str:
    """Word a time as a clock shows it."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
