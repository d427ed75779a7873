"""Tables for people, and the sums below them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size

from roma_bridge.cli.jobs import cost_of
from roma_bridge.terminal import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from roma_bridge.cli.jobs import Row


WIDEST_NAME = 60
"""Columns of a terminal that a name may take in a table; whole names are in JSON."""


def columns(head: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[str] = ()) -> list[str]:
    """Lay cells out below their heads, those named in `right` against the right edge of their column."""
    rows = [head, *cells]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            _padded(cell, width, right=name in right)
            for cell, width, name in zip(row, widths, head, strict=True)
        ).rstrip()
        for row in rows
    ]


def _padded(cell: str, width: int, *, right: bool) -> str:
    space = " " * (width - cell_len(cell))
    return space + cell if right else cell + space


def name_cell(name: str) -> str:
    """Fit a name that others chose into a cell: on one line, and cut where it would push all columns away."""
    line = one_line(name)
    return line if cell_len(line) <= WIDEST_NAME else f"{set_cell_size(line, WIDEST_NAME - 1).rstrip()}…"


def batch_table(rows: Sequence[Row], good: str = "green") -> str:
    """Word what became of plans, the sums in the last line; `good` says what those are that ended well."""
    files = any(row.folder for row in rows)
    head = ("plan", "status", "from", "seconds", "cost", *(("files",) if files else ()))
    cells = [
        (
            *(name_cell(row.execution_id), row.status, row.source, f"{row.seconds:.1f}", cost_of(row)),
            *((f"{row.folder}/" if row.folder else "",) if files else ()),
        )
        for row in rows
    ]
    return "\n".join([*columns(head, cells, right=("seconds", "cost")), _sums(totals(rows, good), good)])


def span(seconds: float) -> str:
    """Word a time in its largest unit."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def totals(rows: Sequence[Row], good: str = "green") -> dict[str, Any]:
    """Sum rows up: how many plans, how many of them good, where from, and US dollars as far as they are known.

    A plan that is warm has its result where it was to be kept; one that is green has one.
    """
    sources = Counter(row.source for row in rows)
    return {
        "plans": len(rows),
        good: sum(row.green and not (good == "warm" and row.unwritten) for row in rows),
        "from_cache": sources["cache"],
        "joined": sources["joined"],
        "earlier": sources["earlier"],
        "new": sources["new"],
        "cost_usd": sum(row.cost_usd or 0.0 for row in rows),
        "unknown_costs": sum(row.cost_usd is None for row in rows),
    }


def _sums(sums: dict[str, Any], good: str) -> str:
    unknown = f" and what {sums['unknown_costs']} of unknown price cost" if sums["unknown_costs"] else ""
    return (
        f"{sums[good]} of {sums['plans']} plans are {good}: {sums['new']} new, {sums['joined']} joined, "
        f"{sums['earlier']} from earlier runs, {sums['from_cache']} from the cache; ${sums['cost_usd']:.4f}{unknown}"
    )
