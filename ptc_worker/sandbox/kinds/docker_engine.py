"""A Docker engine: calls that keep nobody waiting, and commands in its containers."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from docker import APIClient
from docker.errors import APIError, DockerException, NotFound, StreamParseError
from docker.utils import kwargs_from_env
from requests.exceptions import Timeout
from urllib3.exceptions import HTTPError

from ptc_worker.sandbox.protocol import IsolationRefusedError, SandboxError, UnsureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ptc_worker.settings import WorkerSettings

T = TypeVar("T")

CALL_SECONDS = 30
"""What a request may take, and a small command."""

_USUAL_ADDRESS = "unix:///var/run/docker.sock"
_LOOK_SECONDS, _LOOKS = 0.02, 500
_MOST_BYTES = 2**28
_ENDED = {126, 137, 143}
"""Exit codes of what was not run, or ended from outside: by the engine, when a connection is lost."""


class Engine:
    """A Docker engine, and what is known of it."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.walled: bool | None = None
        """Whether its kernel has a Landlock that keeps commands from a courier of the same user; None if not known."""
        self._connecting = threading.Lock()
        self._connection: APIClient | None = None

    async def call(self, act: Callable[[APIClient], T]) -> T:
        """Do what blocks in a thread of its own: a pool's would be full of commands, or closed when the process ends.

        Raises:
            IsolationRefusedError: it cannot be reached.
            UnsureError, SandboxError: it gave no answer, or refuses.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def work() -> None:
            try:
                future.set_result(act(self._api()))
            except APIError as error:
                future.set_exception(meaning(error))
            except (OSError, HTTPError, StreamParseError) as error:
                future.set_exception(UnsureError(f"the Docker engine does not answer: {error}"))
            except DockerException as error:
                future.set_exception(SandboxError(f"the Docker engine cannot be asked: {error}"))
            except BaseException as error:  # noqa: BLE001 it is raised where it is waited for
                future.set_exception(error)

        threading.Thread(target=work, name="docker", daemon=True).start()
        return await asyncio.wrap_future(future)

    def _api(self) -> APIClient:
        with self._connecting:
            if self._connection is None:
                self._connection = _connected(self.settings.docker_host)
            return self._connection


def _connected(host: str | None) -> APIClient:
    address = host or _USUAL_ADDRESS
    environment = {**os.environ, "DOCKER_HOST": address}
    try:
        _knock(address)
        return APIClient(version="auto", timeout=CALL_SECONDS, **kwargs_from_env(environment=environment))
    except (DockerException, OSError) as error:
        if isinstance(error.__cause__, Timeout):
            raise UnsureError(f"the Docker engine at {address} does not answer: {error}") from error
        raise IsolationRefusedError(
            f"no Docker engine can be reached at {address}: {error}. Start one (systemctl start docker) and let this "
            "user reach it, name its address in DOCKER_HOST, or choose another kind of sandbox with PTC_SANDBOX"
        ) from error


def _knock(address: str) -> None:
    """Try a local address first: the SDK wraps a plain reason in three others, and leaves its socket open."""
    if address.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(address.removeprefix("unix://"))


def meaning(error: APIError) -> SandboxError:
    """Say in our words what it answered."""
    return SandboxError(f"the Docker engine says: {error.explanation or error}")


def remove(api: APIClient, container: str) -> None:
    """Kill and remove a container; what counts is that the engine does not know it any more."""
    with suppress(APIError):
        api.remove_container(container, v=True, force=True)
    for _ in range(_LOOKS):
        try:
            api.inspect_container(container)
        except NotFound:
            return
        time.sleep(_LOOK_SECONDS)
    raise UnsureError("the container is still there")


class Command:
    """A command in a container, on a connection of its own."""

    def __init__(
        self, api: APIClient, container: str, user: str, folder: str, command: Sequence[str]
    ) -> None:
        self._api = api
        self._id = api.exec_create(container, list(command), stdin=True, workdir=folder, user=user)["Id"]
        self._stream = api.exec_start(self._id, socket=True)
        self._socket: socket.socket = getattr(self._stream, "_sock", self._stream)
        self._socket.settimeout(None)  # whoever waits has a limit of his own, and cuts it

    def cut(self) -> None:
        """End the connection, whoever is reading."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def ended(self, given: bytes) -> tuple[int, bytes, bytes]:
        """Give it something to read, and wait for its end."""
        try:
            return self._ended(given)
        finally:
            self._stream._response.close()  # noqa: SLF001 where the SDK keeps what holds the socket

    def _ended(self, given: bytes) -> tuple[int, bytes, bytes]:
        self._socket.sendall(given)
        streams: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        for stream, part in self._frames():
            streams[stream] += part
            if sum(map(len, streams.values())) > _MOST_BYTES:
                raise SandboxError("a command in the container does not stop to talk")
        return self._code(), bytes(streams[1]), bytes(streams[2])

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        while header := self._bytes(8):
            stream, size = struct.unpack(">BxxxL", header)
            yield stream, self._bytes(size)

    def _bytes(self, size: int) -> bytes:
        """Read so many bytes, none at the end."""
        parts, left = [], size
        while left:
            part = self._socket.recv(min(left, 2**20))
            if not part and left == size:
                return b""
            if not part:
                raise UnsureError("the connection to the Docker engine was cut")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _code(self) -> int:
        """Ask for its exit code; the engine may learn of the end a little later than we do."""
        for _ in range(_LOOKS):
            told = self._api.exec_inspect(self._id)
            if told["ExitCode"] in _ENDED:
                break
            if not told["Running"] and told["ExitCode"] is not None:
                return int(told["ExitCode"])
            time.sleep(_LOOK_SECONDS)
        raise UnsureError("the connection to the Docker engine was cut")
