"""Does what a far worker asks of a machine that is a sandbox's own: one request, one answer, each done once.

Started by whatever the machine's vendor has for running commands, as `… courier.py <number> [<request in base64>]` in the
directory that all of this lies in: the request may be in `in-<number>`, the answer will be in `out-<number>`. Asked again for the same number,
because somebody lost track, it waits for whoever is at it and tells the answer that there is.

An agent (`agent.py`) of its own does the work. What it runs must not reach this program and its files: it has another
user where this one is root, else the walls of Landlock. The last line written to standard output is the answer in
base64, or says that it is too long for that.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from . import confine
from .agent import EVENTS_FD, Agent, Spec
from .blob import packed, unpacked
from .facts import stamp
from .limits import PROCESSES, limits
from .line import EVENTS_LIMIT, OUTPUT_LIMIT, Line, Streams, follow

UID = int(os.environ.get("PTC_UID", "60000"))
"""The user that commands run as where the courier is root. Given, it is the machine's alone, though it shares a kernel."""

ANSWER_BYTES = OUTPUT_LIMIT + EVENTS_LIMIT + 2**22
"""Longest answer."""

INLINE_BYTES = 32_000
"""Longest answer that is written to standard output."""

WRITABLE = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 the machine's own
"""Places beside its own directory that a command may write to."""

EX_DATAERR, EX_TEMPFAIL, EX_NOPERM = os.EX_DATAERR, os.EX_TEMPFAIL, os.EX_NOPERM
"""Exit codes: the request is not whole; whoever was at it is gone; nothing would keep commands from this program."""

_AS_IT_IS: Any = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
"""How an archive of ours is unpacked; Python 3.11.0 to 3.11.3 knows no other way, and has no word for it."""

_LOOK_SECONDS = 0.02
_WITH_REQUEST = 2
"""The place on the command line where a short request stands."""
_LISTENS = "0A"
"""The state of a socket that waits for connections, as /proc/net/tcp tells it."""

_OOM_COUNTERS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")


def main() -> None:
    """Answer one request."""
    number = sys.argv[1]
    base = os.getcwd()
    if not _taken(number):
        _await_other(number)
    else:
        try:
            request, contents = unpacked(_asked(number))
        except (OSError, ValueError):
            os.unlink(f"taken-{number}")
            sys.exit(EX_DATAERR)
        with open(f"out-{number}.new", "wb") as file:
            if any(op["op"] == "exec" for op in request["ops"]):
                _make_room(file.fileno())
            file.write(packed(*Courier(base, request).answer(contents)))
            file.truncate()
        os.rename(f"out-{number}.new", f"out-{number}")
        _shut(f"in-{number}")
    with open(f"out-{number}", "rb") as file:
        answer = file.read()
    told = base64.b64encode(answer).decode() if len(answer) <= INLINE_BYTES else "long"
    print(f"answer {told}")  # noqa: T201 whoever asked reads it


def _asked(number: str) -> bytes:
    """Read the request: from the command line if it was short, else from its file."""
    if len(sys.argv) > _WITH_REQUEST:
        return base64.b64decode(sys.argv[_WITH_REQUEST])
    with open(f"in-{number}", "rb") as file:
        return file.read()


def _make_room(answer: int) -> None:
    """Take what an answer may need before a command runs, which may fill the disk."""
    with suppress(OSError):
        os.posix_fallocate(answer, 0, ANSWER_BYTES)


def _shut(request: str) -> None:
    """Remove a request, and keep it from coming back: there may be a key in it, and an upload that is still under way."""
    with suppress(FileNotFoundError):
        os.unlink(request)
    with suppress(OSError):
        os.mkdir(request)


