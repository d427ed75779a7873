"""Everything a plan needs on this machine, for the time of one command: server, worker and, on demand, replay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptc_contracts import ConfigurationError
from ptc_contracts.settings import RedisSettings
from roma_bridge.client import PTC
from roma_bridge.embedded import die_with_parent, embedded_server, state_directory
from roma_bridge.scratch import scratch_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_STOP_SECONDS = 5.0

_REPLAY_BASE_URLS = {
    "ANTHROPIC_BASE_URL": "",
    "KIMI_BASE_URL": "/v1",
    "OPENAI_BASE_URL": "/v1",
    "OPENROUTER_BASE_URL": "/v1",
}


@dataclass(frozen=True)
class LocalStack:
    """What runs for this command."""

    ptc: PTC
    worker: subprocess.Popen[bytes]
    log: Path
    """Where the worker writes what it does."""
    lasts: bool
    """Whether the server keeps its runs when this command has ended."""

    def check(self) -> None:
        """Make sure that the worker lives.

        Raises:
            ConfigurationError: it has ended; the message tells by which signal, or what its exit code and last line are.
        """
        if (code := self.worker.poll()) is not None:
            raise ConfigurationError(f"the worker ended: {self._ending(code)}")

    def _ending(self, code: int) -> str:
        if code == -signal.SIGKILL:  # what it wrote before has nothing to do with it
            return "SIGKILL; somebody killed it, or the machine's memory was full"
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{how}: {_last_line(self.log.read_text(errors='replace'))}"


def _last_line(text: str) -> str:
    """Give the line in which a program says why it ended, or what its traceback ends with."""
    lines = text.strip().splitlines()
    return lines[-1].removeprefix(f"{ModuleNotFoundError.__name__}: ") if lines else "it wrote nothing"


@contextmanager
def local_stack(recordings: Path | None = None) -> Iterator[LocalStack]:
    """Start what is missing, and stop it again.

    The server is the one of `REDIS_URL`, or the user's embedded one. With recordings, models are answered by
    a replay server and an embedded server lives in a temporary directory, so that nothing replayed is found
    in the user's cache later.

    Raises:
        ConfigurationError: something cannot be started; the message tells what.
    """
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder())
        environment = {**os.environ, "TMPDIR": str(scratch)}  # what a killed worker leaves goes with it
        if os.environ.get("REDIS_URL"):
            settings = RedisSettings.from_environment()
        else:
            directory = state_directory() if recordings is None else scratch / "server"
            settings = stack.enter_context(embedded_server(directory, dies_with_us=recordings is not None))
        environment["REDIS_URL"] = settings.url
        environment["PTC_SHUTDOWN_GRACE"] = "0"  # whoever ends the command has ended what it was for
        if recordings is not None:
            address = stack.enter_context(_replay_server(recordings))
            environment |= {name: address + path for name, path in _REPLAY_BASE_URLS.items()}
            environment |= {name.replace("BASE_URL", "API_KEY"): "" for name in _REPLAY_BASE_URLS}
        log = scratch / "worker.log"
        worker = stack.enter_context(_worker(environment, log))
        lasts = recordings is None or bool(os.environ.get("REDIS_URL"))
        yield LocalStack(ptc=PTC(settings), worker=worker, log=log, lasts=lasts)


@contextmanager
def _worker(environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    options = ("--without-mingle", "--without-gossip", "-n", f"local-{os.getpid()}@%h")
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 our own worker
            [sys.executable, "-m", "celery", "-A", "ptc_worker", "worker", *options],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 the process has one thread by then
        )
    with _stopped_at_end(process):
        yield process


@contextmanager
def _replay_server(recordings: Path) -> Iterator[str]:
    process = subprocess.Popen(  # noqa: S603 our own server
        [sys.executable, "-m", "ptc_worker.llm.replay.server", str(recordings)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 the process has one thread by then
        text=True,
    )
    with _stopped_at_end(process):
        assert process.stdout is not None  # noqa: S101 it is a pipe
        line = process.stdout.readline()
        if not line:
            assert process.stderr is not None  # noqa: S101 it is a pipe
            told = process.stderr.read().strip()
            raise ConfigurationError(_last_line(told) if "Traceback" in told else told)
        yield next(word for word in line.split() if word.startswith("http://"))


@contextmanager
def _stopped_at_end(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> Iterator[None]:
    """End a process with the block: politely, then for good. What it started ends with it."""
    with process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
