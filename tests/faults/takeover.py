"""Kills a whole worker in the middle of a model call and times how long the stage takes to run elsewhere.

Run as `.venv/bin/python tests/faults/takeover.py [--times 20]`. Default settings; the clock stops when the model
is asked again. Progress goes to standard error, JSON to standard output.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster import Cluster
from faults.fleet import Server, Worker, end_all, wait_for_workers, wait_until
from support import answer_with, replaying

GREEN = answer_with(tests__test_it_py="def test_it():\n    pass")

_LONG_CALL = 3600.0
_LONGEST_SECONDS = 120.0
_CHANCE = random.Random(1)  # noqa: S311 it only spreads the kills over the workers' rhythm


def time_takeover(cluster: Cluster, workers: list[Worker]) -> float:
    """Kill whoever asks a model just now; return the seconds until another worker asks."""
    replay = cluster.replay
    replay.latency, before = _LONG_CALL, len(replay.journal)
    handle = cluster.ptc.submit(cluster.record([GREEN]))
    wait_until(lambda: len(replay.journal) > before, _LONGEST_SECONDS, "no worker asked a model")
    time.sleep(_CHANCE.uniform(0.5, 4.5))  # a kill comes at any moment of the rhythm of renewals and sweeps
    doomed = next(worker for worker in workers if worker.model == replay.journal[before].model)
    replay.latency = 0.0
    doomed.kill()
    killed = time.monotonic()
    wait_until(lambda: len(replay.journal) > before + 1, _LONGEST_SECONDS, "nobody took the run over")
    seconds = replay.journal[before + 1].started - killed
    result = handle.get(timeout=_LONGEST_SECONDS)
    assert (result.status, len(replay.journal)) == ("SUCCESS", before + 2)
    doomed.start()
    wait_for_workers(cluster.settings, workers)
    return seconds


def main() -> None:
    """Measure with two workers that serve both queues."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as name, replaying() as replay:
        folder = Path(name)
        server = Server(log=folder / "server.log")
        server.start()
        cluster = Cluster(settings=server.settings, replay=replay, folder=folder, cache=folder / "cache")
        workers = [
            Worker(log=folder / f"w{n}.log", queues="generate,sandbox", environment=cluster.environment)
            for n in range(2)
        ]
        try:
            for worker in workers:
                worker.start()
            wait_for_workers(cluster.settings, workers)
            cluster.run([GREEN])  # what happens once per installation
            seconds = []
            for number in range(times):
                seconds.append(time_takeover(cluster, workers))
                print(f"{number + 1} of {times}: {seconds[-1]:.2f} s", file=sys.stderr, flush=True)
        finally:
            end_all(workers)
            server.kill()
    facts = {
        "kills": times,
        "median_seconds": round(statistics.median(seconds), 2),
        "worst_seconds": round(max(seconds), 2),
        "seconds": [round(each, 2) for each in seconds],
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
