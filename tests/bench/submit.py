"""Two processes submit one plan 100 times each at once: how many runs, how many model calls, how long a submission.

Run as `.venv/bin/python tests/bench/submit.py`. The peer in the same run is a bare `SET` round trip. Prints JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster import Cluster, cluster_in
from support import answer_with

SUBMITTER = """
import json, sys, time
from roma_bridge import submit_plan
plan = json.load(sys.stdin)
def timed(n):
    start = time.perf_counter()
    handle = submit_plan({**plan, "execution_id": f"{sys.argv[1]}-{n}"})
    return handle, time.perf_counter() - start
submitted = [timed(n) for n in range(100)]
results = [handle.get(timeout=120) for handle, _ in submitted]
print(json.dumps({"runs": sorted({h.run_id for h, _ in submitted} - {""}), "seconds": [s for _, s in submitted],
                  "statuses": sorted({r.status.value for r in results}),
                  "paid_calls": sum(u.api_calls for r in results for u in r.llm_usage)}))
"""


def main() -> None:
    """Measure on an empty cluster with one worker."""
    with tempfile.TemporaryDirectory() as folder, cluster_in(Path(folder), Path(folder) / "cache") as cluster:
        cluster.start_worker()
        cluster.replay.latency = 1.0
        plan = cluster.record([answer_with(tests__test_it_py="def test_it():\n    pass")])
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", SUBMITTER, name],
                env=cluster.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for name in ("a", "b")
        ]
        outputs = [
            json.loads(process.communicate()[0])
            for process in _fed_at_once(processes, plan.model_dump_json().encode())
        ]
        seconds = [s for output in outputs for s in output["seconds"]]
        floor = _floor(cluster)
        facts = {
            "submissions": len(seconds),
            "runs": len({run for output in outputs for run in output["runs"]}),
            "model_calls": cluster.calls_for(plan),
            "calls_in_all_results": sum(output["paid_calls"] for output in outputs),
            "statuses": sorted({status for output in outputs for status in output["statuses"]}),
            "submit_p50_ms": round(statistics.median(seconds) * 1000, 2),
            "set_round_trip_p50_ms": round(floor * 1000, 3),
            "ratio": round(statistics.median(seconds) / floor, 1),
        }
        print(json.dumps(facts))


def _fed_at_once(processes: list[subprocess.Popen[bytes]], text: bytes) -> list[subprocess.Popen[bytes]]:
    """Give every process its plan before any of them is waited for."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.close()
        process.stdin = None
    return processes


def _floor(cluster: Cluster) -> float:
    """Time the least that any submission could cost: one write to the server."""
    redis, samples = cluster.ptc.store.redis, []
    for _ in range(300):
        start = time.perf_counter()
        redis.set("bench", "1")
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


if __name__ == "__main__":
    main()
