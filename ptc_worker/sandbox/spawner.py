"""Starts processes from a thread that lives as long as the worker, in a view of the files that is its own.

A process that is to die with its parent dies with the thread that started it: so that thread must not be one
that ends. As root it also has a mount namespace of its own, in which folders that only root may enter
(`/root`, as a rule) let others through to what a sandbox needs, and to nothing else.
"""

from __future__ import annotations

import ctypes
import os
import queue
import stat
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import structlog

from ptc_worker.once import once
from ptc_worker.sandbox.protocol import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = structlog.get_logger(__name__)

T = TypeVar("T")

_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)


class Spawner:
    """One thread, for as long as the process lives."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._covered: dict[Path, int] = {}
        self._shown: set[Path] = set()
        self._thread = threading.Thread(target=self._work, name="ptc-spawner", daemon=True)
        self._thread.start()

    def do(self, act: Callable[[], T]) -> T:
        """Do something in the thread and return what it returns."""
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(act())
            except BaseException as error:  # noqa: BLE001 it is raised where it was asked for
                future.set_exception(error)

        self._jobs.put(job)
        return future.result()

    def show(self, paths: Iterable[Path]) -> None:
        """Let other users reach these paths, in this thread and in what it starts; call it from within `do`.

        Raises:
            SandboxError: they cannot, and the system does not let us change that.
        """
        if threading.current_thread() is not self._thread:
            raise RuntimeError("paths are shown in the spawner's thread and in no other")
        if os.geteuid() != 0:
            return
        for path in paths:
            if path not in self._shown:
                try:
                    self._show(path)
                except OSError as error:
                    raise SandboxError(f"{path} cannot be reached by another user: {error}") from error
                self._shown.add(path)

    def _work(self) -> None:
        while True:
            self._jobs.get()()

    def _show(self, path: Path) -> None:
        closed = next((place for place in reversed(path.parents) if _is_closed(place)), None)
        if closed is None and not any(place in self._covered for place in path.parents):
            return
        if not _has_mounts_of_its_own():
            _check(_libc.unshare(_CLONE_NEWNS), "unshare")
            _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
        if closed is not None:
            self._covered[closed] = os.open(closed, os.O_PATH)
            _mount("tmpfs", str(closed), "tmpfs", _MS_NOSUID | _MS_NODEV, "size=64k,mode=0755")
        cover = next(place for place in path.parents if place in self._covered)
        target = os.open(f"/proc/self/fd/{self._covered[cover]}/{path.relative_to(cover)}", os.O_PATH)
        try:
            mask = os.umask(0o022)
            path.mkdir(parents=True, exist_ok=True)
            os.umask(mask)
            # With what is mounted below it, or the kernel refuses what might uncover something.
            _mount(f"/proc/self/fd/{target}", str(path), "", _MS_BIND | _MS_REC)
        finally:
            os.close(target)


def _is_closed(folder: Path) -> bool:
    """Tell whether others may not pass; what is not there (any more, below a cover) is no closed folder."""
    try:
        return not folder.stat().st_mode & stat.S_IXOTH
    except FileNotFoundError:
        return False


def _has_mounts_of_its_own() -> bool:
    """Tell whether what this thread mounts stays out of sight of the process's other threads, and of the host."""
    ours, theirs = (Path("/proc", who, "ns/mnt").stat() for who in ("thread-self", "self"))
    return ours.st_ino != theirs.st_ino


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    if not _has_mounts_of_its_own():
        raise PermissionError(f"{target} would be mounted for all to see")
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    _check(result, f"mount {target}")


@once
def spawner() -> Spawner:
    """Return this process's spawner."""
    return Spawner()
