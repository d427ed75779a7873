"""Sandboxes in containers of a Docker engine, through its API.

A container has no network, no privileges and nothing of the host's; whatever can be written in it is memory. It ends by
itself after a while, should its worker not be there any more to end it.
"""

from __future__ import annotations

import asyncio
import io
import re
import tarfile
import threading
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from zlib import crc32

import structlog
from docker.errors import APIError, ImageNotFound, NotFound
from docker.types import LogConfig, Ulimit
from docker.utils import parse_repository_tag

from ptc_worker.busy import BusyError
from ptc_worker.once import once
from ptc_worker.sandbox.inside.confine import SCOPE_ABI
from ptc_worker.sandbox.inside.guard import MAX_INODES
from ptc_worker.sandbox.inside.limits import PROCESSES
from ptc_worker.sandbox.kinds.docker_engine import CALL_SECONDS, Command, Engine, meaning, remove
from ptc_worker.sandbox.machine import BASE, again
from ptc_worker.sandbox.protocol import IsolationRefusedError, SandboxError, UnsureError
from ptc_worker.sandbox.vendors import Found, RemoteKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from docker import APIClient

    from ptc_worker.sandbox.protocol import Purpose
    from ptc_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

HOME = "/sandbox"
"""Where commands start; below it is one file system in memory for the courier, and one for what it runs."""

CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID")
"""What the courier keeps where it must be root, for want of Landlock; commands have another user, and none of it."""

PACKAGES_MB, ROOM_MB = 1024, 256
"""What packages that the image lacks may take while they are unpacked, and how much of it commands do not feel."""

NOBODY = "65534:65534"
"""Who the first process is: not the user of commands, so that these cannot even look at it."""

_LIFE_SECONDS = 2 * 3600
"""What a container lives at most, beside the time that its tests may take."""

_FIRST_USER, _USERS = 20_000, 40_000

_PULL_SECONDS = 30.0
"""When it is worth pulling again from a registry that had no answer."""

_NOT_NOW = re.compile(r"toomanyrequests|too many requests|unexpected .*status.* 5\d\d", re.IGNORECASE)
_NOWHERE = re.compile("no such host", re.IGNORECASE)
"""What is said of a registry that does not exist; engines give it the status of those that fail."""

_NO_PROGRAM, _NO_FILE = 127, 66

# It waits for a line, so that it says nothing before anyone listens; and it runs in a child, for the engine ends what it
# started itself when the connection is lost.
_RUN = ["/bin/sh", "-c", 'read -r _ || exit; /bin/sh -c "$0" & wait $!']
_UNPACK = (
    "import io, sys, tarfile; "
    "tarfile.open(fileobj=io.BytesIO(sys.stdin.buffer.read(int(sys.argv[1])))).extractall()"
)
_HAS_LANDLOCK = f"""python3 -c 'import ctypes as c, sys
sys.exit(c.CDLL(None).syscall(444, None, c.c_size_t(0), c.c_uint(1)) < {SCOPE_ABI})'"""


@once
def kind_for(settings: WorkerSettings) -> RemoteKind:
    """Return this process's sandboxes for these settings."""
    return RemoteKind(settings, Docker(settings))


class Docker:
    """What `RemoteKind` wants to know of it."""

    name = "docker"
    image_setting = "PTC_DOCKER_IMAGE"
    network_allowed = False

    def __init__(self, settings: WorkerSettings) -> None:
        self.image = settings.ptc_docker_image
        self._engine = Engine(settings)

    def machine(self, name: str, purpose: Purpose) -> Container:
        """Describe a container."""
        return Container(self._engine, name, purpose)

    async def found(self, installation: str) -> list[Found]:
        """List the containers that carry a label."""
        listed = await self._engine.call(
            lambda api: api.containers(all=True, filters={"label": f"ptc={installation}"})
        )
        # one that is dead may have no name any more
        return [
            Found((each["Names"] or [each["Id"]])[0].lstrip("/"), each["Labels"], each["Id"])
            for each in listed
        ]

    async def delete(self, found: Found) -> None:
        """Remove one."""
        await self._engine.call(lambda api: remove(api, str(found.handle)))


