"""Runs installers: packages of an index into a folder, with network, without secrets and never beyond this process's life."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from uv import find_uv_bin

from ptc_worker import leash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ptc_worker.halt import Halt

_MAX_REASON = 1500
_NO_ROOM = re.compile(rf"\(os error ({errno.ENOSPC}|{errno.EDQUOT})\)|\b(ENOSPC|EDQUOT)\b")


_COMPILE = """
import compileall, py_compile, sys
compileall.compile_dir(
    sys.argv[1], quiet=2, workers=0, stripdir=sys.argv[1],
    invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
)
"""


class InstallError(Exception):
    """The packages cannot be installed; the message is the installer's."""


class NoRoomError(InstallError):
    """The disk is full."""


@dataclass(frozen=True)
class Target:
    """A Python elsewhere, and the machine that it runs on."""

    python: str
    """Its version, as `3.12.4`."""
    platform: str
    """The machine, as uv names it: `x86_64-manylinux_2_36`."""

    @property
    def options(self) -> tuple[str, ...]:
        """What uv is told of it."""
        return (
            *("--python", sys.executable),
            *("--python-version", self.python),
            *("--python-platform", self.platform),
            *("--only-binary", ":all:"),
        )


def install(cache_dir: Path, folder: Path, wanted: Sequence[str], deadline: float, halt: Halt) -> None:
    """Make a virtual environment and install wheels into it, byte-code compiled.

    Raises:
        InstallError: uv refuses; as NoRoomError if the disk is full.
        TimeoutError: the deadline (of the monotonic clock) has passed.
        HaltedError: the work must stop; uv has ended.
    """
    _uv(cache_dir, deadline, halt, "venv", "--quiet", "--python", sys.executable, str(folder))
    python = str(folder / "bin" / "python")
    options = ("--quiet", "--python", python, "--only-binary", ":all:", "--compile-bytecode")
    # Copies, not links: what is mounted into a sandbox must not be the installer's own cache.
    _uv(cache_dir, deadline, halt, "pip", "install", *options, "--link-mode", "copy", "--", *wanted)


def resolve(
    cache_dir: Path,
    folder: Path,
    wanted: Sequence[str],
    preferred: Sequence[str],
    *,
    target: Target,
    deadline: float,
    halt: Halt,
) -> list[str]:
    """Find one version of each package that these requirements need, and of what they need in turn.

    What is `preferred` (`name==version`) is taken where the requirements allow it. `folder` is for files on the way.

    Raises:
        InstallError, TimeoutError, HaltedError: as for `install`.
    """
    with TemporaryDirectory(dir=folder) as work:
        asked, found = Path(work, "wanted.txt"), Path(work, "found.txt")
        asked.write_text("".join(f"{line}\n" for line in wanted))
        found.write_text("".join(f"{line}\n" for line in preferred))
        options = ("--quiet", *target.options, "--no-header", "--no-annotate", "--output-file", str(found))
        _uv(cache_dir, deadline, halt, "pip", "compile", *options, "--", str(asked))
        lines = found.read_text().splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def gather(
    cache_dir: Path, folder: Path, packages: Sequence[str], *, target: Target, deadline: float, halt: Halt
) -> None:
    """Put wheels for a Python elsewhere into a folder, these alone, and byte-code if that Python can read ours.

    The byte-code is valid whatever times the files carry later. Scripts are left out: they would name our Python.

    Raises:
        InstallError, TimeoutError, HaltedError: as for `install`.
    """
    options = ("--quiet", *target.options, "--no-deps", "--link-mode", "copy", "--target", str(folder))
    _uv(cache_dir, deadline, halt, "pip", "install", *options, "--", *packages)
    shutil.rmtree(folder / "bin", ignore_errors=True)
    (folder / ".lock").unlink(missing_ok=True)
    if target.python.split(".")[:2] == platform.python_version().split(".")[:2]:
        run_installer([sys.executable, "-I", "-c", _COMPILE, str(folder)], {}, cache_dir, deadline, halt)


def _uv(cache_dir: Path, deadline: float, halt: Halt, *arguments: str) -> None:
    variables = {"UV_CACHE_DIR": str(cache_dir / "uv"), **passed_on("UV_")}
    run_installer([find_uv_bin(), *arguments], variables, cache_dir, deadline, halt)


def run_installer(
    command: Sequence[str], variables: Mapping[str, str], cache_dir: Path, deadline: float, halt: Halt
) -> None:
    """Run a program that downloads packages, with `cache_dir` for its home, and with these variables.

    Raises:
        InstallError: it fails; as NoRoomError if the disk is full.
        TimeoutError: the deadline (of the monotonic clock) has passed.
        HaltedError: the work must stop; the program has ended.
    """
    with subprocess.Popen(  # noqa: S603 the installers we depend on; packages go behind --
        [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *command],
        env={"PATH": os.defpath, "HOME": str(cache_dir), "NO_COLOR": "1", **variables},
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
        kind = NoRoomError if _NO_ROOM.search(reason) else InstallError
        raise kind(reason.strip()[-_MAX_REASON:] or f"{command[0]} ended with {process.returncode}")


def passed_on(*prefixes: str) -> dict[str, str]:
    """Choose what an installer may know of our environment: its own variables, proxies and certificates."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith((*prefixes, "SSL_CERT_"))
        or name.lower() in {"http_proxy", "https_proxy", "no_proxy", "all_proxy"}
    }


def _kill(process: subprocess.Popen[str]) -> None:
    """End an installer that still runs, and the compilers that it has started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
