"""A Redis server, workers and submitters as processes that may be killed, frozen and started again."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from ptc_contracts.settings import RedisSettings
from roma_bridge import PTC
from roma_bridge.embedded import server_program

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TESTS = Path(__file__).parents[1]

START_SECONDS = 180.0
STOP_SECONDS = 30.0

_BOUND_TO_US = (
    "import ctypes, os, sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, 9)\n"  # PR_SET_PDEATHSIG, SIGKILL
    "os.execvp(sys.argv[1], sys.argv[1:])\n"
)
"""Runs a command that dies with the thread that started it: a killed test leaves nothing behind."""


@dataclass
class Mortal(ABC):
    """A process that may end at any moment, by us or by itself."""

    log: Path
    process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def start(self) -> None:
        """Start it, or another one in its place."""

    @property
    def name(self) -> str:
        """What it is called, whichever process it is."""
        return self.log.stem

    @property
    def running(self) -> bool:
        """Whether it is there, frozen or not."""
        return self.process is not None and self.process.poll() is None

    def signal(self, signum: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(signum)

    def kill(self) -> None:
        """End it as the out-of-memory killer does, frozen or not."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stdin is not None:
                with suppress(BrokenPipeError):
                    self.process.stdin.close()

    def _launch(
        self, command: Sequence[str], environment: dict[str, str], stdin: int, stdout: int | IO[bytes]
    ) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BOUND_TO_US, *command],
                env=environment,
                stdin=stdin,
                stdout=stdout,
                stderr=log,
                cwd=self.log.parent,
            )


@dataclass
class Server(Mortal):
    """A server that keeps every write on disk and comes back at the same address."""

    port: int = 0

    @property
    def settings(self) -> RedisSettings:
        """How to reach it."""
        return RedisSettings(url=f"redis://127.0.0.1:{self.port}/0")

    def client(self) -> Redis:
        """Connect, without patience."""
        once = Retry(NoBackoff(), 0)
        return Redis.from_url(self.settings.url, socket_timeout=10, retry=once, decode_responses=True)

    def start(self) -> None:
        """Start it, at its old port if it had one, and wait until its log is read."""
        self.port = self.port or _free_port()
        persistent = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")
        address = ("--bind", "127.0.0.1", "--port", str(self.port))
        places = ("--dir", str(self.log.parent), "--logfile", str(self.log))
        command = [server_program(), *address, *places, *persistent, "--maxmemory-policy", "noeviction"]
        self._launch(command, dict(os.environ), subprocess.DEVNULL, subprocess.DEVNULL)
        wait_until(self.answers, START_SECONDS, f"the server does not answer: see {self.log}")

    def answers(self) -> bool:
        """Tell whether it takes commands."""
        with self.client() as client:
            try:
                return bool(client.ping())
            except RedisError:
                return False


@dataclass
class Worker(Mortal):
    """One place for a worker; each process that takes it asks for a model of its own name."""

    queues: str = ""
    app: str = "ptc_worker"
    environment: dict[str, str] = field(default_factory=dict)
    generation: int = 0

    @property
    def model(self) -> str:
        """What the replay server knows the present process by."""
        return f"{self.name}-{self.generation}"

    @property
    def node(self) -> str:
        """What Celery knows the present process by."""
        return f"{self.model}@storm"

    def start(self) -> None:
        """Start another process in this place; it answers some seconds later."""
        self.generation += 1
        command = [sys.executable, "-m", "celery", "-A", self.app, "worker", "-n", self.node]
        environment = self.environment | {
            "ANTHROPIC_MODEL": self.model,
            "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent))),
        }
        options = ["--without-mingle", "-Q", self.queues]
        self._launch([*command, *options], environment, subprocess.DEVNULL, subprocess.DEVNULL)


@dataclass
class Submitter(Mortal):
    """A client process that submits every plan it is told of and waits for each result."""

    environment: dict[str, str] = field(default_factory=dict)
    hear: Callable[[dict[str, Any]], None] = print
    """Takes each message, in a thread of its own."""

    def start(self) -> None:
        """Start the process."""
        command = [sys.executable, str(Path(__file__).with_name("submitter.py")), self.name]
        environment = self.environment | {"PYTHONPATH": str(TESTS.parent)}
        self._launch(command, environment, subprocess.PIPE, subprocess.PIPE)
        assert self.process is not None
        threading.Thread(target=self._listen, args=(self.process.stdout,), daemon=True).start()

    def tell(self, **order: Any) -> None:
        """Give it an order; one that is dead misses it."""
        assert self.process is not None
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()

    def _listen(self, stdout: IO[bytes]) -> None:
        with stdout:
            for line in stdout:
                if line.endswith(b"\n"):  # else it was killed in the middle of a line
                    self.hear(json.loads(line))


def wait_for_workers(settings: RedisSettings, workers: Sequence[Worker]) -> None:
    """Return once all workers answer.

    Raises:
        AssertionError: one ended, or took too long.
    """
    waiting = {worker.node: worker for worker in workers}
    control = PTC(settings).app.control

    def all_answered() -> bool:
        for answer in control.ping(destination=list(waiting), timeout=0.5) or []:
            waiting.pop(next(iter(answer)), None)
        ended = [worker.log.read_text() for worker in waiting.values() if not worker.running]
        assert not ended, f"a worker ended at its start:\n{ended[0]}"
        return not waiting

    wait_until(all_answered, START_SECONDS, "the workers do not answer")


def wait_until(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Return once a condition holds.

    Raises:
        AssertionError: with these words, when it did not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


def end_all(workers: Sequence[Mortal]) -> None:
    """End processes politely, and those that do not listen for good."""
    for worker in workers:
        if worker.running:
            worker.signal(signal.SIGCONT)
            worker.signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for worker in workers:
        if worker.process is not None:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()


def _free_port() -> int:
    """Find a port below those that the system gives to clients: while the server is away, one of them may get it."""
    for port in random.sample(range(15_000, 32_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")
