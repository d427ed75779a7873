"""Directories of sandboxes on the host: each process has one for its own, and removes those of the dead."""

from __future__ import annotations

import atexit
import fcntl
import os
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from ptc_worker.once import once
from ptc_worker.sandbox.protocol import SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator

log = structlog.get_logger(__name__)

_PREFIX = "ptc-sandboxes-"
_ALIVE = "alive"


def new_folder() -> Path:
    """Make a directory for one sandbox: others may pass through it, and only we change it.

    Raises:
        SandboxError: there is no room, or no right to make one.
    """
    try:
        folder = Path(tempfile.mkdtemp(dir=_ours()))
        folder.chmod(0o711)
    except OSError as error:
        raise SandboxError(f"no sandbox directory: {error}") from error
    return folder


def remove(folder: Path) -> None:
    """Remove a tree by the system's own tools: they neither recurse without end nor follow links."""
    for command in (["rm", "-rf"], ["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
        subprocess.run([*command, "--", str(folder)], stderr=subprocess.DEVNULL, check=False)  # noqa: S603
        if not folder.exists():
            return
    log.warning("sandbox_not_removed", folder=str(folder))


def sweep() -> None:
    """Remove the directories of processes that are gone: they hold no lock any more."""
    with _one_at_a_time():
        for folder in _base().glob(f"{_PREFIX}*"):
            try:
                # Others may make such folders where everybody may: no pipe to wait for, and not for root to remove.
                alive = os.fdopen(os.open(folder / _ALIVE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
            except OSError:
                continue
            with alive:
                if os.fstat(alive.fileno()).st_uid != os.geteuid():
                    continue
                try:
                    fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                remove(folder)
                log.info("leftovers_removed", folder=str(folder))


@once
def _ours() -> Path:
    """Make this process's directory, held by a lock that the kernel lets go when the process ends."""
    with _one_at_a_time():
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_base()))
        folder.chmod(0o711)
        alive = os.open(folder / _ALIVE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(alive, fcntl.LOCK_EX)
    atexit.register(remove, folder)
    return folder


def _base() -> Path:
    return Path(tempfile.gettempdir()).resolve()


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Keep a directory that is just being made from being swept."""
    lock = os.open(
        _base() / f"ptc-sandboxes.{os.geteuid()}.lock",
        os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o600,
    )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
