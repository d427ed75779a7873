"""How `ptc-enqueue` lays out tables."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from roma_bridge.cli.jobs import Row
from roma_bridge.cli.tables import WIDEST_NAME, batch_table


@pytest.mark.parametrize("name", ["x" * 3000, "漢" * 3000, f"{'x' * (WIDEST_NAME - 2)}漢漢"])
def test_a_long_name_pushes_no_column_away(name: str) -> None:
    """It is cut, and wide characters count as what they take on a terminal."""
    rows = [Row(number, "plans", None, each, "SUCCESS") for number, each in enumerate((name, "short"), 1)]

    head, *lines = batch_table(rows).splitlines()[:-1]

    words = zip((head, *lines), ("status", "SUCCESS", "SUCCESS"), strict=True)
    starts = {cell_len(line.partition(word)[0]) for line, word in words}
    assert (len(starts), max(starts) <= WIDEST_NAME + 2) == (1, True)
    assert lines[0].partition("  ")[0].endswith("…")
