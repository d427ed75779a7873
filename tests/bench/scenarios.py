"""Runs every scenario of `tests/scenarios.py` through real SDKs, workers and sandboxes, and prints what each took.

Run as `.venv/bin/python tests/bench/scenarios.py`. Prints a table: name, status, why it stopped, iterations, calls,
cost in US dollars (as if the replayed answers had come from the models they are recorded for), seconds.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster import cluster_in
from scenarios import SCENARIOS


def main() -> int:
    """Run them one after the other; return 0 if each ended as it has to."""
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, cluster_in(Path(folder), Path(folder) / "cache") as cluster:
        cluster.replay.disguised = True
        cluster.start_worker(environment={**cluster.environment, "PTC_LOG_LEVEL": "warning"})
        print(f"{'scenario':46} {'status':16} {'stopped':19} it calls     cost seconds")
        for scenario in SCENARIOS:
            plan = cluster.record(scenario.answers, **scenario.plan)
            cluster.replay.faults.script(scenario.faults)
            started = time.monotonic()
            result = cluster.ptc.submit(plan).get(timeout=120)
            seconds = time.monotonic() - started
            stop = result.metadata["stop_reason"]
            ended = (result.status.value, stop) == (scenario.status, scenario.stop)
            wrong += not ended
            print(
                f"{scenario.name:46} {result.status.value:16} {stop:19} {result.iterations_used:2} "
                f"{len(result.metadata['calls']):5} {result.total_cost_usd:8.4f} {seconds:7.2f}{'' if ended else '  WRONG'}"
            )
            cluster.forgive()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
