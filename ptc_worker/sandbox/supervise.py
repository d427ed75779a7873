"""Runs one hostile command under limits and leaves nothing of it alive; a program of its own, stdlib only.

Started as `python -I -S supervise.py <spec>` by `local.py`. It puts the command behind namespaces where the
system allows it, waits for the command, for its deadline or for the death of its own parent (whichever comes
first), kills everything that is left, and reports on a descriptor.

With namespaces the command sees the system read-only, its own directory, an empty /tmp, no network but its
own loopback, and no process but its own. As root it runs under another user id; otherwise inside a user
namespace. Without them there are limits and a reaper alone.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1
DEVICES = ("null", "zero", "full", "random", "urandom")
TMPFS_SIZE = "64m"
REFUSALS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL}


@dataclass(frozen=True)
class Spec:
    """What to run and within which walls."""

    command: list[str]
    env: dict[str, str]
    cwd: str
    timeout: float
    namespaces: bool
    read_only: list[str]
    """Paths of the host that the command may read."""
    writable: str
    """The one directory that it may write."""
    uid: int | None
    """User id to run as; None keeps ours."""
    limits: dict[str, int]
    """Names of `resource.RLIMIT_…` to values."""
    parent_fd: int
    """Reads as closed once our parent is gone."""
    report_fd: int


def main() -> None:
    """Run the spec in argv[1] and report."""
    spec = Spec(**json.loads(sys.argv[1]))
    for unwanted in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(unwanted, signal.SIG_IGN)  # our parent decides, through parent_fd
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        child = start(spec)
    except OSError as error:
        report(spec, **failure(error))
        return
    status, timed_out = wait(child, spec)
    kill_descendants()
    report(spec, status=status, timed_out=timed_out)


def start(spec: Spec) -> int:
    """Fork the command, or the init of its own process namespace; return the process id to wait for."""
    if spec.namespaces:
        leave_namespaces()
    child = os.fork()
    if child:
        return child
    try:
        if spec.namespaces:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            enter_root(spec)
            loopback_up()
            os._exit(be_init(spec))
        run(spec)
    except BaseException as error:  # noqa: BLE001 a forked child must never return into its parent's code
        report(spec, **failure(error))
    os._exit(127)


def failure(error: BaseException) -> dict[str, Any]:
    """Tell what kept the command from starting, and whether it was the system that refused namespaces."""
    refused = isinstance(error, NamespaceError) and error.errno in REFUSALS
    return {"error": f"{type(error).__name__}: {error}", "refused": refused}


def be_init(spec: Spec) -> int:
    """Start the command as a child of this process, pid 1 of its namespace; return the command's status.

    When this process ends, the kernel kills everything in the namespace.
    """
    command = os.fork()
    if not command:
        run(spec)
    while True:
        pid, status = os.wait()
        if pid == command:
            return exit_code_of(status)


def run(spec: Spec) -> None:
    """Become the command: own session, limits, other user, no way to new privileges."""
    os.setsid()
    os.close(spec.parent_fd)
    # It stays open until the command has really started, to tell of a failure.
    os.set_inheritable(spec.report_fd, False)  # noqa: FBT003 the call takes no names
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(signum, signal.SIG_DFL)
    for name, value in spec.limits.items():
        _, hard = resource.getrlimit(kind := getattr(resource, name))
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (limit, limit))
    os.chdir(spec.cwd)
    if spec.uid is not None:
        os.setgroups([])
        os.setresgid(spec.uid, spec.uid, spec.uid)
        os.setresuid(spec.uid, spec.uid, spec.uid)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    os.execve(spec.command[0], spec.command, spec.env)  # noqa: S606 to run it is the purpose


def wait(child: int, spec: Spec) -> tuple[int, bool]:
    """Wait for the child, the deadline or our parent's death; return the exit code and whether time ran out."""
    deadline = time.monotonic() + spec.timeout
    child_fd = os.pidfd_open(child)
    while True:
        left = deadline - time.monotonic()
        ready = select.select([child_fd, spec.parent_fd], [], [], max(0.0, left))[0] if left > 0 else []
        if child_fd in ready:
            return exit_code_of(os.waitpid(child, 0)[1]), False
        if spec.parent_fd in ready or left <= 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGKILL, left <= 0


