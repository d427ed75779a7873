"""Measure what the gate and the linter take for a draft: milliseconds, as JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import make_plan

from ptc_worker.filetypes import artifact
from ptc_worker.gate import examine
from ptc_worker.linter import lint

if TYPE_CHECKING:
    from collections.abc import Callable

_HERE = Path(__file__).parents[2]


def main() -> None:
    """Examine files of this project, again and again."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--files", type=int, default=30)
    options.add_argument("--repeat", type=int, default=20)
    given = options.parse_args()
    sources = [
        path for folder in ("ptc_contracts", "ptc_worker") for path in sorted((_HERE / folder).glob("*.py"))
    ]
    drafted = [artifact(str(p.relative_to(_HERE)), p.read_text()) for p in sources[: given.files]]
    plan = make_plan()
    told = {
        "files": len(drafted),
        "chars": sum(len(file.content) for file in drafted),
        "examine_ms": _median_ms(lambda: examine(plan, drafted, None), given.repeat),
        "examine_cpu_ms": _median_ms(lambda: examine(plan, drafted, None), given.repeat, time.process_time),
        "lint_ms": _median_ms(lambda: lint(drafted), given.repeat),
    }
    print(json.dumps(told, indent=2))


def _median_ms(
    act: Callable[[], object], times: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    taken = []
    for _ in range(times):
        began = clock()
        act()
        taken.append(1000 * (clock() - began))
    return round(statistics.median(taken), 1)


if __name__ == "__main__":
    main()
