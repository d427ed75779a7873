"""The server as deploy/ starts it: with its configuration, and with a password that nobody else sees."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cluster import installed_programs
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from support import until

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(__file__).parents[2] / "deploy" / "redis-start.sh"
PASSWORD = 'unseen "by\\anybody" $HOME'


@contextmanager
def started(program: str, folder: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """Run the script for the time of the block, on a socket file instead of compose.yml's network and volume."""
    path = folder / "socket"
    options = ("--port", "0", "--unixsocket", str(path), "--dir", str(folder), "--set-proc-title", "no")
    (folder / "valkey-server").symlink_to(program)
    with subprocess.Popen(
        ["/bin/sh", str(SCRIPT), *options],
        env={"PATH": f"{folder}:/usr/bin:/bin", "REDIS_PASSWORD": PASSWORD},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            until(lambda: process.poll() is not None or answers(path))
            yield path, process
        finally:
            process.terminate()


def client_of(path: Path, password: str | None = None) -> Redis:
    """Connect without patience: a refused password would be tried again."""
    once = Retry(NoBackoff(), 0)
    return Redis(unix_socket_path=str(path), password=password, retry=once, decode_responses=True)


def answers(path: Path) -> bool:
    """Tell whether there is a server, whatever it says."""
    with suppress(RedisConnectionError), client_of(path) as client:
        try:
            client.ping()
        except AuthenticationError:
            return True
    return False


@pytest.mark.parametrize("program", installed_programs().values(), ids=installed_programs())
def test_the_server_demands_a_password_of_any_characters(program: str, tmp_path: Path) -> None:
    """Quotes, backslashes and dollars arrive as they are, and without the password nothing is answered."""
    with started(program, tmp_path) as (path, _):
        with client_of(path, PASSWORD) as client:
            kept = {**client.config_get("maxmemory-policy"), **client.config_get("appendfsync")}
        with client_of(path) as stranger, pytest.raises(AuthenticationError):
            stranger.ping()

    assert kept == {"maxmemory-policy": "noeviction", "appendfsync": "always"}


@pytest.mark.parametrize("program", installed_programs().values(), ids=installed_programs())
def test_the_password_is_not_among_the_servers_arguments(program: str, tmp_path: Path) -> None:
    """`ps` shows the arguments to everybody on the host."""
    with started(program, tmp_path) as (_, process):
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()

    assert b"--unixsocket" in arguments
    assert b"unseen" not in arguments
