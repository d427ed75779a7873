"""Python environments for sandboxes, and what is built for them alike: each once, kept while there is room."""

from __future__ import annotations

import compileall
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import stat
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import structlog

from ptc_worker.installer import InstallError, NoRoomError, install

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ptc_worker.halt import Halt
    from ptc_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

BASE_REQUIREMENTS = ("pytest>=9,<10", "pytest-asyncio>=1,<2")
"""What every environment holds: the runner of the tests."""

_INSIDE = Path(__file__).with_name("sandbox") / "inside"
_READY = "ptc-ready"
"""Mark of a whole environment: it holds the bytes that the environment takes, and is touched at each use."""

_PAUSE_SECONDS = 0.05


class Contents(Protocol):
    """What a folder of the cache is to hold."""

    @property
    def recipe(self) -> list[object]:
        """What differs where its files do, as JSON has it."""

    @property
    def told(self) -> dict[str, object]:
        """What the log says of it."""

    def build(self, cache_dir: Path, folder: Path, deadline: float, halt: Halt) -> None:
        """Put it into a folder that is not there yet, downloads into `cache_dir`.

        Raises:
            InstallError: it cannot be had; as NoRoomError if the disk is full.
            TimeoutError: the deadline (of the monotonic clock) has passed.
            HaltedError: the work must stop.
        """


class Addition(Protocol):
    """What an environment holds beside Python's packages."""

    @property
    def recipe(self) -> str:
        """A text that differs where its files do."""

    @property
    def packages(self) -> Sequence[object]:
        """What of it is packages, and no program."""

    def add(self, cache_dir: Path, folder: Path, deadline: float, halt: Halt) -> None:
        """Put it into an environment, its downloads into `cache_dir`.

        Raises:
            InstallError: it cannot be had; as NoRoomError if the disk is full.
            TimeoutError: the deadline (of the monotonic clock) has passed.
            HaltedError: the work must stop.
        """

    def add_packages(
        self, cache_dir: Path, folder: Path, deadline: float, halt: Halt, machine: str = ""
    ) -> None:
        """Put its packages alone there, for a machine of this kind (as `uname -m` says it) that has the program.

        Raises:
            InstallError, TimeoutError, HaltedError: as above.
        """


@dataclass(frozen=True)
class _Environment:
    """What one environment holds."""

    requirements: Sequence[str]
    addition: Addition | None = None

    @property
    def packages(self) -> list[str]:
        return sorted({*BASE_REQUIREMENTS, *self.requirements})

    @property
    def recipe(self) -> list[object]:
        made_of: list[object] = [
            platform.python_version(),
            sys.base_prefix,
            self.packages,
            _inside_digest(),
        ]
        return [*made_of, self.addition.recipe] if self.addition else made_of

    @property
    def told(self) -> dict[str, object]:
        added = {"addition": self.addition.recipe} if self.addition else {}
        return {"packages": self.packages, **added}

    def build(self, cache_dir: Path, folder: Path, deadline: float, halt: Halt) -> None:
        with downloading(cache_dir, "uv", deadline, halt):
            install(cache_dir, folder, self.packages, deadline, halt)
        if self.addition:
            with downloading(cache_dir, "npm", deadline, halt):
                self.addition.add(cache_dir, folder, deadline, halt)
        _copy_inside(folder)


class CacheDirError(InstallError):
    """`PTC_CACHE_DIR` cannot be used or has no room: neither plan nor draft can mend that."""


@contextmanager
def environment(
    settings: WorkerSettings,
    requirements: Sequence[str],
    timeout: float,
    halt: Halt,
    addition: Addition | None = None,
) -> Iterator[Path]:
    """Give the folder of an environment that holds these packages, built if need be; nobody removes it meanwhile.

    Only wheels are installed, for building a source distribution runs its code outside the sandbox. The
    index is reached here, with the installer's own variables (`UV_…`) and no secret of ours. Its files can be
    read by every user.

    Raises:
        InstallError: the set cannot be installed; as CacheDirError if that is neither plan's nor draft's fault.
        TimeoutError: installing took longer than `timeout` seconds.
        HaltedError: the work must stop; whoever waits for the same set installs it then.
    """
    with kept(settings, _Environment(requirements, addition), timeout, halt) as folder:
        yield folder