class Container:
    """A container, as `RemoteSandbox` wants a machine to be."""

    alone = True
    blocked = True

    def __init__(self, engine: Engine, name: str, purpose: Purpose) -> None:
        self._engine = engine
        self._name = name
        self._purpose = purpose
        self._unwanted = threading.Event()
        self.until = 0.0

    async def start(self) -> None:
        """Have it made; where nothing else would keep commands from the courier, let that be root."""
        seconds = self._engine.settings.ptc_sandbox_start_timeout
        try:
            async with asyncio.timeout(seconds):
                self.until = time.monotonic() + _LIFE_SECONDS
                await self._make()
                if self._engine.walled is None:
                    self._engine.walled = await self._has_landlock()
                    if not self._engine.walled:
                        await self._remove()
                        await self._make()
        except TimeoutError:
            raise UnsureError(
                f"no container was ready within {seconds:g} s (PTC_SANDBOX_START_TIMEOUT): it helps to "
                f"`docker pull {self._engine.settings.ptc_docker_image}` beforehand"
            ) from None

    async def _make(self) -> None:
        await again(lambda: self._engine.call(self._made))

    def _made(self, api: APIClient) -> None:
        """Create and start it, or find that this was done."""
        described = description(
            self._engine.settings, self._name, self._purpose, root=self._engine.walled is False
        )
        host = api.create_host_config(**described.pop("host"))
        try:
            try:
                self._refuse_if_unwanted()
                api.create_container(**described, host_config=host, use_config_proxy=False)
            except ImageNotFound:
                _pull(api, self._engine.settings.ptc_docker_image)
                self._refuse_if_unwanted()
                api.create_container(**described, host_config=host, use_config_proxy=False)
        except APIError as error:
            if error.status_code != HTTPStatus.CONFLICT:
                raise _refusal(error, self._engine.settings) from error
            self._adopt(api)
        if self._unwanted.is_set():  # whoever removed it may have come before it was there
            remove(api, self._name)
            self._refuse_if_unwanted()
        try:
            api.start(self._name)
        except APIError as error:
            raise _refusal(error, self._engine.settings) from error

    def _refuse_if_unwanted(self) -> None:
        """Go no further where nobody waits any more: the thread of a call outlives whoever made it."""
        if self._unwanted.is_set():
            raise SandboxError("the container was removed while it was made")

    def _adopt(self, api: APIClient) -> None:
        """Make sure that what has this name is ours: our own request was done, and its answer lost."""
        labels = api.inspect_container(self._name)["Config"]["Labels"]
        if not self._purpose.labels.items() <= labels.items():
            raise SandboxError(f"there is a container {self._name} of somebody else")
        log.info("sandbox_adopted", name=self._name)

    async def _has_landlock(self) -> bool:
        code, _ = await self.run(_HAS_LANDLOCK, CALL_SECONDS)
        return code != 1

    async def put(self, files: Mapping[str, bytes]) -> None:
        """Let a program unpack them: the engine's own way of copying does not reach a file system in memory."""
        archive = _tar(files)
        program = ["/bin/sh", "-c", 'exec python3 -I -c "$0" "$1"', _UNPACK, str(len(archive))]
        code, _, complaint = await self._executed(program, archive, CALL_SECONDS)
        if code == _NO_PROGRAM:
            raise IsolationRefusedError(f"its image ({self._image}, from PTC_DOCKER_IMAGE) has no python3")
        if code:
            raise SandboxError(f"files cannot be written: {complaint[-500:].decode(errors='replace')}")

    async def run(self, command: str, seconds: float) -> tuple[int, bytes]:
        """Run a command; it goes on if the connection is lost."""
        code, said, complaint = await self._executed([*_RUN, command], b"\n", seconds)
        return code, said or complaint

    async def get(self, path: str) -> bytes | None:
        """Read a file."""
        code, content, _ = await self._executed(
            [*_RUN, f"[ -f {path} ] || exit {_NO_FILE}; exec cat {path}"], b"\n", CALL_SECONDS
        )
        if code not in {0, _NO_FILE}:
            raise UnsureError(f"{path} cannot be read")
        return None if code else content

    async def delete(self) -> None:
        """Remove it, and have what is being made removed by who makes it."""
        self._unwanted.set()
        await self._remove()

    async def _remove(self) -> None:
        await self._engine.call(lambda api: remove(api, self._name))

    @property
    def _user(self) -> str:
        """Who the courier is."""
        user = user_of(self._name) if self._engine.walled is not False else 0
        return f"{user}:{user}"

    @property
    def _image(self) -> str:
        return self._engine.settings.ptc_docker_image

    async def _executed(
        self, command: Sequence[str], given: bytes, seconds: float
    ) -> tuple[int, bytes, bytes]:
        """Run a command, give it something to read; return its exit code and what it wrote on both streams."""
        began = await self._engine.call(lambda api: Command(api, self._name, self._user, HOME, command))
        try:
            async with asyncio.timeout(seconds):
                return await self._engine.call(lambda _: began.ended(given))
        except TimeoutError:
            raise UnsureError(f"no answer within {seconds:g} s") from None
        finally:
            began.cut()


