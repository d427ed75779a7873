"""Control groups for sandboxes, where this process may make them: the kernel then counts memory and processes too.

Nothing depends on it. Both versions of the interface are known; in most containers neither can be written.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

from ptc_worker.once import once

_MOUNT = Path("/sys/fs/cgroup")
_PREFIX = "ptc-"
_numbers = count()


class _Controller(NamedTuple):
    """Where groups of a kind are made, and what their files are called."""

    parent: Path
    limits: dict[str, str]
    """File to what is counted: `memory` or `processes`."""
    kills: str
    """File that counts the processes which the kernel killed for want of memory; empty if this one does not."""


_left: set[Path] = set()
"""Groups that could not be removed yet."""


class Group:
    """The groups of one sandbox."""

    def __init__(self, *, memory: int, processes: int) -> None:
        self._folders: list[tuple[Path, str]] = []
        name = f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        for controller in _controllers():
            folder = controller.parent / name
            with suppress(OSError):
                folder.mkdir()
                self._folders.append((folder, controller.kills))
                for file, counted in controller.limits.items():
                    (folder / file).write_text(str(memory if counted == "memory" else processes))

    def take(self, pid: int) -> None:
        """Put a process into the groups; what it starts from then on is in them as well."""
        for folder, _ in self._folders:
            with suppress(OSError):
                (folder / "cgroup.procs").write_text(str(pid))

    @property
    def killed(self) -> int:
        """How many of its processes the kernel has killed for want of memory."""
        for folder, kills in self._folders:
            with suppress(OSError):
                for line in (folder / kills).read_text().splitlines() if kills else ():
                    name, _, number = line.partition(" ")
                    if name == "oom_kill":
                        return int(number)
        return 0

    def close(self) -> None:
        """Remove the groups, which are empty by now; one in which something is still dying goes with a later one."""
        _left.update(folder for folder, _ in self._folders)
        self._folders = []
        for folder in tuple(_left):
            try:
                folder.rmdir()
            except OSError as error:
                if error.errno == errno.EBUSY:
                    continue
            _left.discard(folder)


def sweep() -> None:
    """Remove the groups of processes that are gone; those with anything in them stay."""
    for controller in _controllers():
        for folder in controller.parent.glob(f"{_PREFIX}*"):
            owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
            if not Path("/proc", owner).exists():
                with suppress(OSError):
                    folder.rmdir()


@once
def _controllers() -> tuple[_Controller, ...]:
    """Find out what can be used here: version 2 as a whole, or single controllers of version 1."""
    found = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return ()
    for line in lines:
        _, names, path = line.split(":", 2)
        below = path.lstrip("/")
        if not names:
            limits = {"memory.max": "memory", "pids.max": "processes"}
            candidate = _Controller(_MOUNT / below, limits, "memory.events")
        elif names == "memory":
            candidate = _Controller(
                _MOUNT / names / below, {"memory.limit_in_bytes": "memory"}, "memory.oom_control"
            )
        elif names == "pids":
            candidate = _Controller(_MOUNT / names / below, {"pids.max": "processes"}, "")
        else:
            continue
        if _usable(candidate):
            found.append(candidate)
    return tuple(found)


def _usable(controller: _Controller) -> bool:
    """Make a group, look whether it has what it is for, and remove it."""
    trial = controller.parent / f"{_PREFIX}{os.getpid()}-trial"
    try:
        trial.mkdir()
    except OSError:
        return False
    try:
        return all((trial / file).exists() for file in controller.limits)
    finally:
        trial.rmdir()