@contextmanager
def kept(settings: WorkerSettings, contents: Contents, timeout: float, halt: Halt) -> Iterator[Path]:
    """Give the folder of the cache that holds this, built if need be; nobody removes it meanwhile.

    Raises:
        InstallError, TimeoutError, HaltedError: as for an environment.
    """
    folder = _folder(settings.ptc_cache_dir, contents)
    with _in_use(settings, folder, contents, time.monotonic() + timeout, halt):
        yield folder


@contextmanager
def downloading(cache_dir: Path, installer: str, deadline: float, halt: Halt) -> Iterator[None]:
    """Keep an installer's downloads, in the folder of its name, from being swept while it works.

    Raises:
        TimeoutError, HaltedError: it was waited for in vain.
    """
    with _locked(_lock_file(cache_dir / installer), fcntl.LOCK_SH, deadline, halt):
        yield


def hold(folder: Path) -> BinaryIO:
    """Keep an environment from being removed beyond the block that gave its folder, until this is closed.

    To be called inside that block; the hold ends with its process, too.

    Raises:
        CacheDirError: it is being removed, for nobody held it.
    """
    lock = _lock(_lock_file(folder), fcntl.LOCK_SH)
    if lock is None or not (folder / _READY).exists():
        if lock:
            lock.close()
        raise CacheDirError(f"the environment {folder.name} is being removed")
    return lock


def sweep(settings: WorkerSettings) -> None:
    """Remove what killed workers left behind, and what was least recently used beyond `PTC_CACHE_MAX_MB`.

    What anyone holds stays, and so does the environment without further packages. The installer's own cache
    goes first: it can be had again for a download.
    """
    _shrink(settings.ptc_cache_dir, settings.ptc_cache_max_mb * 2**20)


def _folder(cache_dir: Path, contents: Contents) -> Path:
    return cache_dir / "environments" / hashlib.sha256(json.dumps(contents.recipe).encode()).hexdigest()[:24]