def exit_code_of(status: int) -> int:
    """Give a wait status as an exit code below 256; 128 and above tells a signal, as shells do."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def kill_descendants() -> None:
    """Kill until nothing is left below us: orphans come to us, for we are their subreaper."""
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.001)


def descendants(root: int) -> list[int]:
    """List every process below this one."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    parent = int(stat.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(name))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def report(spec: Spec, **facts: Any) -> None:  # noqa: ANN401 whatever JSON holds
    """Tell our parent how it went."""
    with suppress(BrokenPipeError):
        os.write(spec.report_fd, json.dumps(facts).encode() + b"\n")


# ── namespaces ─────────────────────────────────────────────────────────────────────────────────────────────

libc = ctypes.CDLL(None, use_errno=True)


class NamespaceError(OSError):
    """A namespace or a mount could not be made."""


def check(result: int, what: str) -> None:
    """Raise what the C library reports."""
    if result != 0:
        number = ctypes.get_errno()
        raise NamespaceError(number, f"{what}: {os.strerror(number)}")


def prctl(option: int, value: int) -> None:
    """Set a property of this process."""
    check(libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), "prctl")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount a file system."""
    check(
        libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()),
        f"mount {target}",
    )


def leave_namespaces() -> None:
    """Leave the host's processes (from the next fork on), network, host name, IPC and mounts behind."""
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    uid, gid = os.getuid(), os.getgid()
    check(libc.unshare(flags if uid == 0 else flags | CLONE_NEWUSER), "unshare")
    if uid != 0:
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{uid} {uid} 1")
        write("/proc/self/gid_map", f"{gid} {gid} 1")
    mount("none", "/", flags=MS_REC | MS_PRIVATE)


def enter_root(spec: Spec) -> None:
    """Make a file tree of the allowed paths alone, and move into it.

    The new tree is staged over the writable directory, whose contents stay reachable through a descriptor.
    The new /proc is mounted while the old one is still there: a user namespace may not mount one otherwise.
    """
    root = spec.writable
    writable = os.open(root, os.O_PATH)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, f"size={TMPFS_SIZE},mode=0755")
    for directory in ("proc", "dev", "tmp", "dev/shm", ".old"):
        os.makedirs(f"{root}/{directory}", exist_ok=True)
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for device in DEVICES:
        write(f"{root}/dev/{device}", "")
        mount(f"/dev/{device}", f"{root}/dev/{device}", flags=MS_BIND)
    for directory in ("tmp", "dev/shm"):
        mount("tmpfs", f"{root}/{directory}", "tmpfs", MS_NOSUID | MS_NODEV, f"size={TMPFS_SIZE},mode=1777")
    for path in spec.read_only:
        if os.path.islink(path):
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            os.symlink(os.readlink(path), root + path)
        elif os.path.exists(path):
            bind(path, root + path, MS_REC, MOUNT_ATTR_RDONLY)  # what is mounted below comes along
    bind(f"/proc/self/fd/{writable}", root + spec.writable, 0)
    os.close(writable)
    os.chdir(root)
    check(libc.syscall(PIVOT_ROOT[os.uname().machine], b".", b".old"), "pivot_root")
    os.chdir("/")
    check(libc.umount2(b"/.old", MNT_DETACH), "umount")
    os.rmdir("/.old")
    mount("none", "/", flags=MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def bind(source: str, target: str, flags: int, attributes: int = 0) -> None:
    """Show a path of the host inside, never with devices or set-user-id programs."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        write(target, "")
    mount(source, target, flags=MS_BIND | flags)
    set_attributes(target, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | attributes)


def set_attributes(target: str, attributes: int) -> None:
    """Set attributes of a mount and of all mounts below it (Linux 5.12; older ones have no sandbox here)."""
    wanted = struct.pack("QQQQ", attributes, 0, 0, 0)
    check(
        libc.syscall(
            MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, wanted, ctypes.c_size_t(len(wanted))
        ),
        f"mount_setattr {target}",
    )


def write(path: str, text: str) -> None:
    """Write a short file in one call."""
    with open(path, "w") as file:
        file.write(text)


def loopback_up() -> None:
    """Let programs inside talk to themselves: 127.0.0.1 works, everything else is unreachable."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))


if __name__ == "__main__":
    main()
