"""What telling costs a run: the time it takes of whoever tells, and of the server, alone and with many who follow.

Run as `.venv/bin/python tests/bench/events.py`. The floor in the same run is a bare XADD for each message. Prints JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster import cluster_in
from support import until

from ptc_contracts.events import StreamEventType
from ptc_contracts.keys import events_key
from ptc_contracts.run import Run
from ptc_contracts.stages import Stage
from ptc_worker.redaction import Redactor
from ptc_worker.reporting import Publisher

if TYPE_CHECKING:
    from cluster import Cluster

EVENTS = 2_000
FOLLOWERS = 200
FOLLOW = """
import asyncio, sys
from roma_bridge import PlanHandle
async def follow(run_id):
    print(len([m async for m in PlanHandle.of(run_id).events()]), flush=True)
async def all_of_them():
    await asyncio.gather(*(follow(sys.argv[1]) for _ in range(int(sys.argv[2]))))
asyncio.run(all_of_them())
"""


def main() -> None:
    """Measure on a server of its own."""
    with tempfile.TemporaryDirectory() as folder, cluster_in(Path(folder), Path(folder)) as cluster:
        alone = _told(cluster, followers=0)
        followed = _told(cluster, followers=FOLLOWERS)
        floor = _floor(cluster)
    print(
        json.dumps(
            {
                "events": EVENTS,
                "bare XADD, us each": floor,
                "alone": alone,
                f"with {FOLLOWERS} followers": followed,
                "sent / bare XADD": round(alone["sent, us each"] / floor, 2),
            },
            indent=2,
        )
    )


def _told(cluster: Cluster, followers: int) -> dict[str, float]:
    store = cluster.work
    run_id = cluster.ptc.submit(cluster.record([])).run_id
    run = store.begin(run_id, Stage.GENERATE, 1)
    assert isinstance(run, Run)
    process = subprocess.Popen(
        [sys.executable, "-c", FOLLOW, run_id, str(followers)],
        env=cluster.environment,
        stdout=subprocess.PIPE,
    )
    until(lambda: store.redis.info("clients")["blocked_clients"] == followers)
    publisher = Publisher(store, Redactor(["a-secret-of-some-length"]), output=True)
    with publisher.reporting(run) as report:
        spent, started = 0.0, time.perf_counter()
        for number in range(EVENTS):
            began = time.perf_counter()
            report.tell(
                StreamEventType.TEST_PASSED, f"test {number} passed", test=f"tests/test_it.py::test_{number}"
            )
            spent += time.perf_counter() - began
        until(lambda: store.redis.xlen(events_key(run_id)) > EVENTS)
        sent = time.perf_counter() - started
        cluster.ptc.cancel(run_id, force=True)
        store.redis.hset(f"ptc:run:{run_id}", "lease_until", 0)
        store.end_if_over(run_id)
    heard = {int(line) for line in process.communicate()[0].split()}
    assert heard <= {EVENTS + 2}, heard
    return {"told, us each": round(1e6 * spent / EVENTS, 1), "sent, us each": round(1e6 * sent / EVENTS, 1)}


def _floor(cluster: Cluster) -> float:
    redis, text = cluster.ptc.store.redis, "x" * 300
    started = time.perf_counter()
    for _ in range(EVENTS):
        redis.xadd("floor", {"m": text})
    return round(1e6 * (time.perf_counter() - started) / EVENTS, 1)


if __name__ == "__main__":
    main()
