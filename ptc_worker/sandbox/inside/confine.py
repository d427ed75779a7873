"""What a process does to itself and to what it started: the walls where there are no namespaces, and the reaper."""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 4, 22, 36, 38
SECCOMP_MODE_FILTER = 2
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
RULESET_VERSION, RULE_PATH_BENEATH, RULE_NET_PORT = 1, 1, 2

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL_DEV = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
ALL_OF_ABI_1, REFER = (1 << 13) - 1, 1 << 13
NET_BIND_TCP, NET_CONNECT_TCP = 1, 2
NET_ABI = 4
"""The first Landlock that knows of ports."""
SCOPE_ABI = 6
"""The first Landlock that keeps a process from signalling those outside."""
SCOPE_ABSTRACT_UNIX_SOCKET, SCOPE_SIGNAL = 1, 2

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1

_STROKE_SECONDS = 0.5

libc = ctypes.CDLL(None, use_errno=True)


Network = Literal["none", "own", "shared"]
"""No TCP at all; a network namespace with nothing but a loopback of its own; whatever the machine has."""


@dataclass(frozen=True)
class Walls:
    """What keeps a command in where it shares its namespaces with the host."""

    uid: int | None
    """User to run as; None keeps ours."""
    seccomp: str
    """The filter program, in hexadecimal digits; empty for none."""
    landlock: bool
    """Whether only the paths below can be reached, and no process outside can be signalled."""
    readable: list[str]
    """Paths that may be read and executed."""
    writable: list[str]
    """Paths below which everything may be done."""
    network: Network = "none"
    """Which network it has."""
    shut_ports: list[int] = field(default_factory=list)
    """Ports that nothing may be connected to; only where it shares its network, and there is Landlock."""


def check(result: int, what: str) -> int:
    """Raise what the C library reports."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(option: int, value: int, argument: object = 0) -> None:
    """Set a property of this process."""
    check(libc.prctl(option, ctypes.c_ulong(value), argument, 0, 0), f"prctl {option}")


def hide() -> None:
    """Keep processes of the same user from reading this one's memory, descriptors and environment."""
    prctl(PR_SET_DUMPABLE, 0)


def show() -> None:
    """Undo `hide`, in a child: a usual program can read its own /proc/self."""
    prctl(PR_SET_DUMPABLE, 1)


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def enter(walls: Walls) -> None:
    """Put up the walls around this process; there is no way back."""
    if walls.uid is not None:
        os.setgroups([])
        os.setresgid(walls.uid, walls.uid, walls.uid)
        os.setresuid(walls.uid, walls.uid, walls.uid)
    if walls.network == "own":
        leave_the_network()
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if walls.landlock:
        restrict(walls)
    if walls.seccomp:
        install(bytes.fromhex(walls.seccomp))


def leave_the_network() -> None:
    """Move to a network namespace that has a loopback and nothing else, which nothing outside can reach or be reached from.

    Raises:
        OSError: user namespaces cannot be made here, or give no rights.
    """
    import fcntl
    import socket

    uid, gid = os.getuid(), os.getgid()
    show()  # else these files are root's
    check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNET), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def can_leave_the_network(uid: int | None) -> bool:
    """Find out, in a child, whether a user can do so."""
    child = os.fork()
    if not child:
        try:
            enter(Walls(uid=uid, seccomp="", landlock=False, readable=[], writable=[], network="own"))
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def install(program: bytes) -> None:
    """Put a seccomp filter in force."""
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    whole = Program(len(program) // 8, ctypes.addressof(code))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(whole))


def landlock_abi() -> int:
    """Return the version of Landlock that the kernel offers, 0 for none."""
    return max(0, int(libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(RULESET_VERSION))))


def restrict(walls: Walls) -> None:
    """Let this process reach only what the walls name: files, no TCP, no process or abstract socket outside."""
    abi = landlock_abi()
    files = ALL_OF_ABI_1
    for since, right in ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)):
        files |= right if abi >= since else 0
    net = {
        "none": NET_BIND_TCP | NET_CONNECT_TCP,
        "own": 0,
        "shared": NET_CONNECT_TCP if walls.shut_ports else 0,
    }
    scope = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL if abi >= SCOPE_ABI else 0
    known = 24 if abi >= SCOPE_ABI else 16 if abi >= NET_ABI else 8
    attributes = struct.pack("QQQ", files, net[walls.network], scope)[:known]
    ruleset = check(
        libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0)),
        "landlock_create_ruleset",
    )
    for path in walls.readable:
        allow(ruleset, path, EXECUTE | READ_FILE | READ_DIR)
    for path in walls.writable:
        allow(ruleset, path, files)
    if walls.network == "shared" and walls.shut_ports:
        connect_only(ruleset, {*range(2**16)} - {*walls.shut_ports})
    for device in ("null", "zero", "full", "random", "urandom"):
        allow(ruleset, f"/dev/{device}", READ_FILE | WRITE_FILE)
    check(libc.syscall(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0)), "landlock_restrict_self")
    os.close(ruleset)


def connect_only(ruleset: int, ports: set[int]) -> None:
    """Add a rule for each port: Landlock knows none that shuts one."""
    rule = ctypes.create_string_buffer(16)
    call = [*map(ctypes.c_long, (ADD_RULE, ruleset, RULE_NET_PORT)), rule, ctypes.c_uint(0)]
    for port in ports:
        struct.pack_into("=QQ", rule, 0, NET_CONNECT_TCP, port)
        check(libc.syscall(*call), f"landlock_add_rule {port}")


def allow(ruleset: int, path: str, rights: int) -> None:
    """Add a rule for a path and what is below it; a path that is not there needs none."""
    try:
        where = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not stat.S_ISDIR(os.fstat(where).st_mode):
        rights &= EXECUTE | READ_FILE | WRITE_FILE | TRUNCATE
    rule = struct.pack("=Qi", rights, where)
    check(
        libc.syscall(
            ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(RULE_PATH_BENEATH), rule, ctypes.c_uint(0)
        ),
        f"landlock_add_rule {path}",
    )
    os.close(where)


def kill_descendants(uid: int | None) -> None:
    """Kill until nothing is left below us; at one stroke what runs as a user of its own."""
    while True:
        if uid is not None:
            _kill_user(uid)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for pid in descendants(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def _kill_user(uid: int) -> None:
    """Kill all processes of a user, as that user: the kernel signals them without a gap to fork in.

    They can stop the one that is to do so; it is not waited for then.
    """
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresuid(uid, uid, uid)
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    until = time.monotonic() + _STROKE_SECONDS
    while not os.waitpid(child, os.WNOHANG)[0] and time.monotonic() < until:
        time.sleep(0.001)


def descendants(root: int) -> list[int]:
    """List every process below this one."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(name))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found
