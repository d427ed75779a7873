"""The system calls that nothing in a sandbox needs and that others have escaped by, as a filter for the kernel.

A program of classic BPF over `struct seccomp_data` (number at byte 0, architecture at 4, arguments from 16 on,
eight bytes each). What is not named is allowed: namespaces or Landlock are the wall, this closes the holes.
"""

from __future__ import annotations

import errno
import os
import platform
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_GREATER_OR_EQUAL, _JUMP_IF_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE = 0, 4
_X32_BIT = 0x40000000
_NEW_NAMESPACES = 0x7E020080
"""CLONE_NEWNS, …CGROUP, …UTS, …IPC, …USER, …PID, …NET and …TIME."""
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_FS_IOC_SETFLAGS, _FS_IOC_FSSETXATTR = 0x40086602, 0x401C5820
_F_SETLEASE, _F_NOTIFY = 1024, 1026
_AND, _TYPE_OF_SOCKET = 0x54, 0xF

_SIZES_OF_BUFFERS = (7, 8)
"""SO_SNDBUF and SO_RCVBUF: what waits in a socket counts as nobody's memory."""
_THIRD_ARGUMENT = 16 + 8 * 2
_MSG_FASTOPEN = 0x20000000
_SENDS = {"sendto": 3, "sendmsg": 2, "sendmmsg": 3}
"""Calls that can connect a socket on the way, which Landlock does not see, with the place of their flags."""

_PROTOCOLS = (0, 1, socket.IPPROTO_TCP, socket.IPPROTO_UDP)
"""What a socket can be asked for, 1 being AF_UNIX's only one: by MPTCP (262) one reaches TCP ports that Landlock shuts."""

_PLACES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Names with their numbers on x86_64 and aarch64; None where there is no such call.
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chmod": (90, None),
    "chown": (92, None),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "fchmod": (91, 52),
    "fcntl": (72, 25),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "file_setattr": (469, 469),
    "finit_module": (313, 273),
    "fremovexattr": (199, 16),
    "fsconfig": (431, 431),
    "fsetxattr": (190, 7),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "futimesat": (261, None),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioprio_set": (251, 30),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lchown": (94, None),
    "lookup_dcookie": (212, 18),
    "lremovexattr": (198, 15),
    "lsetxattr": (189, 6),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "msgctl": (71, 187),
    "msgget": (68, 186),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "removexattr": (197, 14),
    "removexattrat": (466, 466),
    "request_key": (249, 218),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "semctl": (66, 191),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "sendmmsg": (307, 269),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "setpriority": (141, 140),
    "setsockopt": (54, 208),
    "settimeofday": (164, 170),
    "setxattr": (188, 5),
    "setxattrat": (463, 463),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmget": (29, 194),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "utime": (132, None),
    "utimensat": (280, 88),
    "utimes": (235, None),
    "vhangup": (153, 58),
}

_ABSENT = ("clone3", "io_uring_enter", "io_uring_register", "io_uring_setup", "memfd_create", "memfd_secret")
"""Calls that programs do without when the kernel does not know them; the arguments of clone3 cannot be seen."""

_ATTRIBUTES = (
    *("setxattr", "lsetxattr", "fsetxattr", "setxattrat"),
    *("removexattr", "lremovexattr", "fremovexattr", "removexattrat"),
)
"""Calls that Landlock does not know, on files that anyone may write; many file systems have no attributes either."""

_OWNERS = (
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "fchownat", "lchown"),
    *("utime", "utimes", "futimesat", "utimensat"),
)
"""Calls by which a program of the worker's own user changes files that Landlock lets it only read, or not even that."""

_OF_OTHERS = {
    "prlimit64": (0,),
    "sched_setaffinity": (0,),
    "sched_setattr": (0,),
    "sched_setparam": (0,),
    "sched_setscheduler": (0,),
    "setpriority": (0, 1),
}
"""Calls that change the limits and the turn of whom they name, with the arguments that are 0 for the caller itself.

Process 1 has the same user: made to wait for all others, it would not see what they take.
"""

_LOOKED_INTO = ("clone", "fcntl", "ioctl", "setsockopt", "socket", "socketpair", *_OF_OTHERS, *_SENDS)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What differs between the places that a filter is for."""

    network: bool
    """Whether IP sockets can be had: where the network is the sandbox's own."""
    unix_sockets: bool
    """Whether these can be had: where no socket file of the worker's user can be reached, for Landlock (version 7) does
    not keep anyone from connecting to those of their own."""
    own_files: bool
    """Whether owners and modes can be changed: where no file of the worker's user can be reached."""


class UnknownMachineError(Exception):
    """There is no filter for this kind of processor."""


def program(rules: Rules, machine: str = "") -> bytes:
    """Assemble the filter for a kind of processor, this one's unless named.

    Raises:
        UnknownMachineError: the numbers of this machine's system calls are not known here.
    """
    try:
        architecture, column = _PLACES[machine := machine or platform.machine()]
    except KeyError:
        raise UnknownMachineError(f"no seccomp filter for {machine}") from None
    numbers = {name: row[column] for name, row in _NUMBERS.items()}
    code = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_JUMP_IF_EQUAL, architecture, 1, 0),
        _answer(errno.ENOSYS),
        _step(_LOAD, _NUMBER),
        _step(_JUMP_IF_GREATER_OR_EQUAL, _X32_BIT, 0, 1),
        _answer(errno.ENOSYS),
        *_whole_calls(rules, numbers),
        *_calls_by_argument(rules, numbers),
        _step(_RETURN, _ALLOW),
    ]
    return b"".join(code)