@cache
def _inside_digest() -> str:
    sources = sorted(path for path in _INSIDE.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _in_use(
    settings: WorkerSettings, folder: Path, contents: Contents, deadline: float, halt: Halt
) -> BinaryIO:
    """Build what is missing; return the shared lock on what is there."""
    try:
        for made in (settings.ptc_cache_dir, folder.parent):
            if not made.exists():
                made.mkdir(parents=True, exist_ok=True)
                made.chmod(0o755)
        return _built(settings, folder, contents, deadline, halt)
    except TimeoutError:
        raise
    except NoRoomError as error:
        raise CacheDirError(f"PTC_CACHE_DIR ({settings.ptc_cache_dir}) has no room: {error}") from error
    except OSError as error:
        raise CacheDirError(f"PTC_CACHE_DIR cannot be used: {error}") from error


def _built(
    settings: WorkerSettings, folder: Path, contents: Contents, deadline: float, halt: Halt
) -> BinaryIO:
    """Build what is missing; whoever waits for his turn looks each time whether it was built by then and is in use."""
    for _ in _attempts(deadline, halt):
        if lock := _lock(_lock_file(folder), fcntl.LOCK_SH):
            if (folder / _READY).exists():
                os.utime(folder / _READY)
                return lock
            lock.close()
        if lock := _lock(_lock_file(folder), fcntl.LOCK_EX):
            with lock:
                if not (folder / _READY).exists():
                    _build(settings, folder, contents, deadline, halt)
    raise AssertionError("the attempts end with an error")  # pragma: no cover


def _build(settings: WorkerSettings, folder: Path, contents: Contents, deadline: float, halt: Halt) -> None:
    """Build it; on a full disk once more, after everything that nobody uses has gone."""
    cache_dir = settings.ptc_cache_dir
    log.info("environment_building", **contents.told)
    try:
        _build_once(cache_dir, folder, contents, deadline, halt)
    except NoRoomError as error:
        log.warning("cache_dir_full", reason=str(error))
        _shrink(cache_dir, 0)
        _build_once(cache_dir, folder, contents, deadline, halt)
    sweep(settings)


def _build_once(cache_dir: Path, folder: Path, contents: Contents, deadline: float, halt: Halt) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        contents.build(cache_dir, folder, deadline, halt)
        _mark_ready(folder, _opened_to_all(folder))
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoRoomError(str(error)) from error
        raise


def _copy_inside(folder: Path) -> None:
    """Give an environment what runs inside sandboxes, compiled like everything else in it."""
    (site_packages,) = folder.glob("lib/python*/site-packages")
    target = site_packages / "ptc_inside"
    shutil.copytree(_INSIDE, target, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(target, quiet=2)


def _mark_ready(folder: Path, size: int) -> None:
    written = folder / f"{_READY}.new"
    written.write_text(str(size))
    written.chmod(0o644)
    written.rename(folder / _READY)


def _opened_to_all(folder: Path) -> int:
    """Let every user read a tree, whatever the umask was; return the bytes that it takes on disk."""
    size = 0
    for path in (folder, *folder.rglob("*")):
        facts = path.lstat()
        size += facts.st_blocks * 512
        mode = stat.S_IMODE(facts.st_mode)
        runnable = stat.S_ISDIR(facts.st_mode) or mode & stat.S_IXUSR
        if not stat.S_ISLNK(facts.st_mode):
            path.chmod(mode | (0o555 if runnable else 0o444))
    return size


def _shrink(cache_dir: Path, most: int) -> None:
    """Remove leftovers, then the installer's cache, then the least recently used, until at most so many bytes stay."""
    base = _folder(cache_dir, _Environment(()))
    folders = {path.with_suffix("") for path in (cache_dir / "environments").glob("*")}
    marks = []
    for folder in folders:
        try:
            mark = folder / _READY
            # Versions before this one left it empty, and may still run beside us.
            marks.append((mark.stat().st_mtime, int(mark.read_text() or 0), folder))
        except OSError:
            _remove(folder, only_leftovers=True)
    size = sum(taken for _, taken, _ in marks)
    for downloads in (cache_dir / "uv", cache_dir / "npm"):
        if downloads.exists():
            size += (held := _disk_usage(downloads))
            if size > most and _remove(downloads):
                size -= held
    for _, taken, folder in sorted(marks):
        if size <= most:
            break
        if folder != base and _remove(folder):
            log.info("environment_removed", environment=folder.name, megabytes=taken >> 20)
            size -= taken


def _disk_usage(folder: Path) -> int:
    """Add up the bytes below a folder, while others may be changing it."""
    size = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                size += os.lstat(f"{place}/{name}").st_blocks * 512
            except FileNotFoundError:
                continue
    return size


def _remove(folder: Path, *, only_leftovers: bool = False) -> bool:
    """Remove a folder and its lock unless anyone holds it; the mark first, for we may be killed half-way."""
    lock = _lock(_lock_file(folder), fcntl.LOCK_EX)
    if lock is None:
        return False
    with lock:
        if only_leftovers and (folder / _READY).exists():
            return False
        (folder / _READY).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        _lock_file(folder).unlink(missing_ok=True)
    return True


def _lock_file(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def _locked(path: Path, how: int, deadline: float, halt: Halt) -> BinaryIO:
    """Take a lock; wait for whoever has it, but not past the deadline."""
    for _ in _attempts(deadline, halt):
        if lock := _lock(path, how):
            return lock
    raise AssertionError("the attempts end with an error")  # pragma: no cover


def _attempts(deadline: float, halt: Halt) -> Iterator[None]:
    """Let something be tried again and again, for others are at it."""
    while True:
        halt.check()
        yield
        if time.monotonic() >= deadline:
            raise TimeoutError("waiting for another installation took too long")
        time.sleep(_PAUSE_SECONDS)


def _lock(path: Path, how: int) -> BinaryIO | None:
    """Take a lock without waiting; None if it is held otherwise. Closing it lets go, and so does dying."""
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        file.close()  # whoever held it has removed it since we opened it
