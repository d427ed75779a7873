"""A sandbox on this machine: an agent behind bubblewrap or Landlock, and the worker's end of the line to it."""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import structlog

from ptc_worker.sandbox import cgroups, leftovers, seccomp, tiers
from ptc_worker.sandbox.inside import confine
from ptc_worker.sandbox.inside.agent import EVENTS_FD, Spec
from ptc_worker.sandbox.inside.confine import Walls
from ptc_worker.sandbox.inside.limits import PROCESSES, limits
from ptc_worker.sandbox.inside.line import Line, Streams, follow
from ptc_worker.sandbox.protocol import ExecResult, SandboxError
from ptc_worker.sandbox.spawner import spawner
from ptc_worker.sandbox.tools import tools_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ptc_worker.sandbox.protocol import Tools
    from ptc_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

_BARE = (
    *("-I", "-S", "-B", "-c"),
    "import runpy, sys; sys.path.append(sys.argv.pop(1)); runpy.run_module('inside.agent', run_name='__main__', alter_sys=True)",
)
"""Arguments for an agent outside all walls: not a line of the environment's packages may run in it, nor their `.pth`."""

_AGENT_BYTES = 96 * 2**20
_AGENT_PROCESSES = 8
_START_SECONDS = 30.0
_END_SECONDS = 5.0