def _whole_calls(rules: Rules, numbers: Mapping[str, int | None]) -> Iterator[bytes]:
    """Answer the calls that are refused whatever their arguments."""
    refused = set(_NUMBERS) - {*_LOOKED_INTO, *_ABSENT, *_ATTRIBUTES, *_OWNERS}
    # Owners as if it were done: copying a file must not fail for its mode.
    owners = () if rules.own_files else _OWNERS
    answers = (
        (sorted(refused), errno.EPERM),
        (_ABSENT, errno.ENOSYS),
        (_ATTRIBUTES, errno.EOPNOTSUPP),
        (owners, 0),
    )
    for names, answer in answers:
        for name in names:
            yield from _calls(numbers[name], answer)


def _calls_by_argument(rules: Rules, numbers: Mapping[str, int | None]) -> Iterator[bytes]:
    """Answer the calls that depend on what is asked for."""
    yield from _when(numbers["clone"], 0, [_step(_JUMP_IF_SET, _NEW_NAMESPACES, 0, 1), _answer(errno.EPERM)])
    # File attributes are no matter of write access, and a terminal's input is that of whoever sits there.
    yield from _when(
        numbers["ioctl"], 1, _none_of(_TIOCSTI, _TIOCLINUX, _FS_IOC_SETFLAGS, _FS_IOC_FSSETXATTR)
    )
    # The owner of a file that can only be read may keep all others from opening it, for 45 seconds each time.
    yield from _when(numbers["fcntl"], 1, _none_of(_F_SETLEASE, _F_NOTIFY))
    for name, (first, *others) in _OF_OTHERS.items():
        steps = [_step(_JUMP_IF_EQUAL, 0, 1, 0), _answer(errno.EPERM)]
        for argument in others:
            steps += [_step(_LOAD, 16 + 8 * argument), *steps[:2]]
        yield from _when(numbers[name], first, steps)
    sizes = _none_of(*_SIZES_OF_BUFFERS, answer=0)
    of_sockets = _step(_JUMP_IF_EQUAL, socket.SOL_SOCKET, 0, len(sizes) + 1)
    yield from _when(numbers["setsockopt"], 1, [of_sockets, _step(_LOAD, _THIRD_ARGUMENT), *sizes])
    families = [socket.AF_UNIX] * rules.unix_sockets + [socket.AF_INET, socket.AF_INET6] * rules.network
    protocols = [_step(_LOAD, _THIRD_ARGUMENT), *_one_of(*_PROTOCOLS, answer=errno.EPROTONOSUPPORT)]
    yield from _when(numbers["socket"], 0, [*_one_of(*families), *protocols])
    for name, flags in _SENDS.items():
        fast = [_step(_JUMP_IF_SET, _MSG_FASTOPEN, 0, 1), _answer(errno.EOPNOTSUPP)]
        yield from _when(numbers[name], flags, fast)
    if not rules.unix_sockets:  # datagrams of a pair could be sent to any socket of the host
        kinds = _one_of(socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
        yield from _when(numbers["socketpair"], 1, [_step(_AND, _TYPE_OF_SOCKET), *kinds])


def reader(rules: Rules) -> int:
    """Open a pipe from which the filter can be read, as bubblewrap wants it."""
    there, here = os.pipe()
    with os.fdopen(here, "wb") as pipe:
        pipe.write(program(rules))
    return there


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _answer(number: int) -> bytes:
    return _step(_RETURN, _REFUSE | number)


def _calls(number: int | None, answer: int) -> list[bytes]:
    """Answer a call with an error, without making it."""
    return [] if number is None else [_step(_JUMP_IF_EQUAL, number, 0, 1), _answer(answer)]


def _when(number: int | None, argument: int, steps: list[bytes]) -> list[bytes]:
    """Look at the lower half of an argument of one call; what the steps do not answer is allowed."""
    assert number is not None  # noqa: S101 these calls are there on every machine
    body = [_step(_LOAD, 16 + 8 * argument), *steps, _step(_RETURN, _ALLOW)]
    return [_step(_JUMP_IF_EQUAL, number, 0, len(body)), *body]


def _none_of(*values: int, answer: int = errno.EPERM) -> list[bytes]:
    """Refuse each of these values of the argument that was loaded; or do as if, with 0 for an answer."""
    last = len(values) - 1
    tests = [
        _step(_JUMP_IF_EQUAL, value, last - place, 0 if place < last else 1)
        for place, value in enumerate(values)
    ]
    return [*tests, _answer(answer)]


def _one_of(*values: int, answer: int = errno.EACCES) -> list[bytes]:
    """Refuse all values of the argument that was loaded but these."""
    tests = [_step(_JUMP_IF_EQUAL, value, len(values) - place, 0) for place, value in enumerate(values)]
    return [*tests, _answer(answer)]
