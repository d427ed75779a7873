"""The host as a target: what an attack may be after, and whether all of it is still as it was."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import secrets
import shutil
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import ptc_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.ways import Way

NAME = "ptc-attack"
"""Part of the name of whatever an attack makes: found on the host, it has come out."""

IPC_KEY = 0x50544341
"""The System V key that attacks use."""

KERNEL = (
    "kernel/core_pattern",
    "kernel/hostname",
    "kernel/pid_max",
    "kernel/modprobe",
    "kernel/sysrq",
    "kernel/randomize_va_space",
    "vm/swappiness",
    "vm/overcommit_memory",
    "vm/drop_caches",
    "fs/suid_dumpable",
    "net/ipv4/ip_forward",
)


PLACES = [
    path
    for path in (
        "/etc/passwd",
        "/root",
        "/home",
        "/var/log",
        "/var/lib/dpkg",
        "/run",
        "/boot",
        "/srv",
        "/mnt",
        "/opt",
    )
    if Path(path).exists()
]
"""Where a host has what is its own."""


class Host:
    """Secrets, servers and files that a sandbox must keep a program from."""

    def __init__(self, cache_dir: Path, environment: Path) -> None:
        self.secret = f"secret-{secrets.token_hex(12)}"
        self.name = f"{NAME}-{secrets.token_hex(4)}"
        self.folder = Path(tempfile.mkdtemp(prefix="ptc-host-", dir="/tmp"))
        self.folder.chmod(0o777)  # open to all: the sandbox must keep them out, rights alone would not
        self.readable = self._file("readable", 0o644)
        self.writable = self._file("writable", 0o666)
        self.shared_memory = Path(f"/dev/shm/{self.folder.name}")
        self.shared_memory.write_text(self.secret)
        self.cache_dir, self.environment = cache_dir, environment
        # What a careless worker holds: descriptors that children inherit, a variable, a server without a password.
        self.inherited = os.open(self.readable, os.O_RDONLY)
        os.set_inheritable(self.inherited, True)  # noqa: FBT003 the call takes no names
        os.environ["PTC_CANARY"] = self.secret
        self.ipv4 = self._serve(socket.AF_INET, ("0.0.0.0", 0))  # noqa: S104 on every address: that is the point
        self.ipv6 = self._serve(socket.AF_INET6, ("::", 0))
        self.unix = self._serve(socket.AF_UNIX, str(self.folder / "redis.sock"))
        (self.folder / "redis.sock").chmod(0o777)
        self.abstract = self._serve(socket.AF_UNIX, f"\0{self.folder.name}")
        self._segment = _shared_segment(self.secret.encode())
        self._held = sum(1 for _ in Path("/proc/self/fd").iterdir())
        self._before = self.state()
        self.visited, self._closing = _free_port(), threading.Event()
        threading.Thread(target=self._visit, daemon=True).start()

    def _visit(self) -> None:
        """Knock where an attack would serve the world."""
        while not self._closing.wait(0.05):
            for address in ("127.0.0.1", "::1"):
                with suppress(OSError):
                    socket.create_connection((address, self.visited), 0.05).close()

    def _file(self, name: str, mode: int) -> Path:
        path = self.folder / name
        path.write_text(self.secret)
        path.chmod(mode)
        return path

    def _serve(self, family: int, address: Any) -> socket.socket:
        """Tell the secret to whoever connects."""
        server = socket.socket(family, socket.SOCK_STREAM)
        server.bind(address)
        server.listen()

        def answer() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client, suppress(OSError):
                        client.sendall(self.secret.encode())

        threading.Thread(target=answer, daemon=True).start()
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        for server in (self.ipv4, self.ipv6, self.unix, self.abstract):
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()
        os.close(self.inherited)
        del os.environ["PTC_CANARY"]
        self.shared_memory.unlink()
        shutil.rmtree(self.folder)
        _libc.shmctl(self._segment, 0, None)  # IPC_RMID

    def _ours(self, mount: str) -> bool:
        """Tell whether a mount has to do with these sandboxes: the machine may have other work."""
        return any(part in mount for part in (NAME, str(self.folder), str(self.cache_dir), "sandbox"))

    def told(self, *, image: bool = False) -> str:
        """Tell an attacker everything: walls must not depend on what he does not know."""
        return json.dumps(
            {
                "secret": self.secret,
                "name": self.name,
                "ipc_key": IPC_KEY,
                "folder": str(self.folder),
                "readable": str(self.readable),
                "writable": str(self.writable),
                "shared_memory": str(self.shared_memory),
                "segment": self._segment,
                "inherited": self.inherited,
                "pid": os.getpid(),
                "home": str(Path.home()),
                "cache": str(self.cache_dir),
                "environment": str(self.environment),
                "source": str(Path(ptc_worker.__file__).parent),
                "ipv4": self.ipv4.getsockname()[1],
                "ipv6": self.ipv6.getsockname()[1],
                "addresses": _addresses(),
                "visited": self.visited,
                "unix": self.unix.getsockname(),
                "abstract": self.folder.name,
                "kernel": KERNEL,
                "image": image,
                "places": {path: _place(path) for path in PLACES},
            }
        )

    def changes(self) -> dict[str, tuple[object, object]]:
        """Tell what is not as it was when this was last asked: before and after."""
        before, self._before = self._before, self.state()
        return {name: (old, self._before[name]) for name, old in before.items() if old != self._before[name]}

    def held_since(self) -> int:
        """Count the descriptors that this process has opened since, and holds."""
        return sum(1 for _ in Path("/proc/self/fd").iterdir()) - self._held

    def state(self) -> dict[str, object]:
        """Gather what an attack must not have changed."""
        return {
            "canaries": {str(path): _described(path) for path in sorted(self.folder.iterdir())},
            "environment": _digest(self.environment),
            "installer's cache": _digest(self.cache_dir / "uv"),
            "source": _digest(Path(ptc_worker.__file__).parent),
            "kernel": {name: Path("/proc/sys", name).read_text() for name in KERNEL if _is_readable(name)},
            "mounts": [
                line for line in Path("/proc/self/mountinfo").read_text().splitlines() if self._ours(line)
            ],
            "System V": [
                kind
                for kind in ("shm", "sem", "msg")
                if str(IPC_KEY) in Path("/proc/sysvipc", kind).read_text().split()
            ],
            "left behind": sorted(
                str(path)
                for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm", self.cache_dir)
                for path in Path(folder).iterdir()
                if NAME in path.name
            ),
            "message queue": _libc.mq_unlink(f"/{self.name}".encode()) == 0,
        }


_libc = ctypes.CDLL(None, use_errno=True)
_libc.shmat.restype = ctypes.c_void_p


def _shared_segment(content: bytes) -> int:
    """Put the secret where everyone on the host may read it."""
    segment: int = _libc.shmget(0, len(content), 0o1666)
    address = _libc.shmat(segment, None, 0)
    ctypes.memmove(address, content, len(content))
    _libc.shmdt(ctypes.c_void_p(address))
    return segment


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _addresses() -> list[str]:
    """Name the addresses at which this host can be reached, its loopback first."""
    found = ["127.0.0.1"]
    for remote in ("192.0.2.1", "8.8.8.8"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.connect((remote, 53))  # sends nothing: it only chooses our own address
            found.append(probe.getsockname()[0])
    return sorted(set(found))


def _is_readable(name: str) -> bool:
    return os.access(f"/proc/sys/{name}", os.R_OK) and name != "vm/drop_caches"


def _place(path: str) -> list[int]:
    """Tell a file or folder from any other."""
    facts = Path(path).stat()
    return [facts.st_dev, facts.st_ino]


def _described(path: Path) -> tuple[object, ...]:
    facts = path.lstat()
    content = path.read_bytes() if path.is_file() else b""
    return facts.st_mode, facts.st_uid, facts.st_gid, facts.st_nlink, hashlib.sha256(content).hexdigest()


def _digest(folder: Path) -> str:
    """Sum up a tree: names, kinds, rights, sizes, times of change."""
    facts = hashlib.sha256()
    for path in sorted(_tree(folder)):
        about = path.lstat()
        facts.update(f"{path} {about.st_mode} {about.st_uid} {about.st_size} {about.st_mtime_ns}\n".encode())
    return facts.hexdigest()


def _tree(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__" or "environments" in path]
        yield from (
            Path(path, name) for name in files if name != "ptc-ready"
        )  # the worker notes its use there


def alive(marker: str) -> list[str]:
    """Find the processes that carry a marker in environment, command line or memory map."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with suppress(OSError):
                about = (process / "cmdline").read_bytes()
                rest = (process / "environ").read_bytes() + (process / "maps").read_bytes()
                if marker.encode() in about + rest:
                    found.append(f"{process.name}: {about.decode(errors='replace')[:200]}")
    return found


MOST_DESCRIPTORS = 60
"""What a worker may hold for sandboxes that are prepared or shared: one more for each attack would show."""


def assert_untouched(host: Host, way: Way) -> None:
    """The host is as before, and we hold no descriptors of what was tried."""
    assert host.changes() == {}
    # A vendor's stand-in is in this process, and an engine's client keeps connections for each of a test's settings.
    if not way.served_by and not way.image:
        assert host.held_since() <= MOST_DESCRIPTORS


def empty_groups() -> set[Path]:
    """Find control groups of this process's sandboxes in which nothing is left; those of prepared ones hold them."""
    found = set()
    for folder, names, _ in os.walk("/sys/fs/cgroup"):  # others' groups come and go meanwhile
        for name in names:
            group = Path(folder, name)
            with suppress(OSError):
                if name.startswith(f"ptc-{os.getpid()}-") and not (group / "cgroup.procs").read_text():
                    found.add(group)
    return found
