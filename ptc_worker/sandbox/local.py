"""A sandbox on this machine: namespaces where the system allows them, limits and a reaper in any case."""

from __future__ import annotations

import json
import os
import secrets
import selectors
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import structlog

from ptc_worker.sandbox import supervise
from ptc_worker.sandbox.protocol import ExecResult, SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ptc_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

OUTPUT_LIMIT = 4 * 2**20
"""Bytes a command may write to its two streams together before it is ended."""

EVENTS_LIMIT = 32 * 2**20
"""Bytes of events that a command may write before it is ended."""

FILE_LIMIT = 64 * 2**20
"""Bytes one file in the sandbox may grow to."""

PROCESS_LIMIT = 128
"""Processes and threads of one sandbox's user."""

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_DRAIN_SECONDS = 5.0


class NamespacesRefusedError(SandboxError):
    """The system does not let us make namespaces."""


class LocalSandbox:
    """One directory under the temporary one, and the processes that run in it."""

    def __init__(self, settings: WorkerSettings, read_only: Sequence[str]) -> None:
        self._memory = settings.ptc_sandbox_memory_mb * 2**20
        self._read_only = [*_SYSTEM, sys.base_prefix, *read_only]
        self._uid = 1_000_000 + secrets.randbelow(1_000_000) if os.getuid() == 0 else None
        self._parent: Path | None = None
        self._lifelines: set[_Lifeline] = set()
        self._stopped = False
        self._stopping = threading.Lock()
        self.isolation = isolation()

    @property
    def root(self) -> str:
        """The sandbox's directory."""
        return str(self._home)

    @property
    def _home(self) -> Path:
        if self._parent is None:
            raise SandboxError("the sandbox is not there: not started, or destroyed")
        return self._parent / "box"

    def start(self) -> None:
        """Make the directory, in one of ours: what runs inside cannot rename its own away."""
        try:
            self._parent = Path(tempfile.mkdtemp(prefix="ptc-sandbox-")).resolve()
            self._parent.chmod(0o711)
            self._home.mkdir(mode=0o755)
            self._own(self._home)
        except OSError as error:
            raise SandboxError(f"no sandbox directory: {error}") from error

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files below the root, making the directories they need."""
        home = self._home
        try:
            for path, content in files.items():
                target = home / path
                for parent in reversed(target.relative_to(home).parents[:-1]):
                    if not (home / parent).is_dir():
                        (home / parent).mkdir(mode=0o755)
                        self._own(home / parent)
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
                with os.fdopen(os.open(target, flags, 0o644), "wb") as file:
                    file.write(content)
                self._own(target)
        except (OSError, ValueError) as error:
            raise SandboxError(f"a file cannot be written: {error}") from error

    def read(self, path: str, limit: int) -> bytes | None:
        """Read the start of a regular file; links, devices and directories are not there."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            with os.fdopen(os.open(self._home / path, flags), "rb") as file:
                return file.read(limit) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
        except OSError:
            return None

    def exec(self, command: Sequence[str], *, env: Mapping[str, str], cwd: str, timeout: float) -> ExecResult:
        """Run a command below a supervisor of its own, which leaves nothing of it alive."""
        with self._stoppable() as lifeline:
            ran = _supervised(
                lifeline,
                command=list(command),
                env={**env, "PTC_EVENTS": f"{self.root}/.events"},
                cwd=str(self._home / cwd),
                timeout=timeout,
                namespaces=self.isolation == "namespaces",
                read_only=self._read_only,
                writable=self.root,
                uid=self._uid,
                limits={
                    "RLIMIT_AS": self._memory,
                    "RLIMIT_FSIZE": FILE_LIMIT,
                    "RLIMIT_NPROC": PROCESS_LIMIT,
                    "RLIMIT_NOFILE": 512,
                    "RLIMIT_CORE": 0,
                    "RLIMIT_CPU": max(1, round(timeout) + 1),
                },
            )
        return replace(ran, events=self.read(".events", EVENTS_LIMIT) or b"")

    def stop(self) -> None:
        """End what runs, by its supervisor; refuse what would run."""
        with self._stopping:
            self._stopped = True
            for lifeline in self._lifelines:
                lifeline.cut()

    def destroy(self) -> None:
        """Remove the directory, however deep it is and whatever rights were taken away in it."""
        self.stop()
        if self._parent is not None:
            _remove(self._parent)
            self._parent = None

    @contextmanager
    def _stoppable(self) -> Iterator[_Lifeline]:
        """Let `stop` end what runs in the block, which is no result then."""
        with _Lifeline() as lifeline:
            with self._stopping:
                self._refuse_if_stopped()
                self._lifelines.add(lifeline)
            try:
                yield lifeline
            finally:
                with self._stopping:
                    self._lifelines.remove(lifeline)
            self._refuse_if_stopped()

    def _refuse_if_stopped(self) -> None:
        if self._stopped:
            raise SandboxError("the sandbox was stopped")

    def _own(self, path: Path) -> None:
        if self._uid is not None:
            os.chown(path, self._uid, self._uid, follow_symlinks=False)


