"""Python environments for sandboxes: one for each set of packages, built once, read ever after."""

from __future__ import annotations

import compileall
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from uv import find_uv_bin

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ptc_worker.halt import Halt

log = structlog.get_logger(__name__)

BASE_REQUIREMENTS = ("pytest>=9,<10", "pytest-asyncio>=1,<2")
"""What every environment holds: the runner of the tests."""

_INSIDE = Path(__file__).with_name("sandbox") / "inside"
_READY = "ptc-ready"
_MAX_REASON = 1500


class InstallError(Exception):
    """The packages cannot be installed; the message is the installer's."""


def environment(cache_dir: Path, requirements: Sequence[str], timeout: float, halt: Halt) -> Path:
    """Return the folder of an environment that holds these packages, building it if need be.

    Only wheels are installed, for building a source distribution runs its code outside the sandbox. The
    index is reached here, with the installer's own variables (`UV_…`) and no secret of ours.

    Raises:
        InstallError: the set cannot be installed.
        TimeoutError: installing took too long.
        HaltedError: the work must stop; whoever waits for the same set installs it then.
    """
    wanted = sorted({*BASE_REQUIREMENTS, *requirements})
    recipe = json.dumps([platform.python_version(), sys.base_prefix, wanted, _inside_digest()])
    folder = cache_dir / "environments" / hashlib.sha256(recipe.encode()).hexdigest()[:24]
    if (folder / _READY).exists():
        return folder
    deadline = time.monotonic() + timeout
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InstallError(f"PTC_CACHE_DIR cannot be used: {error}") from error
    with _locked(folder.with_suffix(".lock"), deadline, halt):
        if not (folder / _READY).exists():
            log.info("environment_building", packages=wanted)
            shutil.rmtree(folder, ignore_errors=True)
            _uv(cache_dir, deadline, halt, "venv", "--quiet", "--python", sys.executable, str(folder))
            python = str(folder / "bin" / "python")
            options = ("--quiet", "--python", python, "--only-binary", ":all:", "--compile-bytecode")
            # Copies, not links: what is mounted into a sandbox must not be the installer's own cache.
            _uv(cache_dir, deadline, halt, "pip", "install", *options, "--link-mode", "copy", "--", *wanted)
            _copy_inside(folder)
            (folder / _READY).touch()
    return folder


def _copy_inside(folder: Path) -> None:
    """Give an environment what runs inside sandboxes, compiled like everything else in it."""
    (site_packages,) = folder.glob("lib/python*/site-packages")
    target = site_packages / "ptc_inside"
    shutil.copytree(_INSIDE, target, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(target, quiet=2)


@cache
def _inside_digest() -> str:
    sources = sorted(_INSIDE.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _uv(cache_dir: Path, deadline: float, halt: Halt, *arguments: str) -> None:
    passed = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("UV_", "SSL_CERT_"))
        or name.lower() in {"http_proxy", "https_proxy", "no_proxy", "all_proxy"}
    }
    env = {
        "PATH": os.defpath,
        "HOME": str(cache_dir),
        "UV_CACHE_DIR": str(cache_dir / "uv"),
        "NO_COLOR": "1",
        **passed,
    }
    with subprocess.Popen(  # noqa: S603 the installer we depend on; packages go behind --
        [find_uv_bin(), *arguments],
        env=env,
        cwd=cache_dir,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            with halt.calling(partial(_kill, process)):
                _, reason = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise TimeoutError("installing the packages took too long") from None
        finally:
            _kill(process)
    if process.returncode != 0:
        raise InstallError(reason.strip()[-_MAX_REASON:] or f"uv ended with {process.returncode}")


def _kill(process: subprocess.Popen[str]) -> None:
    """End an installer that still runs, and the compilers that it has started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _locked(path: Path, deadline: float, halt: Halt) -> Iterator[None]:
    """Hold a lock; wait for whoever builds the same set just now, but not past the deadline."""
    with path.open("w") as file:
        while True:
            halt.check()
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimeoutError("waiting for another installation took too long") from None
                time.sleep(0.05)
        yield