class LocalSandbox:
    """One agent, and the place that it serves: in memory behind bubblewrap, else a directory of ours."""

    def __init__(self, settings: WorkerSettings, environment: Path, *, preload: bool = True) -> None:
        self.isolation: str = tiers.isolation(settings)
        self.environment = environment
        self._preload = preload
        self._memory = settings.ptc_sandbox_memory_mb * 2**20
        self._disk = settings.ptc_sandbox_disk_mb * 2**20
        self._folder: Path | None = None
        self._uid: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Line | None = None
        self._state = threading.Lock()
        self._ending = threading.Lock()
        self._commanding = threading.Lock()
        self._over = ""
        self._facts: int | None = None
        self._starting = False
        self._known_pid = 0
        self._held: BinaryIO | None = None
        self._group: cgroups.Group | None = None

    @property
    def root(self) -> str:
        """The sandbox's directory as programs inside see it."""
        return tiers.ROOT if self.isolation == "bubblewrap" else str(self._place / "box")

    @property
    def tools(self) -> Tools:
        """The programs of its environment."""
        return tools_in(self.environment)

    @property
    def _place(self) -> Path:
        if self._folder is None:
            raise SandboxError(self._over or "the sandbox was not started")
        return self._folder

    @property
    def running(self) -> bool:
        """Whether its agent is alive."""
        return self._process is not None and self._process.poll() is None and not self._over

    def keep(self, held: BinaryIO) -> None:
        """Close this when the sandbox is gone: it keeps the environment from being removed."""
        self._held = held

    # ── life ───────────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()

    def start(self) -> None:
        """Start the agent, if that was not done; it is not waited for."""
        self._refuse_if_over()
        if self._process is not None:
            return
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise SandboxError(f"no sandbox: {error}") from error
        theirs.setblocking(True)  # noqa: FBT003 whatever default Celery has set for all sockets just now
        self._starting = True
        try:
            if self.isolation == "bubblewrap":
                process = self._start_bubblewrap(theirs.fileno())
            else:
                process = self._start_walled(theirs.fileno())
        except BaseException as error:
            ours.close()
            self._starting = False
            if isinstance(error, OSError):
                raise SandboxError(f"no sandbox: {error}") from error
            raise
        finally:
            theirs.close()
        with self._state:
            self._process, self._line, self._starting = process, Line(ours), False
        if self._over:  # whoever said so found nothing to end
            self.destroy()
            self._refuse_if_over()
        self._enclose()  # milliseconds, in which the agent loads what it needs

    def _start_bubblewrap(self, control: int) -> subprocess.Popen[bytes]:
        argv, paths = tiers.bubblewrap([str(self.environment)], disk=self._disk)
        python = str(self.environment / "bin" / "python")
        filter_fd = seccomp.reader(seccomp.Rules(network=True, unix_sockets=True, own_files=True))
        self._facts, facts = os.pipe()
        spec = self._spec(control, namespaces=True, preload=self._preload, temporary=list(tiers.TEMPORARY))
        agent = (python, "-P", "-B", "-m", "ptc_inside.agent", json.dumps(asdict(spec)))

        def start() -> subprocess.Popen[bytes]:
            spawner().show(self.environment.parent if path == self.environment else path for path in paths)
            return subprocess.Popen(  # type: ignore[call-overload,no-any-return]  # noqa: S603 our own program
                [*argv, "--seccomp", str(filter_fd), "--info-fd", str(facts), "--", *agent],
                pass_fds=(control, filter_fd, facts),
                **_stdio(),
                **tiers.as_user(self._new_uid()),
            )

        try:
            return spawner().do(start)
        finally:
            os.close(filter_fd)
            os.close(facts)

    def _start_walled(self, control: int) -> subprocess.Popen[bytes]:
        uid = self._uid = self._new_uid() if os.geteuid() == 0 else None
        self._folder = leftovers.new_folder()
        box = self._folder / "box"
        box.mkdir(mode=0o755)
        if uid is not None:
            os.chown(box, uid, uid)
        isolated = self.isolation == "landlock"
        readable = [*tiers.readable([str(self.environment)])]
        rules = seccomp.Rules(network=False, unix_sockets=False, own_files=uid is not None)
        walls = Walls(
            uid=uid,
            seccomp=seccomp.program(rules).hex() if isolated else "",
            landlock=isolated,
            readable=readable,
            writable=[str(box)],
        )
        spec = self._spec(control, namespaces=False, walls=walls)
        python = Path(sys.executable).resolve()
        inside = Path(confine.__file__).parent

        def start() -> subprocess.Popen[bytes]:
            if uid is not None:
                outside = (python.parent, inside, self._place.parent)
                spawner().show([self.environment.parent, *map(Path, readable), *outside])
            return subprocess.Popen(  # noqa: S603 our own program
                [str(python), *_BARE, str(inside.parent), json.dumps(asdict(spec))],
                pass_fds=(control,),
                env=tiers.AGENT_ENVIRONMENT,
                start_new_session=True,
                **_stdio(),
            )

        return spawner().do(start)

    def _spec(self, control: int, *, namespaces: bool, **more: Any) -> Spec:  # noqa: ANN401 fields of Spec
        return Spec(
            control=control,
            root=self.root,
            memory=self._memory,
            disk=self._disk,
            processes=PROCESSES,
            namespaces=namespaces,
            **more,
        )

    @staticmethod
    def _new_uid() -> int:
        return tiers.FIRST_UID + 1 + secrets.randbelow(1_000_000)

    def stop(self) -> None:
        """Let the agent end, and with it all that it has started."""
        self._end("the sandbox was stopped")

    def destroy(self) -> None:
        """End the agent and remove what there is on the host."""
        self._end("the sandbox is not there any more")
        self._wait_for_the_end()
        # Not while a command is followed: a closed line is one of which nothing is heard, not even its end.
        with self._commanding, self._state:
            if self._line is not None:
                self._line.close()
            if self._process is not None and self._process.stderr is not None:
                self._process.stderr.close()
            # Not before `start` is through: bubblewrap would die of writing to it, and its child wait without end.
            if self._facts is not None and not self._starting:
                os.close(self._facts)
                self._facts = None
        if self._group is not None:
            self._group.close()
        if self._held is not None:
            self._held.close()
        if self._folder is not None:
            leftovers.remove(self._folder)
            self._folder = None

    def _end(self, why: str) -> None:
        """Let the line go dead: the agent ends at once then, and nothing that it started outlives it."""
        with self._state:
            self._over = self._over or why
            if self._line is not None:
                self._line.cut()

    def _wait_for_the_end(self) -> None:
        """Return when the agent is gone; one that does not go is killed."""
        with self._ending:  # and not the state's lock, for `stop` must not wait
            if self._process is None or self._process.returncode is not None:
                return
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                log.warning("agent_killed", isolation=self.isolation)
                self._kill()
            if self._process.returncode:
                self._kill_orphans()

    def _kill(self) -> None:
        """Kill an agent that what it runs has brought to a standstill."""
        assert self._process is not None  # noqa: S101 who calls has looked
        if self.isolation != "bubblewrap":
            self._kill_below(self._process.pid)
        try:
            agent = os.pidfd_open(self._agent_pid())
        except ProcessLookupError:
            agent = None
        self._process.kill()
        self._process.wait()
        self._kill_orphans()
        if agent is not None:  # it ends when all in its namespace have ended
            select.select([agent], [], [], _END_SECONDS)
            os.close(agent)

    @staticmethod
    def _kill_below(agent: int) -> None:
        """Kill what an agent has started; once it is gone itself, nobody could tell whose that was."""
        before: list[int] = []
        until = time.monotonic() + _END_SECONDS
        while (found := confine.descendants(agent)) != before and time.monotonic() < until:
            before = found
            for pid in found:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def _kill_orphans(self) -> None:
        """Kill what an agent that did not end by itself has left to others, where it is known by its user."""
        if self._uid is not None:
            # The killer is not among those that it kills; a stopped one would be waited for.
            with suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    ["/bin/sh", "-c", "kill -9 -1"],
                    user=self._uid,
                    group=self._uid,
                    extra_groups=[],
                    env={},
                    stderr=subprocess.DEVNULL,
                    timeout=_END_SECONDS,
                    check=False,
                )

    def _agent_pid(self) -> int:
        """Return the agent's process id, which bubblewrap tells once it has started it."""
        assert self._process is not None  # noqa: S101 who calls has looked
        if self._facts is None:
            return self._process.pid
        told, until = b"", time.monotonic() + _START_SECONDS
        while not self._known_pid:
            if not select.select([self._facts], [], [], max(0.0, until - time.monotonic()))[0]:
                raise SandboxError("bubblewrap does not start")
            part = os.read(self._facts, 4096)
            told += part
            if not part:
                self._known_pid = self._process.pid  # it ended before it came so far
            with suppress(ValueError):
                self._known_pid = json.loads(told)["child-pid"]
        return self._known_pid

    def _enclose(self) -> cgroups.Group:
        """Let the kernel count what the first command and all later ones take, where it can be told to."""
        assert self._process is not None  # noqa: S101 who calls has looked
        if self._group is None:
            self._group = cgroups.Group(
                memory=self._memory + _AGENT_BYTES, processes=PROCESSES + _AGENT_PROCESSES
            )
            for pid in {self._process.pid, self._agent_pid()}:
                self._group.take(pid)
        return self._group

    # ── files ──────────────────────────────────────────────────────────────────────────────────────────────

    def write(self, files: Mapping[str, bytes], *, read_only: bool = False) -> None:
        """Write files below the root, making the directories they need."""
        sizes = [(path, len(content)) for path, content in files.items()]
        request = {"op": "write", "files": sizes, "mode": 0o444 if read_only else 0o644}
        self._ask(request, b"".join(files.values()), what="a file cannot be written")

    def read(self, path: str, limit: int) -> bytes | None:
        """Read the start of a regular file; links, devices and directories are not there."""
        facts, content = self._ask({"op": "read", "path": path, "limit": limit}, what="a file cannot be read")
        return content if facts["found"] else None

    def changed(self, files: Mapping[str, bytes]) -> list[str]:
        """Name those of these files that are not what is said here."""
        return [path for path, content in files.items() if self.read(path, len(content) + 1) != content]

    # ── commands ───────────────────────────────────────────────────────────────────────────────────────────

    def exec(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        timeout: float,
        heard: Callable[[bytes], None] | None = None,
    ) -> ExecResult:
        """Let the agent run a command; read what it writes, until it ends or must end."""
        request = {
            "op": "exec",
            "command": list(command),
            "env": {**env, "PTC_EVENTS": f"fd:{EVENTS_FD}"},
            "cwd": cwd,
            "limits": limits(self._memory, self._disk, timeout, processes=self._has_processes_of_its_own),
        }
        self._line_to_agent()
        killed = self._enclose().killed
        with self._commanding, Streams(heard) as streams:
            self._ask(request, what="the command cannot be run", descriptors=streams.far)
            streams.close_far()
            started = time.monotonic()
            ended = follow(self._line_to_agent(), streams, started + timeout, self._kill_for_good)
            if self._over:
                self._wait_for_the_end()
                self._refuse_if_over()
            if ended["why"] == "lost":
                raise SandboxError("the sandbox died under the command")
            stdout, stderr, events = streams.texts
            return ExecResult(
                exit_code=ended["status"],
                stdout=stdout,
                stderr=stderr,
                events=events,
                duration_seconds=time.monotonic() - started,
                timed_out=ended["why"] == "time",
                output_limited=ended["why"] in {"output", "disk"},
                out_of_memory=ended["why"] == "memory" or self._group_killed(ended, killed),
            )

    def _group_killed(self, ended: dict[str, Any], before: int) -> bool:
        """Tell whether the kernel made room by ending the command; other killings have their own reason."""
        return (
            (ended["status"], ended["why"]) == (-signal.SIGKILL, "")
            and self._group is not None
            and self._group.killed > before
        )

    @property
    def _has_processes_of_its_own(self) -> bool:
        """Whether the kernel counts the sandbox's processes apart from those of the worker's user."""
        return self.isolation == "bubblewrap" or os.geteuid() == 0

    def _kill_for_good(self) -> None:
        with self._ending:
            self._kill()

    # ── the line to the agent ──────────────────────────────────────────────────────────────────────────────

    def _ask(
        self, request: dict[str, Any], content: bytes = b"", *, what: str, descriptors: Sequence[int] = ()
    ) -> tuple[dict[str, Any], bytes]:
        line = self._line_to_agent()
        try:
            line.send(request, content, descriptors)
            facts, answer = line.receive()
        except (OSError, EOFError) as error:
            self._refuse_if_over()
            raise SandboxError(f"{what}: {self._last_words() or error}") from error
        if "error" in facts:
            raise SandboxError(f"{what}: {facts['error']}")
        return facts, answer

    def _line_to_agent(self) -> Line:
        self._refuse_if_over()
        if self._line is None:
            raise SandboxError("the sandbox was not started")
        return self._line

    def _last_words(self) -> str:
        """Return what an agent, or bubblewrap, said at its end."""
        process = self._process
        if process is None or process.stderr is None:
            return ""
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
        os.set_blocking(process.stderr.fileno(), False)
        return (process.stderr.read() or b"").decode(errors="replace").strip()[-2000:]

    def _refuse_if_over(self) -> None:
        if self._over:
            raise SandboxError(self._over)


def _stdio() -> dict[str, Any]:
    return {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
