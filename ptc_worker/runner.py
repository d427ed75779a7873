"""Files go into a sandbox, and out comes a verdict."""

from __future__ import annotations

import secrets
import threading
import time
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import structlog

from ptc_worker.environments import environment
from ptc_worker.once import once
from ptc_worker.sandbox import open_sandbox
from ptc_worker.sandbox.protocol import SandboxError
from ptc_worker.verdict import EventLog, judge

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ptc_contracts import CodeArtifact
    from ptc_contracts.progress import Verdict
    from ptc_worker.halt import Halt
    from ptc_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

PLUGIN = "ptc_inside.pytest_report"
_SANDBOX_TRIES = 2
_LOOK_SECONDS = 0.2


def run_tests(
    settings: WorkerSettings,
    files: Sequence[CodeArtifact],
    requirements: Sequence[str],
    seconds: float,
    halt: Halt,
) -> tuple[Verdict, str]:
    """Run a project's tests for at most so many seconds; return the verdict and what isolated them.

    A sandbox that fails is replaced once: that is our fault, not the draft's.

    Raises:
        InstallError: the packages cannot be installed.
        SandboxError: no sandbox can be had.
        TimeoutError: the time was over before the tests began.
        HaltedError: the work must stop; nothing of it is left behind.
    """
    deadline = time.monotonic() + seconds
    with (
        environment(settings, requirements, seconds, halt) as folder,
        _slot(settings.ptc_sandbox_concurrency, deadline, halt),
    ):
        for attempt in range(1, _SANDBOX_TRIES + 1):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no time was left for the tests")
            try:
                return _run_once(settings, files, folder, min(left, settings.ptc_test_timeout), halt)
            except SandboxError as error:
                halt.check()
                log.warning("sandbox_failed", attempt=attempt, error=str(error))
                if attempt == _SANDBOX_TRIES:
                    raise
    raise AssertionError("the loop returns or raises")  # pragma: no cover


def _run_once(
    settings: WorkerSettings, files: Sequence[CodeArtifact], folder: Path, seconds: float, halt: Halt
) -> tuple[Verdict, str]:
    key = secrets.token_bytes(32)
    python = str(folder / "bin" / "python")
    asyncio = any("asyncio" in file.content for file in files if file.file_path.endswith(".py"))
    plugins = any(line.startswith("pytest-") for line in _distributions(folder))
    command = [
        *(python, "-P", "-B", "-m", "pytest", "-q", "--tb=short", "--color=no"),
        *("-p", "no:cacheprovider", "-p", PLUGIN, "--import-mode=importlib", "--rootdir=."),
        *(("-p", "pytest_asyncio.plugin") if asyncio and not plugins else ()),
        *("-o", "addopts=", "-o", "pythonpath=src . tests"),
    ]
    with open_sandbox(settings, folder) as box, halt.calling(box.stop):
        box.write({f"project/{file.file_path}": file.content.encode() for file in files})
        box.write({"ptc/key": key, "home/.keep": b""})
        ran = box.exec(
            command,
            env={
                "PATH": f"{folder}/bin:/usr/bin:/bin",
                "HOME": f"{box.root}/home",
                "LANG": "C.UTF-8",
                "PTC_KEY": f"{box.root}/ptc/key",
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONHASHSEED": "0",
                "OPENBLAS_NUM_THREADS": "1",
                **({} if plugins else {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}),
            },
            cwd="project",
            timeout=seconds,
        )
        verdict = judge(ran, EventLog.parse(ran.events, key), "python " + " ".join(command[1:]))
        log.info("tests_ran", outcome=verdict.outcome.value, seconds=round(ran.duration_seconds, 2))
        return verdict, box.isolation


@cache
def _distributions(folder: Path) -> frozenset[str]:
    """Name the pytest plugins that were asked for beside our own; they are loaded by their entry points."""
    names = (
        path.name.partition("-")[0].replace("_", "-")
        for path in folder.glob("lib/python*/site-packages/*.dist-info")
    )
    return frozenset(names) - {"pytest-asyncio"}


@contextmanager
def _slot(number: int, deadline: float, halt: Halt) -> Iterator[None]:
    """Bound the sandboxes of this process: tests want a core each, model calls do not."""
    halt.check()
    while not _slots(number).acquire(timeout=max(0.0, min(_LOOK_SECONDS, deadline - time.monotonic()))):
        halt.check()
        if time.monotonic() >= deadline:
            raise TimeoutError("no sandbox was free in time")
    try:
        yield
    finally:
        _slots(number).release()


@once
def _slots(number: int) -> threading.BoundedSemaphore:
    return threading.BoundedSemaphore(number)