class _Lifeline:
    """A pipe to a supervisor, which ends everything once our end of it is closed."""

    def __init__(self) -> None:
        self.far, self._near = os.pipe()
        self._whole = True
        self._cutting = threading.Lock()

    def cut(self) -> None:
        """Close our end; any thread may do so, and again."""
        with self._cutting:
            if self._whole:
                os.close(self._near)
                self._whole = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        os.close(self.far)


def _remove(folder: Path) -> None:
    """Remove a tree by the system's own tools: they neither recurse without end nor follow links."""
    for command in (["rm", "-rf"], ["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
        subprocess.run([*command, "--", str(folder)], stderr=subprocess.DEVNULL, check=False)  # noqa: S603
        if not folder.exists():
            return
    log.warning("sandbox_not_removed", folder=str(folder))


@cache
def isolation() -> str:
    """Find out once what this system offers: `namespaces`, or `process` where it refuses them.

    Raises:
        SandboxError: neither is known, for the attempt failed in another way; the next call tries again.
    """
    with tempfile.TemporaryDirectory(prefix="ptc-sandbox-") as home, _Lifeline() as lifeline:
        Path(home).chmod(0o755)
        try:
            _supervised(
                lifeline,
                command=["/bin/sh", "-c", "exit 0"],
                env={},
                cwd=home,
                timeout=10,
                namespaces=True,
                read_only=list(_SYSTEM),
                writable=home,
                uid=1_000_000 if os.getuid() == 0 else None,
                limits={},
            )
        except NamespacesRefusedError as error:
            log.warning("sandbox_without_namespaces", reason=str(error))
            return "process"
    return "namespaces"


def _supervised(lifeline: _Lifeline, **spec: Any) -> ExecResult:  # noqa: ANN401 the fields of supervise.Spec
    """Run one supervisor and read what its command writes, until it ends, is cut off or meets the limit."""
    report_read, report_write = os.pipe()
    whole = supervise.Spec(**spec, parent_fd=lifeline.far, report_fd=report_write)
    started = time.monotonic()
    try:
        process = subprocess.Popen(  # noqa: S603 our own program; what it runs is hostile and in its care
            [sys.executable, "-I", "-S", "-B", supervise.__file__, json.dumps(asdict(whole))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(lifeline.far, report_write),
            env={},
            start_new_session=True,
        )
    except OSError as error:
        os.close(report_read)
        raise SandboxError(f"the supervisor cannot be started: {error}") from error
    finally:
        os.close(report_write)
    with process, os.fdopen(report_read, "rb") as report:
        try:
            stdout, stderr, limited = _drain(process, lifeline, whole.timeout + _DRAIN_SECONDS)
        finally:
            lifeline.cut()
            _end(process)
        facts: dict[str, Any] = {}
        for line in report:
            facts |= json.loads(line)
    if facts.get("refused"):
        raise NamespacesRefusedError(facts["error"])
    if "error" in facts or "status" not in facts:
        raise SandboxError(facts.get("error", "the supervisor died"))
    return ExecResult(
        exit_code=_signed(facts["status"]),
        stdout=stdout,
        stderr=stderr,
        duration_seconds=time.monotonic() - started,
        timed_out=facts["timed_out"],
        output_limited=limited,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a supervisor; one that was stopped by what it supervises is killed."""
    try:
        process.wait(_DRAIN_SECONDS)
    except subprocess.TimeoutExpired:
        log.warning("supervisor_killed")
        process.kill()
        process.wait()


def _drain(
    process: subprocess.Popen[bytes], lifeline: _Lifeline, seconds: float
) -> tuple[bytes, bytes, bool]:
    """Read both streams until they end, are cut off, time is over, or they hold too much; the last is told."""
    chunks: dict[int, list[bytes]] = {}
    deadline, size = time.monotonic() + seconds, 0
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            assert stream is not None  # noqa: S101 both are pipes
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ)
            chunks[stream.fileno()] = []
        selector.register(lifeline.far, selectors.EVENT_READ)
        while len(selector.get_map()) > 1 and size <= OUTPUT_LIMIT and time.monotonic() < deadline:
            for key, _ in selector.select(deadline - time.monotonic()):
                if key.fd == lifeline.far:
                    deadline = 0.0
                    continue
                chunk = os.read(key.fd, 2**16)
                chunks[key.fd].append(chunk)
                size += len(chunk)
                if not chunk:
                    selector.unregister(key.fileobj)
    stdout, stderr = (b"".join(parts) for parts in chunks.values())
    return stdout, stderr, size > OUTPUT_LIMIT


def _signed(status: int) -> int:
    """Give an exit code of 128 and above as the negative signal that it stands for."""
    return 128 - status if status > 128 else status  # noqa: PLR2004 the shells' convention
