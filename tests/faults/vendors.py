"""Kills workers whose tests run at a vendor's, at any moment, and counts what they leave there.

Run as `.venv/bin/python tests/faults/vendors.py [--runs 20] [--kills 20] [--chance 0.1]`: the loopback Daytona, its real
SDK, two workers that are killed (SIGKILL) and started again; a share of its requests goes wrong. Progress goes to standard error, JSON to standard output.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster import Cluster
from daytona_faults import Fault
from daytona_workers import daytona, there
from faults.fleet import Server, Worker, end_all, wait_for_workers, wait_until
from support import answer_with, replaying

from ptc_contracts.work import WORKER_MS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daytona_server import DaytonaServer

    from ptc_contracts.work import WorkStore
    from roma_bridge import PlanHandle

GREEN = answer_with(tests__test_it_py="import time\n\ndef test_it():\n    time.sleep(1)")

_WORKERS = 2
_LONGEST_SECONDS = 300.0
_ALIVE_SECONDS = (0.5, 6.0)
"""How long a worker may have a sandbox before it is killed: while it is made, filled, used or removed."""


def storm(
    folder: Path, cache: Path, *, runs: int, kills: int, seed: int = 1, share: float = 0.0
) -> dict[str, Any]:
    """Let runs go through kills of their workers; tell what became of them, and what was left at the vendor's."""
    chance = random.Random(seed)  # noqa: S311 a seed gives the same storm again
    with replaying() as replay, daytona(cache, *_faults(share), start_seconds=0.3, seed=seed) as vendor:
        server = Server(log=folder / "server.log")
        server.start()
        cluster = Cluster(settings=server.settings, replay=replay, folder=folder, cache=cache)
        environment = there(cluster.environment, vendor, PTC_MAX_DELIVERIES="100", PTC_SANDBOX_POOL="1")
        workers = [
            Worker(log=folder / f"w{n}.log", queues="generate,sandbox", environment=environment)
            for n in range(_WORKERS)
        ]
        try:
            for worker in workers:
                worker.start()
            wait_for_workers(cluster.settings, workers)
            handles = [cluster.ptc.submit(cluster.record([GREEN], timeout_seconds=1200)) for _ in range(runs)]
            orphaned = _kill(workers, vendor, kills, chance)
            last_kill = time.monotonic()
            statuses = Counter(_status(handle) for handle in handles)
            calm = time.monotonic()
            wait_until(
                lambda: (
                    time.monotonic() > last_kill + WORKER_MS / 1000 and not _unclaimed(vendor, cluster.work)
                ),
                _LONGEST_SECONDS,
                "the reaper does not come",
            )
            reaped_after = time.monotonic() - calm
        finally:
            end_all(workers)
            server.kill()
        names = Counter(vendor.created)
        return {
            "runs": runs,
            "share_of_requests_that_go_wrong": share,
            "results": dict(statuses),
            "kills": kills,
            "sandboxes_created": sum(names.values()),
            "living_when_one_was_killed": len(orphaned),
            "duplicates": sum(number - 1 for number in names.values()),
            "seconds_from_last_result_to_reaped": round(reaped_after, 1),
            "left": len(vendor.left()),
        }


def _faults(share: float) -> list[Fault]:
    """Let so many of all requests go wrong, and as many again of those that can go wrong in ways of their own."""
    return [
        Fault(where=where, how=how, done=done, times=None, chance=chance)
        for where, how, done, chance in (
            ("*", "bad-gateway", False, share / 4),
            ("*", "bad-gateway", True, share / 4),
            ("*", "reset", False, share / 4),
            ("*", "reset", True, share / 4),
            ("download", "cut", False, share),
            ("delete", "lie", False, share),
            ("list", "stale", False, share),
        )
    ]


def _unclaimed(vendor: DaytonaServer, work: WorkStore) -> list[str]:
    """Name the sandboxes of workers that are gone."""
    makers = {box.name: box.labels["ptc-worker"] for box in vendor.sandboxes.values()}
    living = work.living(set(makers.values()))
    return [name for name, maker in makers.items() if maker not in living]


def _kill(workers: Sequence[Worker], vendor: DaytonaServer, kills: int, chance: random.Random) -> set[str]:
    """Kill one worker after the other; return the names of the sandboxes that lived when one died."""
    orphaned: set[str] = set()
    made = 0
    for number in range(kills):
        wait_until(
            lambda made=made: len(vendor.created) > made,  # type: ignore[misc]
            _LONGEST_SECONDS,
            "no worker makes sandboxes",
        )
        time.sleep(chance.uniform(*_ALIVE_SECONDS))  # a kill comes at any moment
        doomed = chance.choice(workers)
        doomed.kill()
        orphaned |= set(vendor.left())
        made = len(vendor.created)
        doomed.start()
        print(f"kill {number + 1} of {kills}: {len(vendor.left())} sandboxes", file=sys.stderr, flush=True)
    return orphaned


def _status(handle: PlanHandle) -> str:
    return handle.get(timeout=_LONGEST_SECONDS).status.value


def main() -> None:
    """Raise it in a folder of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--chance", type=float, default=0.0, help="the share of requests that go wrong")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts = storm(
            folder,
            folder / "cache",
            runs=options.runs,
            kills=options.kills,
            seed=options.seed,
            share=options.chance,
        )
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
