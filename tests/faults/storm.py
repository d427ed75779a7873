"""Throws faults at real workers, a real server and real clients, and checks what must hold when the dust settles.

Run as `.venv/bin/python tests/faults/storm.py --plans 300 --submitters 4 --workers 3 --faults 60 --seed 1 --shape
split`. Progress goes to standard error, one JSON report to standard output; exit code 1 if an invariant broke.
`--transport stock` and `--without-leases` take away what protects the runs: then invariants must break.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import queue
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
from cluster import Cluster
from faults.fleet import Mortal, Server, Submitter, Worker, end_all, wait_for_workers
from faults.invariants import Evidence, Strike, judge, read_kept, still_moving
from faults.plans import make_task
from support import replaying

from ptc_contracts.work import LEASE_MS
from ptc_worker.llm.replay.faults import Fault, FaultPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ptc_worker.llm.replay.server import ReplayServer

FREEZE_SECONDS = LEASE_MS / 1000 + 2
"""How long a worker, or a model's answer, is held up: longer than a lease."""
LONGEST_SHUTDOWN = 60.0
"""Seconds a worker may take to end after SIGTERM."""

_TICK_SECONDS = 0.02
_QUIET_SECONDS = 40.0
_CROWD = 5
"""Plans under way for each worker, beyond which the next fault waits: else the last plans would see none."""
_LONGEST_LULL = 20.0
_LONGEST_WAIT = 5.0
_FAULT_RATE = 0.1
"""Share of the models' answers that fail in passing, beside those that a fault of the storm spoils."""
_AGAIN = 3
"""Answered plans that a restarted submitter submits once more."""

SHAPES = {"both": ("generate,sandbox",), "split": ("generate", "sandbox")}
"""The queues of the first worker, the second one, and so on round."""

APPS = {"ours": "ptc_worker", "stock": "faults.stock_app", "leaseless": "faults.leaseless_app"}


