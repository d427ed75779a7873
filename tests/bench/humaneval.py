"""Feeds the 164 problems of HumanEval through `submit_plan`: first a broken, then the canonical solution.

Run as `.venv/bin/python tests/bench/humaneval.py [--workers N] [--latency SECONDS] [--fault-rate SHARE]`. It needs the data file
(`--data`, by default `../shared/data/HumanEval.jsonl.gz`) and says so where it is missing. Everything but the
model is real: queue, workers, SDKs, sandbox, pytest. The floor, measured in the same run, is plain `python -m
pytest` of the same projects in the same environment, as many at a time as there are cores. Prints JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster import cluster_in
from support import make_plan

from ptc_contracts.keys import content_id
from ptc_worker.llm.replay.faults import FaultPlan
from ptc_worker.parsing import parse_answer

if TYPE_CHECKING:
    from ptc_contracts import PTCExecutionPlan

DATA = Path(__file__).parents[3] / "shared" / "data" / "HumanEval.jsonl.gz"


def recorded(problem: dict[str, Any]) -> tuple[PTCExecutionPlan, list[str]]:
    """Make a plan of a problem, with a first answer that fails its tests and a second one that passes them."""
    plan = make_plan(problem["prompt"], execution_id=problem["task_id"].replace("/", "-"), fallback_llm=None)
    head, name = problem["prompt"], problem["entry_point"]
    tests = f"from solution import *\n{problem['test']}\n\ndef test_{name}():\n    check({name})\n"
    broken = f'{head}    raise NotImplementedError("first draft")\n'
    return plan, [
        f'<file path="solution.py">\n{broken}</file>\n<file path="tests/test_solution.py">\n{tests}</file>\n',
        f'<file path="solution.py">\n{head}{problem["canonical_solution"]}</file>\n',
    ]


def plain_pytest_seconds(folder: Path, recordings: list[tuple[PTCExecutionPlan, list[str]]]) -> float:
    """Time the test runs that these plans need without any system around them: two for each plan."""
    python = next(folder.glob("cache/environments/*/bin/python"))
    projects = []
    for number, (_, answers) in enumerate(recordings):
        for turn in range(len(answers)):
            project = folder / "floor" / f"{number}-{turn}"
            for file in [file for answer in answers[: turn + 1] for file in parse_answer(answer).files]:
                (project / file.file_path).parent.mkdir(parents=True, exist_ok=True)
                (project / file.file_path).write_text(file.content)
            projects.append(project)

    def run(project: Path) -> None:
        command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "pythonpath=."]
        env = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        subprocess.run(command, cwd=project, env=env, stdout=subprocess.DEVNULL, check=False)

    started = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, projects))
    return time.monotonic() - started


def main() -> int:
    """Run all problems; return 0 if each ended as SUCCESS in its second iteration, with two calls."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--workers", type=int, default=1, help="workers that serve both queues")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds that each model call takes")
    parser.add_argument(
        "--fault-rate", type=float, default=0.0, help="share of model calls that fail, 0 to 1"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults")
    options = parser.parse_args()
    if not options.data.exists():
        print(f"skipped: {options.data} is not there", file=sys.stderr)
        return 0
    with gzip.open(options.data, "rt", encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]
    recordings = [recorded(problem) for problem in problems]
    with tempfile.TemporaryDirectory() as folder, cluster_in(Path(folder), Path(folder) / "cache") as cluster:
        cluster.replay.recordings |= {content_id(plan): answers for plan, answers in recordings}
        cluster.replay.latency = options.latency
        for _ in range(options.workers):
            cluster.start_worker(environment={**cluster.environment, "PTC_LOG_LEVEL": "warning"})
        cluster.run(recordings[0][1])  # what happens once per worker: vendor imports, the base environment
        cluster.replay.faults = FaultPlan(rate=options.fault_rate, seed=options.seed)
        calls_before = cluster.replay.stats()["calls"]
        started = time.monotonic()
        with ThreadPoolExecutor(32) as pool:
            handles = list(pool.map(cluster.ptc.submit, [plan for plan, _ in recordings]))
            results = list(pool.map(lambda handle: handle.get(), handles))
        wall = time.monotonic() - started
        ended = Counter(f"{r.status.value} at iteration {r.iterations_used}" for r in results)
        for result in results:
            if result.status.value != "SUCCESS":
                print(
                    result.execution_id, result.error_message, result.metadata.get("history"), file=sys.stderr
                )
        good = ended["SUCCESS at iteration 2"]
        floor = plain_pytest_seconds(cluster.folder, recordings)
        facts = {
            "plans": len(results),
            "ended": dict(ended),
            "wall_seconds": round(wall, 1),
            "plans_per_second": round(len(results) / wall, 2),
            "workers": options.workers,
            "floor_seconds": round(floor, 1),
            "ratio_to_floor": round(wall / floor, 2),
            "model_calls": cluster.replay.stats()["calls"] - calls_before,
            "model_calls_with_faults": cluster.replay.stats()["faults"],
            "billed_calls_above_two_a_plan": sum(u.api_calls for r in results for u in r.llm_usage)
            - 2 * len(results),
        }
        print(json.dumps(facts))
        return 0 if good == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
