"""What every attack has inside a sandbox: ways to try something, and to say honestly what came of it."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

TARGET: dict[str, Any] = json.loads(os.environ.get("ATTACK_TARGET", "{}"))
"""Everything an attacker could wish to know about the host; see `sandbox.host`."""

libc = ctypes.CDLL(None, use_errno=True)

# Numbers on x86-64 and on arm64.
CALLS = {
    "ptrace": (101, 117),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "iopl": (172, -1),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "quotactl": (179, 60),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "migrate_pages": (256, 238),
    "unshare": (272, 97),
    "move_pages": (279, 239),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "finit_module": (313, 273),
    "kexec_file_load": (320, 294),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "acct": (163, 89),
    "clock_settime": (227, 112),
    "syslog": (103, 116),
    "clone": (56, 220),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "ioprio_set": (251, 30),
    "io_uring_setup": (425, 425),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "clone3": (435, 435),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "mount_setattr": (442, 442),
    "memfd_secret": (447, 447),
}

REFUSALS = {errno.EPERM, errno.EACCES, errno.ENOSYS}


def attempt(what: str, action: Callable[[], object]) -> Any:
    """Try what must not work; say that it did, or what it was kept by."""
    try:
        value = action()
    except (OSError, MemoryError, ValueError) as error:
        print(f"kept from {what}: {error!r}", flush=True)
        return None
    gained(what, value)
    return value


def gained(what: str, value: object = "") -> None:
    """Say that something worked that must not."""
    print(f"GAINED {what}: {value!r:.400}", flush=True)


def call(name: str, *arguments: Any) -> int:
    """Make a system call.

    Raises:
        OSError: it failed.
    """
    number = CALLS[name][0 if platform.machine() == "x86_64" else 1]
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def refused(name: str, *arguments: Any) -> None:
    """Try a system call that must be refused whatever its arguments: to get as far as an EFAULT is too far."""
    try:
        value = call(name, *arguments)
    except OSError as error:
        if error.errno in REFUSALS:
            print(f"kept from {name}: {error}", flush=True)
        else:
            gained(f"reaching {name}", error)
    else:
        gained(name, value)


def read(path: str, size: int = 4000) -> bytes:
    """Read the start of a file.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(descriptor, size)
    finally:
        os.close(descriptor)


def touch(path: str) -> None:
    """Change when a file was last written.

    Raises:
        OSError: it cannot be done, or was not though the kernel says so.
    """
    os.utime(path, (1, 1))
    if os.stat(path).st_mtime != 1:
        raise PermissionError(path)


def set_mode(path: str, mode: int) -> None:
    """Change who may do what with a file.

    Raises:
        OSError: it cannot be done, or was not though the kernel says so.
    """
    os.chmod(path, mode)
    if os.stat(path).st_mode & 0o777 != mode:
        raise PermissionError(path)


def take_over(path: str) -> None:
    """Make a file one's own.

    Raises:
        OSError: it cannot be done, or was not though the kernel says so.
    """
    os.chown(path, os.getuid(), os.getgid())
    if os.stat(path).st_uid != os.getuid():
        raise PermissionError(path)


def append(path: str, content: bytes = b"") -> int:
    """Open a file for writing, and write if there is something to write.

    Raises:
        OSError: it cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
    try:
        return os.write(descriptor, content) if content else 0
    finally:
        os.close(descriptor)


def processes() -> list[int]:
    """Name the processes that can be seen."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return []


def of_the_host(path: str) -> bool:
    """Tell whether a path leads to what is the host's; what is in an image is no secret."""
    facts = os.stat(path)
    return not TARGET["image"] or [facts.st_dev, facts.st_ino] == TARGET["places"].get(path)


def looking_for_secrets(paths: list[str]) -> None:
    """Read each of these files, and say so if the host's secret is in one."""
    for path in paths:
        try:
            content = read(path, 100_000)
        except OSError as error:
            print(f"kept from {path}: {error!r}")
            continue
        if TARGET["secret"].encode() in content:
            gained(path, content)
