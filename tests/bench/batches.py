"""What a batch saves: 200 plans in one batch against 200 single submissions; and a list of 10,000 runs.

Run as `.venv/bin/python tests/bench/batches.py`. Prints JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import make_plan

from roma_bridge import PTC
from roma_bridge.embedded import embedded_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from ptc_contracts import PTCExecutionPlan

PLANS, RUNS, ROUNDS = 200, 10_000, 5


def main() -> None:
    """Measure on an empty server without workers."""
    with tempfile.TemporaryDirectory() as folder, embedded_server(Path(folder)) as settings:
        ptc = PTC(settings)
        ptc.submit(make_plan("warm up"))
        singles, batches = [], []
        for number in range(ROUNDS):
            alone, together = plans(f"single {number}", PLANS), plans(f"batch {number}", PLANS)
            singles.append(timed(partial(one_by_one, ptc, alone)))
            batches.append(timed(partial(ptc.submit_many, together)))
        ptc.submit_many(plans("listed", RUNS - 2 * PLANS * ROUNDS - 1))
        ptc.submit(make_plan("the last one", project_name="rare"))
        single, batch = statistics.median(singles), statistics.median(batches)
        facts = {
            "single_ms_per_plan": round(single / PLANS * 1000, 2),
            "batch_ms_per_plan": round(batch / PLANS * 1000, 2),
            "ratio": round(single / batch, 1),
            "runs": ptc.store.redis.zcard("ptc:runs"),
            "page_of_50_ms": round(1000 * median(ptc.list_runs), 2),
            "page_that_finds_none_ms": round(1000 * median(lambda: ptc.list_runs(project="none")), 2),
            "all_pages_of_1000_ms": round(1000 * median(lambda: all_pages(ptc)), 1),
        }
        print(json.dumps(facts))


def plans(name: str, number: int) -> list[PTCExecutionPlan]:
    """Make plans that nobody else has."""
    return [make_plan(f"{name} {n}") for n in range(number)]


def one_by_one(ptc: PTC, given: list[PTCExecutionPlan]) -> None:
    """Submit plans each for itself."""
    for plan in given:
        ptc.submit(plan)


def all_pages(ptc: PTC) -> int:
    """Go through all runs."""
    page = ptc.list_runs(limit=1000)
    seen = len(page.runs)
    while page.cursor:
        page = ptc.list_runs(limit=1000, cursor=page.cursor)
        seen += len(page.runs)
    return seen


def timed(act: Callable[[], object]) -> float:
    """Time it once, in seconds."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def median(act: Callable[[], object]) -> float:
    """Time it five times."""
    return statistics.median(timed(act) for _ in range(ROUNDS))


if __name__ == "__main__":
    main()