class Kind(str, Enum):
    """What can go wrong."""

    WORKER_KILLED = "worker_killed"
    WORKER_FROZEN = "worker_frozen"
    WORKER_TERMINATED = "worker_terminated"
    SANDBOX_KILLED = "sandbox_killed"
    CONNECTIONS_KILLED = "connections_killed"
    SERVER_KILLED = "server_killed"
    SERVER_PAUSED = "server_paused"
    SERVER_FROZEN = "server_frozen"
    MODEL_FAULTS = "model_faults"
    MODEL_SLOW = "model_slow"
    SUBMITTER_KILLED = "submitter_killed"
    CLAIMANT_KILLED = "claimant_killed"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How hard a storm is."""

    plans: int
    submitters: int
    workers: int
    faults: int
    seed: int
    shape: str
    app: str = APPS["ours"]
    patience: float = 120.0
    """Seconds without any answer, after the last fault, until what is still waited for counts as hanging."""
    pace: tuple[float, float] = (0.8, 2.4)
    """Shortest and longest seconds between two faults."""


class Storm:
    """Plans go out, faults come down, answers come in: all from one thread, tick by tick."""

    def __init__(self, options: Options, folder: Path, replay: ReplayServer, cache: Path) -> None:
        self.options = options
        self.chance = random.Random(f"{options.seed} {options.shape}")  # noqa: S311 a fault is no secret
        self.replay = replay
        self.folder = folder
        self.server = Server(log=folder / "server.log")
        self.server.start()
        cluster = Cluster(settings=self.server.settings, replay=replay, folder=folder, cache=cache)
        environment = cluster.environment | {"PTC_LOG_LEVEL": "info"}
        shape = SHAPES[options.shape]
        self.workers = [
            Worker(
                log=folder / f"w{n}.log",
                queues=shape[n % len(shape)],
                app=options.app,
                environment=environment,
            )
            for n in range(options.workers)
        ]
        self.heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.submitters = [
            Submitter(log=folder / f"s{n}.log", environment=environment, hear=self.heard.put)
            for n in range(options.submitters)
        ]
        name = f"{options.seed} {options.shape}"
        self.tasks = [make_task(name, number, self.chance) for number in range(options.plans)]
        replay.recordings |= {task.content: list(task.answers) for task in self.tasks}
        self.given: dict[str, list[dict[str, Any]]] = {s.name: [] for s in self.submitters}
        self.answers: dict[str, list[dict[str, Any]]] = {}
        self.strikes: list[Strike] = []
        self.mishaps: list[str] = []
        self._released = 0
        self._deck: list[Kind] = []
        self._scripted_until_call = 0
        self._slow_until_call = 0
        self._in_hand: set[str] = set()
        self._stopping: dict[str, Strike] = {}
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._next_strike = self._last_heard = self._started = time.monotonic()

    # ── the course of a storm ──

    def run(self) -> Evidence:
        """Let it rage, wait until it is quiet, and gather what can be known."""
        try:
            for worker in self.workers:
                worker.start()
            wait_for_workers(self.server.settings, self.workers)
            for submitter in self.submitters:
                submitter.start()
            self._release(self.submitters)  # one plan in calm weather: what happens once per installation
            while self._waiting():
                self._tick()
            self._started = time.monotonic()
            while not self._over():
                self._feed()
                self._strike_when_due()
                self._tick()
            self.say(f"over after {time.monotonic() - self._started:.0f} s: waiting for quiet")
            self._calm_down()
            return self._evidence(time.monotonic() - self._started)
        finally:
            self.server.signal(signal.SIGCONT)
            end_all(self.workers)
            for one in (*self.submitters, self.server):
                one.kill()

    def say(self, line: str) -> None:
        """Tell whoever watches."""
        print(f"[{time.monotonic() - self._started:7.1f} s] {line}", file=sys.stderr, flush=True)

    def _tick(self) -> None:
        """Do what is due, hear what was said, and look after who died."""
        slow = len(self.replay.journal) < self._slow_until_call
        self.replay.latency = FREEZE_SECONDS if slow else random.uniform(0.2, 0.6)  # noqa: S311 nothing hangs on it
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()
        while not self.heard.empty():
            self._hear(self.heard.get())
        self._see_off_the_stopping()
        self._look_for_mishaps()
        time.sleep(_TICK_SECONDS)

    def _hear(self, message: dict[str, Any]) -> None:
        self._last_heard = time.monotonic()
        self.answers.setdefault(message["execution_id"], []).append(message)
        if len(self.answers) % 25 == 0:
            self.say(
                f"{len(self.answers)} answers, {self._released} plans out, {len(self.strikes)} faults done"
            )

    def _waiting(self) -> list[str]:
        """List the executions that have no answer yet."""
        given = (plan["execution_id"] for plans in self.given.values() for plan in plans)
        return [execution for execution in given if execution not in self.answers]

    def _over(self) -> bool:
        if len(self.strikes) < self.options.faults or self._released < len(self.tasks):
            return False
        return not self._waiting() or time.monotonic() - self._last_heard > self.options.patience

    def _calm_down(self) -> None:
        """Undo every fault, and give what is left time to end."""
        while self._later or self._stopping:
            self._tick()
        with self.server.client() as client:
            deadline = time.monotonic() + _QUIET_SECONDS
            while still_moving(client) and time.monotonic() < deadline:
                self._tick()

    def _evidence(self, seconds: float) -> Evidence:
        with self.server.client() as client:
            kept = read_kept(client)
        plans = [plan["execution_id"] for plans in self.given.values() for plan in plans]
        return Evidence(
            tasks=self.tasks,
            executions={execution: int(execution.partition("-")[0]) for execution in plans},
            answers=self.answers,
            strikes=self.strikes,
            mishaps=self.mishaps,
            calls=list(self.replay.journal),
            kept=kept,
            logs=[worker.log for worker in self.workers],
            seconds=seconds,
        )

    # ── plans ──

    def _feed(self) -> None:
        """Give out as many plans as faults have come down: each fault finds some under way."""
        ration = len(self.tasks) * (len(self.strikes) + 1) / max(1, self.options.faults)
        while self._released < min(len(self.tasks), ration):
            self._release(self.submitters)

    def _release(self, to: Sequence[Submitter]) -> None:
        number = self._released
        self._released += 1
        self._give(number, to)

    def _give(self, number: int, to: Sequence[Submitter]) -> None:
        for submitter in to:
            execution = {"execution_id": f"{number}-{submitter.name}"}
            plan = self.tasks[number].plan.model_copy(update=execution).model_dump(mode="json")
            self.given[submitter.name].append(plan)
            if submitter.running:
                submitter.tell(plan=plan)

    # ── faults ──

    def _strike_when_due(self) -> None:
        if len(self.strikes) >= self.options.faults or time.monotonic() < self._next_strike:
            return
        under_way = len({execution.partition("-")[0] for execution in self._waiting()})
        if not under_way and self._released < len(self.tasks):
            self._release(self.submitters)  # a fault should find something to break
            self._next_strike = time.monotonic() + self.chance.uniform(0.2, 1.0)
            return
        crowded = under_way > _CROWD * len(self.workers)
        if crowded and time.monotonic() < self._next_strike + _LONGEST_LULL:
            return
        if not self._deck:
            self._deck = list(Kind)
            self.chance.shuffle(self._deck)
        overdue = time.monotonic() - self._next_strike
        for kind in (
            *self._deck,
            *(Kind if overdue > _LONGEST_WAIT else ()),
        ):  # some may have no chance any more
            if target := getattr(self, f"_{kind.value}")():
                self._deck = [left for left in self._deck if left is not kind]
                self.say(f"fault {len(self.strikes)}: {kind.value} {target}")
                self._next_strike = time.monotonic() + self.chance.uniform(*self.options.pace)
                return

    def _note(self, kind: Kind, target: str, *, lasting: bool = False) -> Strike:
        now = time.monotonic()
        strike = Strike(kind=kind.value, target=target, at=now, until=None if lasting else now)
        self.strikes.append(strike)
        return strike

    def _in(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), action))

    def _restart_in(self, seconds: float, one: Server | Worker) -> None:
        """Start a process again after a while; until then no other fault is for it."""
        self._in_hand.add(one.name)

        def start() -> None:
            one.start()
            self._in_hand.discard(one.name)

        self._in(seconds, start)

    def _freeze(self, one: Mortal, strike: Strike, seconds: float) -> None:
        """Stop a process and let it go on after a while, as a machine that was suspended does."""
        self._in_hand.add(one.name)
        one.signal(signal.SIGSTOP)

        def thaw() -> None:
            one.signal(signal.SIGCONT)
            strike.until = time.monotonic()
            self._in_hand.discard(one.name)

        self._in(seconds, thaw)

    def _worker_to_hit(self) -> Worker | None:
        """Choose a worker that asks a model or runs tests just now; None if there is none."""
        in_flight = self.replay.stats()["in_flight"]
        able = [worker for worker in self.workers if worker.name not in self._in_hand]
        busy = [worker for worker in able if worker.model in in_flight or _sandboxes(worker)]
        return self.chance.choice(busy) if busy else None

    def _worker_killed(self) -> str:
        if worker := self._worker_to_hit():
            worker.kill()
            self._note(Kind.WORKER_KILLED, worker.model)
            self._restart_in(self.chance.uniform(0.3, 2.0), worker)
            return worker.model
        return ""

    def _worker_frozen(self) -> str:
        if worker := self._worker_to_hit():
            strike = self._note(Kind.WORKER_FROZEN, worker.model, lasting=True)
            self._freeze(worker, strike, FREEZE_SECONDS)
            return worker.model
        return ""

    def _worker_terminated(self) -> str:
        if worker := self._worker_to_hit():
            self._in_hand.add(worker.name)
            self._stopping[worker.name] = self._note(Kind.WORKER_TERMINATED, worker.model, lasting=True)
            worker.signal(signal.SIGTERM)
            return worker.model
        return ""

    def _see_off_the_stopping(self) -> None:
        """Start those again that have ended after SIGTERM; end those that do not."""
        for worker in self.workers:
            strike = self._stopping.get(worker.name)
            if strike is None:
                continue
            overdue = time.monotonic() - strike.at > LONGEST_SHUTDOWN
            if overdue and worker.running:
                self.mishaps.append(f"{worker.model} did not end within {LONGEST_SHUTDOWN} s of SIGTERM")
                worker.kill()
            if not worker.running:
                strike.until = time.monotonic()
                self.say(f"{worker.model} ended {strike.until - strike.at:.1f} s after SIGTERM")
                del self._stopping[worker.name]
                self._restart_in(self.chance.uniform(0.0, 1.0), worker)

    def _sandbox_killed(self) -> str:
        """Kill a sandbox of ours, if one runs something right now."""
        for worker in self.workers:
            if worker.name not in self._in_hand and (busy := _sandboxes(worker)):
                self._note(Kind.SANDBOX_KILLED, worker.model)
                busy[0].kill()
                return worker.model
        return ""

    def _connections_killed(self) -> str:
        if "server" in self._in_hand:
            return ""
        self._note(Kind.CONNECTIONS_KILLED, "server")
        with self.server.client() as client:
            for kind in ("normal", "pubsub"):
                client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        return "server"

    def _server_killed(self) -> str:
        if "server" in self._in_hand:
            return ""
        strike = self._note(Kind.SERVER_KILLED, "server")
        self.server.kill()
        away = self.chance.uniform(0.3, 1.5)
        strike.until = strike.at + away
        self._restart_in(away, self.server)
        return "server"

    def _server_paused(self) -> str:
        if "server" in self._in_hand:
            return ""
        milliseconds = self.chance.randint(1000, 3000)
        strike = self._note(Kind.SERVER_PAUSED, f"{milliseconds} ms")
        strike.until = strike.at + milliseconds / 1000
        with self.server.client() as client:
            client.client_pause(milliseconds)
        return f"{milliseconds} ms"

    def _server_frozen(self) -> str:
        if "server" in self._in_hand:
            return ""
        seconds = self.chance.uniform(3.0, 12.0)
        strike = self._note(Kind.SERVER_FROZEN, f"{seconds:.1f} s", lasting=True)
        self._freeze(self.server, strike, seconds)
        return f"{seconds:.1f} s"

    def _model_faults(self) -> str:
        """Let the next requests go wrong: fewer than it takes to give a provider up."""
        if len(self.replay.journal) < self._scripted_until_call:
            return ""
        faults: list[Fault | None] = [
            self.chance.choice(FaultPlan.kinds) for _ in range(self.chance.randint(1, 3))
        ]
        self._scripted_until_call = len(self.replay.journal) + len(faults)
        self.replay.faults.script(faults)
        names = ", ".join(fault.value for fault in faults if fault)
        self._note(Kind.MODEL_FAULTS, names)
        return names

    def _model_slow(self) -> str:
        """Let the next two answers take longer than a lease: no reason for anybody to take over."""
        self._note(Kind.MODEL_SLOW, f"{FREEZE_SECONDS} s")
        self._slow_until_call = len(self.replay.journal) + 2
        return f"{FREEZE_SECONDS} s"

    def _submitter_killed(self) -> str:
        able = [s for s in self.submitters if s.name not in self._in_hand]
        if not able:
            return ""
        submitter = self.chance.choice(able)
        self._note(Kind.SUBMITTER_KILLED, submitter.name)
        submitter.kill()
        self._begin_again(submitter)
        return submitter.name

    def _claimant_killed(self) -> str:
        """Let a submitter make a run of its own and die before it has sent the message; the others join."""
        able = [s for s in self.submitters if s.name not in self._in_hand]
        if not able or self._released == len(self.tasks) or "server" in self._in_hand:
            return ""
        submitter = self.chance.choice(able)
        self._in_hand.add(submitter.name)
        strike = self._note(Kind.CLAIMANT_KILLED, submitter.name, lasting=True)
        number = self._released
        submitter.tell(arm=True)
        self._release([submitter])
        self._in(_TICK_SECONDS, lambda: self._bury(submitter, strike, number))
        return submitter.name

    def _bury(self, submitter: Submitter, strike: Strike, number: int) -> None:
        """Once an armed submitter has died, start it again and let the others join; not all too late."""
        if submitter.running and time.monotonic() - strike.at < _LONGEST_WAIT:
            self._in(_TICK_SECONDS, lambda: self._bury(submitter, strike, number))
            return
        self.say(
            f"{submitter.name} died {'by our hand' if submitter.running else 'between claim and message'}"
        )
        strike.until = time.monotonic()
        submitter.kill()
        self._give(number, [other for other in self.submitters if other is not submitter])
        self._begin_again(submitter)

    def _begin_again(self, submitter: Submitter) -> None:
        """Start a submitter again; it knows its plans and not their answers, nor those of the last few."""
        self._in_hand.add(submitter.name)

        def start() -> None:
            submitter.start()
            plans = self.given[submitter.name]
            answered = [plan for plan in plans if plan["execution_id"] in self.answers]
            waiting = [plan for plan in plans if plan["execution_id"] not in self.answers]
            for plan in (*waiting, *answered[-_AGAIN:]):
                submitter.tell(plan=plan)
            self._in_hand.discard(submitter.name)

        self._in(0.3, start)

    def _look_for_mishaps(self) -> None:
        """Note who died by none of our faults, and start it again."""
        for one in (*self.workers, *self.submitters, self.server):
            if one.name in self._in_hand or one.running:
                continue
            code = one.process.returncode if one.process else None
            tail = one.log.read_text(errors="replace")[-2000:]
            self.mishaps.append(f"{one.name} died by itself, exit code {code}: {tail}")
            self.say(f"{one.name} died by itself")
            if isinstance(one, Submitter):
                self._begin_again(one)
            else:
                one.start()


def _sandboxes(worker: Worker) -> list[psutil.Process]:
    """Find a worker's sandboxes in which a command runs; others are prepared for later, and nobody would miss them."""
    found = []
    if worker.process is not None:
        with suppress(psutil.Error):
            for child in psutil.Process(worker.process.pid).children():
                with suppress(psutil.Error):
                    if any("inside.agent" in part for part in child.cmdline()):
                        without_command = 1 if child.name() == "bwrap" else 0
                        if len(child.children(recursive=True)) > without_command:
                            found.append(child)
    return found


