"""Serves one sandbox from within: writes and reads its files, runs its commands, and ends what they leave.

Started by `ptc_worker.sandbox.local`, which talks to it over a socket. Under bubblewrap it is process 1 of its
namespace: nothing inside can signal it, and with it everything ends. Elsewhere it is the reaper of all that its
commands start, and they get other walls (`confine.py`); it stands outside of them itself, so it runs from the worker's
own files there and loads nothing of the environment.

`Spec.preload` says whether it loads pytest before it is asked anything. A command that starts with this very
interpreter (`FORKED`) then runs in a fork of the agent: the same program, but for the time it takes to load.
"""

from __future__ import annotations

import importlib
import os
import sys

if __name__ == "__main__" and '"preload": true' in sys.argv[1]:
    import _pytest.config
    import ptc_inside.pytest_report  # type: ignore[import-not-found]  # noqa: F401
    import pytest  # noqa: F401 for whoever is forked

    for _plugin in _pytest.config.default_plugins:
        if _plugin != "stepwise":  # it goes without saying with `-p no:cacheprovider`
            importlib.import_module(f"_pytest.{_plugin}")

# What follows is the agent's own: a forked program forgets it, for it may have modules of these names.
_LOADED = frozenset(sys.modules)

import array  # noqa: E402
import errno  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402
import select  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import stat  # noqa: E402
import struct  # noqa: E402
from contextlib import suppress  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from typing import Any  # noqa: E402

from . import confine  # noqa: E402
from .guard import Guard  # noqa: E402

FORKED = ("-P", "-B", "-m")
"""The arguments between the interpreter and the name of a module that is run in a fork."""

EVENTS_FD = 3
"""Where a command may write events."""

_HEADER = struct.Struct("!I")
_CHUNK = 2**20


@dataclass(frozen=True)
class Spec:
    """What an agent is told at its start."""

    control: int
    """Descriptor of the socket to the worker."""
    root: str
    """The one directory that commands may write, beside temporary ones."""
    memory: int
    """Bytes that all commands and their files may hold together."""
    disk: int
    """Bytes that files below `root` may take."""
    processes: int
    """Processes and threads that commands may have."""
    namespaces: bool
    """Whether this is process 1 of its own namespace."""
    walls: confine.Walls | None = None
    """What each command gets instead, where there are no namespaces."""
    preload: bool = False
    """Whether pytest is loaded."""
    temporary: list[str] = field(default_factory=list)
    """More file systems in memory that count."""


def main() -> None:
    """Serve until the worker is gone; a fork of this process returns from here as the program it is to run."""
    raw = json.loads(sys.argv[1])
    walls = raw.pop("walls", None)
    spec = Spec(**raw, walls=walls and confine.Walls(**walls))
    for unwanted in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        # As process 1, without a handler: the kernel drops them. Elsewhere: the worker decides, over the socket.
        signal.signal(unwanted, signal.SIG_DFL if spec.namespaces else signal.SIG_IGN)
    confine.hide()
    if not spec.namespaces:
        confine.adopt_orphans()
    program = Agent(spec).serve()
    if program is None:
        os._exit(0)  # nothing of it is worth the tidying up of an interpreter
    for name in set(sys.modules) - _LOADED:
        del sys.modules[name]
    run_module(*program)


def run_module(module: str, arguments: list[str]) -> None:
    """Run a module as `python -m` does."""
    import runpy

    sys.argv = [module, *arguments]
    sys.orig_argv = [sys.executable, *FORKED, *sys.argv]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        leave(end.code or 0)