def _taken(number: str) -> bool:
    """Tell whether this process is the first to be asked for this number."""
    with suppress(FileExistsError):
        taken = os.open(f"taken-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(taken, str(os.getpid()).encode())
        os.close(taken)
        return True
    return False


def _await_other(number: str) -> None:
    """Wait for the answer of whoever was asked before, while it lives."""
    while not os.path.exists(f"out-{number}"):
        with open(f"taken-{number}") as file:
            pid = file.read()
        alive = not pid or os.path.exists(f"/proc/{pid}")
        if not alive and not os.path.exists(f"out-{number}"):
            sys.exit(EX_TEMPFAIL)
        time.sleep(_LOOK_SECONDS)


class Courier:
    """One agent, for the time of one request."""

    def __init__(self, base: str, request: dict[str, Any]) -> None:
        self._base = base
        self._ops = request["ops"]
        self._memory, self._disk = request["memory"], request["disk"]
        self._root = f"{base}/box"
        self._uid = UID if os.geteuid() == 0 else None
        if self._uid is None and confine.landlock_abi() < confine.SCOPE_ABI:
            sys.exit(EX_NOPERM)
        os.makedirs(self._root, exist_ok=True)
        if self._uid is not None:
            os.chown(self._root, self._uid, self._uid)
            _let_through(base)
        self._filters = request["filters"]["other" if self._uid is not None else "same"]
        self._network = request["network"]
        self._walls = confine.Walls(
            uid=self._uid,
            seccomp=self._filters["none"],
            landlock=confine.landlock_abi() > 0,
            readable=["/"],
            writable=[self._root, *_writable(base, self._uid)],
        )

    def _walls_for_commands(self) -> confine.Walls:
        """Choose the best network that is to be had and keeps commands from whatever else serves on this machine.

        A vendor's own program does, as a rule: it would run any command, outside all walls.
        """
        if self._network != "machine" and confine.can_leave_the_network(self._uid):
            return replace(self._walls, seccomp=self._filters["sockets"], network="own")
        listening = sorted(_listening())
        if self._network == "none" or (listening and confine.landlock_abi() < confine.NET_ABI):
            return self._walls
        return replace(self._walls, seccomp=self._filters["sockets"], network="shared", shut_ports=listening)

    def answer(self, contents: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
        """Do one thing after another; the first that fails is the last."""
        results, given = [], []
        for op in self._ops:
            kind, size = op.pop("op"), len(op.get("files", ()))
            parts, contents = contents[:size], contents[size:]
            try:
                result, told = getattr(self, f"_{kind}")(parts, **op)
            except (OSError, EOFError, subprocess.SubprocessError, tarfile.TarError) as error:
                results.append({"error": str(error) or type(error).__name__})
                break
            results.append(result)
            given += told
        return {"root": self._root, "results": results, "digests": self._digests()}, given

    # ── what may be asked ──────────────────────────────────────────────────────────────────────────────────

    def _equip(self, _: list[bytes], version: str, home: str, sites: list[str], archive: str) -> Any:  # noqa: ANN401 a result
        """Make a virtual environment of what was brought and what the machine has."""
        short = ".".join(version.split(".")[:2])
        packages = f"env/lib/python{short}/site-packages"
        os.makedirs(packages)
        os.makedirs("env/bin")
        for name in ("python", "python3"):
            os.symlink(f"{home}/python{short}", f"env/bin/{name}")
        with open("env/pyvenv.cfg", "w") as file:
            file.write(f"home = {home}\ninclude-system-site-packages = false\nversion = {version}\n")
        if archive:
            with tarfile.open(archive) as tar:
                tar.extractall("env", **_AS_IT_IS)  # noqa: S202 the worker made it
            os.unlink(archive)
        lines = [f"{self._base}/lib", *(f"import site; site.addsitedir({site!r})" for site in sites)]
        with open(f"{packages}/zz_machine.pth", "w") as file:
            file.write("\n".join(lines) + "\n")
        return {"stamp": stamp(sites)}, []

    def _facts(self, _: list[bytes]) -> Any:  # noqa: ANN401 a result
        """Ask the machine's own Python, with all that it finds."""
        program = [shutil.which("python3") or sys.executable, "-B", "lib/ptc_inside/facts.py"]
        told = subprocess.run(  # noqa: S603 our own program
            program, stdin=subprocess.DEVNULL, capture_output=True, check=True
        )
        return json.loads(told.stdout), []

    def _write(self, contents: list[bytes], files: list[str], mode: int) -> Any:  # noqa: ANN401 a result
        sizes = [(path, len(content)) for path, content in zip(files, contents, strict=True)]
        with _Agent(self._spec()) as agent:
            agent.ask({"op": "write", "files": sizes, "mode": mode}, b"".join(contents))
        self._note(sizes)
        return {}, []

    def _read(self, _: list[bytes], path: str, limit: int) -> Any:  # noqa: ANN401 a result
        with _Agent(self._spec()) as agent:
            facts, content = agent.ask({"op": "read", "path": path, "limit": limit})
        return {"found": facts["found"]}, [content]

    def _exec(self, _: list[bytes], command: list[str], env: dict[str, str], cwd: str, timeout: float) -> Any:  # noqa: ANN401 a result
        alone = self._uid is not None or "PTC_UID" in os.environ
        own = limits(self._memory, self._disk, timeout, processes=alone)
        request = {
            "op": "exec",
            "command": command,
            "env": {**env, "PTC_EVENTS": f"fd:{EVENTS_FD}"},
            "cwd": cwd,
            "limits": own,
        }
        killed = _killed_by_the_kernel()
        spec = replace(self._spec(), walls=self._walls_for_commands())
        with Streams() as streams, _Agent(spec) as agent:
            agent.ask(request, descriptors=streams.far)
            streams.close_far()
            started = time.monotonic()
            ended = follow(agent.line, streams, started + timeout, agent.kill)
            seconds = time.monotonic() - started
        starved = (ended["status"], ended["why"]) == (
            -signal.SIGKILL,
            "",
        ) and _killed_by_the_kernel() > killed
        why = "memory" if starved else ended["why"]
        return {"status": ended["status"], "why": why, "seconds": seconds}, list(streams.texts)

    # ── what is kept between requests ──────────────────────────────────────────────────────────────────────

    def _note(self, sizes: list[tuple[str, int]]) -> None:
        known = {**self._noted(), **dict(sizes)}
        with open("written.new", "w") as file:
            json.dump(known, file)
        os.rename("written.new", "written")

    @staticmethod
    def _noted() -> dict[str, int]:
        try:
            with open("written") as file:
                noted: dict[str, int] = json.load(file)
        except FileNotFoundError:
            return {}
        return noted

    def _digests(self) -> dict[str, str | None]:
        """Sum up every file that was ever written, as it is now; None for one that is no file any more."""
        noted = self._noted()
        if not noted:
            return {}
        with _Agent(self._spec()) as agent:
            return {path: agent.digest(path, size) for path, size in noted.items()}

    def _spec(self) -> Spec:
        return Spec(
            control=-1,
            root=self._root,
            memory=self._memory,
            disk=self._disk,
            processes=PROCESSES,
            namespaces=False,
            walls=self._walls,
            temporary=[place for place in WRITABLE if os.path.isdir(place)],
        )


def _writable(base: str, uid: int | None) -> list[str]:
    """Name the places beside its own directory that a command may write to; ours are in none of them."""
    return [
        place
        for place in WRITABLE
        if uid is not None or not Path(os.path.realpath(base)).is_relative_to(os.path.realpath(place))
    ]


def _let_through(folder: str) -> None:
    """Let every user reach a folder: home directories of root are closed to others."""
    while folder != "/":
        mode = os.stat(folder).st_mode & 0o7777
        if not mode & 1:
            os.chmod(folder, mode | 1)
        folder = os.path.dirname(folder)


class _Agent:
    """An agent in a child of this process."""

    def __init__(self, spec: Spec) -> None:
        with suppress(PermissionError):
            os.chmod(spec.root, 0o755)  # noqa: S103 a command of the same user may have taken all rights from it
        ours, theirs = socket.socketpair()
        self._uid = spec.walls.uid if spec.walls else None
        self._pid = os.fork()
        if not self._pid:
            ours.close()
            _serve(spec, theirs)
        theirs.close()
        self.line = Line(ours)

    def ask(
        self, request: dict[str, Any], content: bytes = b"", descriptors: list[int] | None = None
    ) -> tuple[dict[str, Any], bytes]:
        """Ask for one thing.

        Raises:
            OSError: it cannot be done.
            EOFError: the agent has gone.
        """
        self.line.send(request, content, descriptors or ())
        facts, answer = self.line.receive()
        if "error" in facts:
            raise OSError(facts["error"])
        return facts, answer

    def digest(self, path: str, size: int) -> str | None:
        """Sum up a file that had this size: what it was made longer by is not read, but for a byte."""
        facts, content = self.ask({"op": "read", "path": path, "limit": size + 1})
        return sha256(content).hexdigest() if facts["found"] else None

    def kill(self) -> None:
        """End it, and what it has left."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.line.cut()
        self.line.close()
        confine.kill_descendants(self._uid)


def _serve(spec: Spec, line: socket.socket) -> None:
    """Be the agent."""
    try:
        for unwanted in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(unwanted, signal.SIG_IGN)
        confine.hide()
        confine.adopt_orphans()
        Agent(replace(spec, control=line.detach())).serve()
    finally:
        os._exit(0)


def _listening() -> set[int]:
    """Find the TCP ports that something serves on this machine, before any command of a sandbox runs."""
    ports = set()
    for name in ("tcp", "tcp6"):
        with suppress(OSError), open(f"/proc/net/{name}") as table:
            for line in [*table][1:]:
                _, local, _, state, *_ = line.split()
                if state == _LISTENS:
                    ports.add(int(local.rpartition(":")[2], 16))
    return ports


def _killed_by_the_kernel() -> int:
    """Count what the kernel has killed here to make room, as far as it tells."""
    for path in _OOM_COUNTERS:
        with suppress(OSError, ValueError), open(path) as file:
            counts = dict(line.split() for line in file)
            return int(counts.get("oom_kill", 0))
    return 0


if __name__ == "__main__":
    os.closerange(3, 2**16)  # what the vendor's program left open would be open to commands
    confine.hide()
    confine.adopt_orphans()
    main()