def raise_storm(options: Options, folder: Path, cache: Path) -> dict[str, Any]:
    """Run a storm in a folder; return its report. `cache` keeps the sandboxes' environments."""
    passing = FaultPlan(rate=_FAULT_RATE, seed=options.seed)
    with replaying(chunk_chars=40, chunk_seconds=0.02, faults=passing) as replay:
        storm = Storm(options, folder, replay, cache)
        evidence = storm.run()
    counts = Counter(strike.kind for strike in storm.strikes)
    facts = {
        "seed": options.seed,
        "shape": options.shape,
        "app": options.app,
        "workers": options.workers,
        "submitters": options.submitters,
        "plans": options.plans,
        "faults": sum(counts.values()),
        "faults_by_kind": dict(sorted(counts.items())),
    }
    return facts | judge(evidence)


def main() -> int:
    """Run one storm from the command line; return 1 if an invariant broke."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plans", type=int, default=300)
    parser.add_argument("--submitters", type=int, default=4)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="default: a new one")  # noqa: S311
    parser.add_argument("--shape", choices=sorted(SHAPES), default="both", help="queues of each worker")
    parser.add_argument("--transport", choices=("ours", "stock"), default="ours")
    parser.add_argument("--without-leases", action="store_true")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds until waiting is hanging")
    chosen = parser.parse_args()
    options = Options(
        plans=chosen.plans,
        submitters=chosen.submitters,
        workers=chosen.workers,
        faults=chosen.faults,
        seed=chosen.seed,
        shape=chosen.shape,
        app=APPS["leaseless" if chosen.without_leases else chosen.transport],
        patience=chosen.patience,
    )
    folder = Path(tempfile.mkdtemp(prefix="ptc-storm-"))
    print(f"seed {options.seed}, logs in {folder}", file=sys.stderr)
    report = raise_storm(options, folder, folder / "cache")
    print(json.dumps(report, indent=2))
    if report["broken"]:
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