def leave(code: int) -> None:
    """End as an interpreter does, but for taking its modules apart: in a fork that copies all their pages."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 waits for the threads that are to be waited for
    atexit._run_exitfuncs()  # noqa: SLF001
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code & 0xFF)


class GoneError(Exception):
    """The worker is gone."""


class Agent:
    """One sandbox, seen from within."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._socket = socket.socket(fileno=spec.control)
        self._socket.set_inheritable(False)
        self._root = os.open(spec.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def serve(self) -> tuple[str, list[str]] | None:
        """Do what the worker asks, until it is gone; return a program to run only in a fork of this process."""
        try:
            while True:
                request, descriptors = self._receive()
                match request.pop("op"):
                    case "write":
                        self._answer(self._write, **request)
                    case "read":
                        self._answer(self._read, **request)
                    case "exec":
                        if program := self._exec(descriptors, **request):
                            return program
        except (GoneError, ConnectionError):
            self._kill_all()
            return None

    # ── the socket ─────────────────────────────────────────────────────────────────────────────────────────

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        """Read one request and the descriptors that came with it."""
        room = socket.CMSG_LEN(3 * array.array("i").itemsize)
        start, ancillary, _, _ = self._socket.recvmsg(_HEADER.size, room, socket.MSG_CMSG_CLOEXEC)
        descriptors = array.array("i")
        for _level, _kind, data in ancillary:
            descriptors.frombytes(data)
        if not start:
            raise GoneError
        start += self._bytes(_HEADER.size - len(start))
        request: dict[str, Any] = json.loads(self._bytes(_HEADER.unpack(start)[0]))
        return request, list(descriptors)

    def _bytes(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._socket.recv(min(size, _CHUNK))
            if not part:
                raise GoneError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _tell(self, content: bytes = b"", **facts: object) -> None:
        text = json.dumps({**facts, "size": len(content)}).encode()
        self._socket.sendall(_HEADER.pack(len(text)) + text + content)

    def _answer(self, act: Any, **request: Any) -> None:  # noqa: ANN401 one of the methods below, and its fields
        try:
            content = act(**request)
        except OSError as error:
            self._tell(error=error.strerror or type(error).__name__)
        except ValueError as error:  # a name with a NUL
            self._tell(error=str(error))
        else:
            self._tell(content or b"", found=content is not None)

    # ── files ──────────────────────────────────────────────────────────────────────────────────────────────

    def _write(self, files: list[tuple[str, int]], mode: int) -> None:
        """Write new files, whose contents follow the request; all of them are read whatever becomes of one.

        A file that is there goes first: programs may have given it more names, and would read the new one by them.
        """
        contents = [(path, self._bytes(size)) for path, size in files]
        for path, content in contents:
            folder, name = self._folder_of(path, make=True)
            try:
                with suppress(FileNotFoundError):
                    if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                        raise OSError(errno.EINVAL, "no regular file")
                    os.unlink(name, dir_fd=folder)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with os.fdopen(os.open(name, flags, 0o644, dir_fd=folder), "wb") as file:
                    self._own(file.fileno())
                    file.write(content)
                    os.fchmod(file.fileno(), mode)
            finally:
                os.close(folder)

    def _read(self, path: str, limit: int) -> bytes | None:
        """Read the start of a regular file; None for whatever else there is, or is not."""
        try:
            folder, name = self._folder_of(path, make=False)
        except (OSError, ValueError):
            return None
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with os.fdopen(os.open(name, flags, dir_fd=folder), "rb") as file:
                return file.read(limit) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
        except (OSError, ValueError):
            return None
        finally:
            os.close(folder)

    def _folder_of(self, path: str, *, make: bool) -> tuple[int, str]:
        """Open the folder of a path below the root step by step, so that no link is followed on the way."""
        *folders, name = path.split("/")
        if not name or ".." in path.split("/"):
            raise OSError(errno.EINVAL, "no path of a file")
        here = os.dup(self._root)
        for folder in folders:
            if folder in {"", "."}:
                os.close(here)
                raise OSError(errno.EINVAL, "no path of a file")
            try:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(folder, 0o755, dir_fd=here)
                        self._own(folder, here)
                there = os.open(
                    folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here
                )
            finally:
                os.close(here)
            here = there
        return here, name

    def _own(self, file: int | str, folder: int | None = None) -> None:
        """Give a file to the user that commands run as, where that is another one."""
        uid = self._spec.walls.uid if self._spec.walls else None
        if uid is not None:
            os.chown(file, uid, uid, dir_fd=folder, **({} if folder is None else {"follow_symlinks": False}))

    # ── commands ───────────────────────────────────────────────────────────────────────────────────────────

    def _exec(
        self,
        streams: list[int],
        command: list[str],
        env: dict[str, str],
        cwd: str,
        limits: dict[str, int],
    ) -> tuple[str, list[str]] | None:
        """Run a command to its end, or to the worker's word; return a program in the fork that is to run it."""
        failed, failing = os.pipe2(os.O_CLOEXEC)
        gc.freeze()  # what is there by now lives on: collecting in the child would only copy its pages
        child = os.fork()
        if not child:
            try:
                return self._become(streams, command, env, cwd, limits)
            except BaseException as error:  # noqa: BLE001 a child never returns into its parent's work
                reason = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
                os.write(failing, f"{reason}: {command[0]!r} in {cwd!r}".encode(errors="replace"))
                os._exit(127)
        for descriptor in (*streams, failing):
            os.close(descriptor)
        with os.fdopen(failed, "rb") as failure:
            said = failure.read().decode(errors="replace")
        if said:
            os.waitpid(child, 0)
            self._tell(error=said)
            return None
        self._tell(started=True)
        status, why = self._watch(child)
        self._kill_all()
        self._tell(status=status, why=why)
        return None

    def _become(
        self, streams: list[int], command: list[str], env: dict[str, str], cwd: str, limits: dict[str, int]
    ) -> tuple[str, list[str]]:
        """Turn this child into the command; return only if it is a module to run in this very process."""
        os.setsid()
        confine.show()
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
        self._socket.detach()
        stdin = os.open(os.devnull, os.O_RDONLY)
        for target, source in enumerate((stdin, *streams)):
            # These sources are above 3: standard streams, socket and root were there before them.
            os.dup2(source, target)
        for name, value in limits.items():
            _, hard = resource.getrlimit(kind := getattr(resource, name))
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (most, most))
        if self._spec.walls:
            confine.enter(self._spec.walls)
        os.chdir(os.path.join(self._spec.root, cwd))  # now that a link leads nowhere that it cannot go itself
        for ignored in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_DFL)
        if not (self._spec.preload and command[0] == sys.executable and tuple(command[1:4]) == FORKED):
            for usual in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(usual, signal.SIG_DFL)
            os.execve(command[0], command, env)  # noqa: S606 to run it is the purpose
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        os.closerange(EVENTS_FD + 1, 2**16)
        os.environ.clear()
        os.environ.update(env)
        return command[4], command[5:]

    def _watch(self, child: int) -> tuple[int, str]:
        """Wait for a command; return its exit code and what ended it: itself, the worker, memory or disk."""
        ended = os.pidfd_open(child)
        guard = Guard(self._spec)
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(self._socket, select.POLLIN)
        why = ""
        try:
            while not why:
                ready = {descriptor for descriptor, _ in poll.poll(guard.look_seconds * 1000)}
                if ended in ready:
                    break
                if ready:
                    self._receive()  # there is one thing to say while a command runs: stop
                    why = "worker"
                else:
                    why = guard.complaint()
        finally:
            os.close(ended)
        if why:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), why

    def _kill_all(self) -> None:
        """Leave nothing alive but this process."""
        if self._spec.namespaces:
            with suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            with suppress(ChildProcessError):
                while True:
                    os.waitpid(-1, 0)
        else:
            confine.kill_descendants(self._spec.walls.uid if self._spec.walls else None)


if __name__ == "__main__":
    main()