def user_of(name: str) -> int:
    """Choose the user of a container's commands: the kernel adds up what a user has in all containers."""
    return _FIRST_USER + crc32(name.encode()) % _USERS


def description(settings: WorkerSettings, name: str, purpose: Purpose, *, root: bool) -> dict[str, Any]:
    """Describe a container: what it is made of, what it may have, and below `host` what keeps it in.

    `root` says whether the courier is to be root.
    """
    disk, memory = settings.ptc_sandbox_disk_mb, settings.ptc_sandbox_memory_mb
    hold = (memory + disk + ROOM_MB) * 2**20
    user = user_of(name)
    owner = "mode=0755" if root else f"mode=0700,uid={user},gid={user}"
    writable = "rw,exec,nosuid,nodev"
    return {
        "image": settings.ptc_docker_image,
        "name": name,
        "labels": dict(purpose.labels),
        "hostname": "sandbox",
        "user": "0:0"
        if root
        else NOBODY,  # a command has no more capabilities than the first process could have
        "environment": {"PTC_UID": str(user)},
        "entrypoint": ["sleep"],
        "command": [str(_LIFE_SECONDS + round(4 * settings.ptc_test_timeout))],
        "working_dir": HOME,
        "stop_signal": "SIGKILL",
        "healthcheck": {"test": ["NONE"]},
        "host": {
            "network_mode": "none",
            "dns": ["127.0.0.1"],  # else the engine writes down its own
            "dns_search": ["."],
            "sysctls": {"net.ipv4.ping_group_range": "1 0"},
            "ipc_mode": "private",
            "read_only": True,
            "tmpfs": {
                f"{HOME}/{BASE}": f"{writable},size={PACKAGES_MB}m,{owner}",
                f"{HOME}/{BASE}/box": f"{writable},size={disk}m,nr_inodes={MAX_INODES},{owner}",
                "/tmp": f"{writable},size={disk}m,nr_inodes={MAX_INODES},mode=1777",  # noqa: S108 the container's own
            },
            "shm_size": disk * 2**20,
            "mem_limit": hold,
            "memswap_limit": hold,
            "pids_limit": PROCESSES + 64,  # the courier's own, and its engine's
            "nano_cpus": 10**9,
            "cap_drop": ["ALL"],
            "cap_add": list(CAPABILITIES) if root else [],
            "security_opt": ["no-new-privileges:true"],
            "ulimits": [Ulimit(name="nofile", soft=1024, hard=1024), Ulimit(name="core", soft=0, hard=0)],
            "log_config": LogConfig(type="none"),
            "init": True,
            "auto_remove": True,
            "runtime": settings.ptc_docker_runtime,
        },
    }


def _pull(api: APIClient, image: str) -> None:
    """Pull an image that the engine does not have.

    Raises:
        BusyError: its registry does not give it just now.
        IsolationRefusedError: there is none.
    """
    log.info("sandbox_image_pulled", image=image)
    name, tag = parse_repository_tag(image)
    failing = False
    try:
        told = list(api.pull(name, tag=tag or "latest", stream=True, decode=True))
    except APIError as error:
        told = [{"error": error.explanation}]
        failing = error.is_server_error() and not _NOWHERE.search(str(error.explanation))
    if problems := [each["error"] for each in told if "error" in each]:
        if failing or _NOT_NOW.search(str(problems[-1])):
            raise BusyError(
                _PULL_SECONDS, f"the Docker engine cannot pull the image {image} now: {problems[-1]}"
            )
        raise IsolationRefusedError(
            f"the Docker engine neither has the image {image} nor can pull it: {problems[-1]}. "
            "Pull or build it there, or name another one with Python 3.11 or newer in PTC_DOCKER_IMAGE"
        )


def _refusal(error: APIError, settings: WorkerSettings) -> Exception:
    """Say what is meant by not making a container: a request that it cannot do it never will."""
    if (
        isinstance(error, NotFound)
        or (error.status_code or HTTPStatus.INTERNAL_SERVER_ERROR) >= HTTPStatus.INTERNAL_SERVER_ERROR
    ):
        return meaning(error)
    return IsolationRefusedError(
        f"the Docker engine does not start {settings.ptc_docker_image}: {error.explanation}. "
        "See PTC_DOCKER_IMAGE and PTC_DOCKER_RUNTIME"
    )


def _tar(files: Mapping[str, bytes]) -> bytes:
    with io.BytesIO() as content:
        with tarfile.open(fileobj=content, mode="w") as tar:
            for path, data in files.items():
                entry = tarfile.TarInfo(path)
                entry.size, entry.mode = len(data), 0o644
                tar.addfile(entry, io.BytesIO(data))
        return content.getvalue()
