"""Lets many plans wait behind one slow worker, counts their messages, then loses the messages by hand.

Run as `.venv/bin/python tests/faults/backlog.py [--plans 10000] [--minutes 5]`. First half: every waiting plan has
one message at the start, and one at the end. Second half: the queues are deleted, the model is made fast and more
workers come; every plan must still end. Progress goes to standard error, JSON to standard output; exit code 1 if
there were duplicates, or plans that did not end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster import Cluster
from faults.fleet import Server, Worker, end_all, wait_for_workers
from support import answer_with, replaying

from ptc_contracts.keys import ACTIVE_RUNS, BROKER_PREFIX

if TYPE_CHECKING:
    from redis import Redis

ANSWER = answer_with(value_py="VALUE = 1")

_SLOW_CALL = 20.0
_LOOK_SECONDS = 10.0


@dataclass(frozen=True)
class Count:
    """Plans and messages at one moment."""

    plans: int
    """Plans that have not ended."""
    waiting: int
    """Messages in the queues."""
    in_hand: int
    """Messages that a worker took and did not acknowledge yet."""
    duplicates: int
    """Messages beyond the first one for a run."""

    @classmethod
    def of(cls, client: Redis) -> Count:
        """Count, in one transaction."""
        lists = _queues(client)
        with client.pipeline(transaction=True) as pipe:
            pipe.zcard(ACTIVE_RUNS)
            pipe.hvals(f"{BROKER_PREFIX}unacked")
            for name in lists:
                pipe.lrange(name, 0, -1)
            plans, unacked, *queues = pipe.execute()
        queued = [json.loads(message)["headers"]["id"] for messages in queues for message in messages]
        taken = [json.loads(message)[0]["headers"]["id"] for message in unacked]
        each = Counter(queued + taken)
        return cls(plans, len(queued), len(taken), sum(each.values()) - len(each))


def _queues(client: Redis) -> list[str]:
    return list(client.scan_iter(f"{BROKER_PREFIX}*", count=1000, _type="LIST"))


def fill(cluster: Cluster, number: int) -> None:
    """Submit so many plans that need one model call and no sandbox."""
    plans = [
        cluster.record([ANSWER], enable_testing=False, timeout_seconds=3600, fallback_llm=None)
        for _ in range(number)
    ]
    with ThreadPoolExecutor(8) as pool:
        for done, _ in enumerate(pool.map(cluster.ptc.submit, plans), 1):
            if done % 1000 == 0:
                print(f"{done} plans submitted", file=sys.stderr, flush=True)


def watch(client: Redis, seconds: float) -> list[Count]:
    """Count again and again for so long."""
    counts, deadline = [Count.of(client)], time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(_LOOK_SECONDS, left))
        counts.append(Count.of(client))
        print(counts[-1], file=sys.stderr, flush=True)
    return counts


def drain(client: Redis, seconds: float) -> float:
    """Wait until no plan is left, at most so long; return how long it took."""
    started = time.monotonic()
    told = started
    while (left := client.zcard(ACTIVE_RUNS)) and time.monotonic() - started < seconds:
        if time.monotonic() - told > _LOOK_SECONDS:
            told = time.monotonic()
            print(f"{left} plans left", file=sys.stderr, flush=True)
        time.sleep(0.1)
    return time.monotonic() - started


def main() -> int:
    """Measure; return 1 if a plan had two messages, or did not end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plans", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--drain-minutes", type=float, default=20.0, help="longest wait for the last plan")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, replaying() as replay:
        folder = Path(name)
        server = Server(log=folder / "server.log")
        server.start()
        cluster = Cluster(settings=server.settings, replay=replay, folder=folder, cache=folder / "cache")
        environment = cluster.environment | {"PTC_LOG_LEVEL": "warning"}
        slow = Worker(
            log=folder / "slow.log",
            queues="generate",
            environment=environment | {"MAX_CONCURRENT_EXECUTIONS": "2"},
        )
        many = [
            Worker(
                log=folder / f"w{n}.log",
                queues="generate",
                environment=environment | {"MAX_CONCURRENT_EXECUTIONS": "16"},
            )
            for n in range(2)
        ]
        try:
            replay.latency = _SLOW_CALL
            fill(cluster, options.plans)
            slow.start()
            wait_for_workers(cluster.settings, [slow])
            with server.client() as client:
                counts = watch(client, options.minutes * 60)
                lost = _queues(client)
                client.delete(*lost)
                replay.latency = 0.0
                for worker in many:
                    worker.start()
                seconds = drain(client, options.drain_minutes * 60)
                left = int(client.zcard(ACTIVE_RUNS))
                calls = replay.stats()["calls"]
        finally:
            end_all([slow, *many])
            server.kill()
    facts = {
        "plans": options.plans,
        "minutes": options.minutes,
        "at_start": vars(counts[0]),
        "at_end": vars(counts[-1]),
        "most_duplicates": max(count.duplicates for count in counts),
        "beyond_the_plans": max(count.waiting + count.in_hand - count.plans for count in counts),
        "messages_deleted": counts[-1].waiting,
        "seconds_until_all_ended": round(seconds, 1),
        "never_ended": left,
        "calls": calls,
    }
    print(json.dumps(facts))
    return 1 if facts["most_duplicates"] or left else 0


if __name__ == "__main__":
    sys.exit(main())
