"""What a sandbox's commands hold together: memory, files, processes and sockets, looked at from within."""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING

from . import confine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .agent import Spec

LOOK_SECONDS = 0.05
"""Time between two looks at the memory of what runs."""

MAX_INODES = 100_000
"""Files and folders that a sandbox may have."""

MAX_SOCKETS = 512
"""Sockets that commands may have: what is on its way in one is nobody's memory, a few hundred kilobytes each."""

_PAGE = os.sysconf("SC_PAGESIZE")


class Guard:
    """Looks at what commands hold: memory of all of them, and of their files."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._me = os.getpid()
        self._held_known = (0.0, "")
        self._before = (0, 0) if spec.namespaces else _content(spec.temporary)
        self.look_seconds = LOOK_SECONDS if spec.namespaces else 2 * LOOK_SECONDS

    def complaint(self) -> str:
        """Name what there is too much of: `memory` or `disk`, nothing if all is well."""
        others = self._others()
        if self._spec.namespaces:
            held, inodes = self._file_systems()
            if inodes > MAX_INODES:
                return "disk"
            if sockets() > MAX_SOCKETS:
                return "memory"
        else:
            if len(others) > self._spec.processes:
                return "memory"
            if complaint := self._held(others):
                return complaint
            held = 0
        if held + sum(map(resident, others)) <= self._spec.memory:
            return ""
        # Shared pages count once in this slower figure.
        return "memory" if held + sum(map(proportional, others)) > self._spec.memory else ""

    def _others(self) -> list[str]:
        if self._spec.namespaces:
            return [name for name in os.listdir("/proc") if name.isdecimal() and int(name) != self._me]
        return [str(pid) for pid in confine.descendants(self._me)]

    def _file_systems(self) -> tuple[int, int]:
        """Add up bytes and files of the file systems in memory."""
        figures = [os.statvfs(path) for path in (self._spec.root, *self._spec.temporary)]
        held = sum((each.f_blocks - each.f_bfree) * each.f_frsize for each in figures)
        return held, max(each.f_files - each.f_ffree for each in figures)

    def _held(self, others: list[str]) -> str:
        """Name what the folder and the open descriptors hold too much of; looked for at most a tenth of the time."""
        not_before, complaint = self._held_known
        started = time.monotonic()
        if started >= not_before:
            complaint = _too_much(self._spec, self._before, others)
            took = time.monotonic() - started
            self._held_known = (started + took * 10, complaint)
        return complaint


def _content(places: list[str]) -> tuple[int, int]:
    """Count the bytes and files that are there before a command runs, which are not the command's."""
    sizes = []
    with suppress(OverflowError):
        for info in chain.from_iterable(map(_walk, places)):
            sizes.append(info.st_blocks * 512)  # noqa: PERF401 what was counted before counts
    return sum(sizes), len(sizes)


def _too_much(spec: Spec, before: tuple[int, int], pids: list[str]) -> str:
    """Add up files, also those that were removed and are still open, and sockets."""
    size, files = (-figure for figure in before)
    open_sockets = 0
    for info in _open_files(pids):
        if stat.S_ISSOCK(info.st_mode):
            open_sockets += 1
        elif stat.S_ISREG(info.st_mode) and info.st_nlink == 0:
            size += info.st_blocks * 512
    if open_sockets > MAX_SOCKETS:
        return "memory"
    try:
        for info in chain.from_iterable(map(_walk, (spec.root, *spec.temporary))):
            size += info.st_blocks * 512
            files += 1
            if files > MAX_INODES or size > spec.disk:
                return "disk"
    except OverflowError:
        return "disk"
    return "disk" if size > spec.disk else ""


def _walk(folder: str) -> Iterator[os.stat_result]:
    """Walk a tree that changes meanwhile, without following links.

    Raises:
        OverflowError: it is deeper than a path can tell, or hides what it holds.
    """
    queue = [folder]
    while queue:
        folder = queue.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        yield entry.stat(follow_symlinks=False)
                        if entry.is_dir(follow_symlinks=False):
                            queue.append(entry.path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG or (error.errno == errno.EACCES and _is_ours(folder)):
                raise OverflowError(folder) from None


def _is_ours(folder: str) -> bool:
    """Tell whether a folder belongs to our user, as what a command makes does where the agent is not root."""
    try:
        return os.stat(folder, follow_symlinks=False).st_uid == os.geteuid()
    except OSError:
        return True


def _open_files(pids: list[str]) -> Iterator[os.stat_result]:
    """Look at what processes hold open; one descriptor that several of them share counts for each."""
    for pid in pids:
        with suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    yield os.stat(f"/proc/{pid}/fd/{descriptor}")


def sockets() -> int:
    """Count the sockets in this network namespace."""
    with open("/proc/net/sockstat", "rb") as file:
        return int(file.readline().split()[2])


def resident(pid: str) -> int:
    """Return the bytes of memory that a process has in use, shared ones included; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def proportional(pid: str) -> int:
    """Return the bytes of memory that a process has in use, its share of shared ones; `resident` if that is hidden."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resident(pid)
