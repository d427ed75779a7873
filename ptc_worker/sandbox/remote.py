"""A sandbox on a machine at a vendor's: files and commands go to a courier there, and come back with what became of them.

A request may be lost, cut or answered twice, and so may its answer: each has a number, the courier does each once, and
whatever is not sure is asked again.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import threading
import time
from collections.abc import Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from ptc_worker.halt import Halt, HaltedError, Why
from ptc_worker.loop import begin_async, run_async
from ptc_worker.sandbox import seccomp
from ptc_worker.sandbox.inside import courier
from ptc_worker.sandbox.inside.blob import packed, unpacked
from ptc_worker.sandbox.machine import BASE, ChangedError, Facts, again
from ptc_worker.sandbox.protocol import (
    ExecResult,
    IsolationRefusedError,
    SandboxError,
    Tools,
    UnsureError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from ptc_worker.sandbox.machine import Machine, Network, Parcel
    from ptc_worker.sandbox.room import Room
    from ptc_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

_PATIENCE_SECONDS = 30.0
"""What a machine may take for anything but a command itself."""

_SHORT_BYTES = 12_000
"""Longest request that goes along with the command which asks for it. Contents never do: a key may be among them."""

_END_SECONDS = 10.0
_EX_OLD = 69
"""How a Python ends that is too old for the courier."""

_START = (
    f"import sys; sys.version_info < (3, 11) and sys.exit({_EX_OLD}); import runpy; sys.path.append('lib'); "
    "runpy.run_module('ptc_inside.courier', run_name='__main__', alter_sys=True)"
)
_NO_PROGRAM = 127

Filters = Mapping[str, Mapping[str, str]]
"""Filters of system calls: where commands have a user other than the courier's, or the same, and with sockets or none."""
_NO_FILTERS: Filters = {user: {"none": "", "sockets": ""} for user in ("other", "same")}


class RemoteSandbox:
    """A machine, and the numbered requests to its courier."""

    def __init__(
        self,
        settings: WorkerSettings,
        machine: Machine,
        isolation: str,
        *,
        image: str,
        room: Room,
        network: Callable[[], Network],
        when_gone: Callable[[], object],
    ) -> None:
        self.isolation = isolation
        """What keeps programs in, by name."""
        self._settings = settings
        self._machine = machine
        self._image = image
        self._room = room
        self._network = network
        self._when_gone = when_gone
        self._parcel: Parcel | None = None
        self._numbers = itertools.count(1)
        self._halt = Halt()
        self._over = ""
        self._state = threading.Lock()
        self._started: Future[None] | None = None
        self._gone: Future[None] | None = None
        self._root = ""
        self._brought = False
        self._commanding = False
        self._digests: dict[str, str | None] = {}

    # ── life ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def running(self) -> bool:
        """Whether it was made, and can still be used."""
        return (
            not self._over
            and self._started is not None
            and self._started.done()
            and not self._started.exception()
            and time.monotonic() < self._machine.until
        )

    @property
    def reached(self) -> bool:
        """Whether its machine has ever answered."""
        return self._brought

    @property
    def root(self) -> str:
        """The sandbox's directory as programs inside see it."""
        self._reach()
        return self._root

    @property
    def tools(self) -> Tools:
        """Its programs."""
        self._reach()
        assert self._parcel is not None  # noqa: S101 without one it cannot be reached
        return _tools(self._parcel, self._root.removesuffix("/box"))

    def equip(self, parcel: Parcel) -> None:
        """Say what goes along with it; before anything else is asked of it."""
        self._parcel = parcel

    def start(self) -> None:
        """Have its machine made, if that was not done; it is not waited for."""
        with self._state:
            self._refuse_if_over()
            if self._started is None:
                self._started = begin_async(self._room.taken(self._machine.start))

    def wait(self) -> None:
        """Wait until its machine is there.

        Raises:
            BusyError, SandboxError: it cannot be had.
        """
        self.start()
        self._do(self._there())

    def gone(self, seconds: float) -> bool:
        """Wait until the machine of one that was ended is gone, for so long at most; tell whether it is."""
        with suppress(FutureTimeout):
            if self._gone is not None:
                self._gone.result(seconds)
            return True
        return False

    def stop(self) -> None:
        """End whatever runs in it by removing its machine; that is not waited for."""
        self._end("the sandbox was stopped")

    def stop_unreached(self) -> None:
        """Do that to one whose machine has not answered yet."""
        if not self.reached:
            self.stop()

    def abandon(self) -> None:
        """Wait no longer until the machine of one that was ended is made before it is removed."""
        if self._started is not None:
            self._started.cancel()

    def destroy(self) -> None:
        """Have its machine removed; it is made sure of beside other work."""
        self._end("the sandbox is not there any more")

    def _end(self, why: str) -> None:
        with self._state:
            first, self._over = not self._over, self._over or why
            if first and self._started is not None:
                self._gone = begin_async(self._removed(self._started))
        if first and self._started is None:
            self._when_gone()
        self._halt.set(Why.CANCELLED)

    async def _removed(self, started: Future[None]) -> None:
        """Remove the machine, also one that is just being made: what was asked for may come to be."""
        await asyncio.gather(asyncio.wrap_future(started), return_exceptions=True)
        try:
            await again(self._machine.delete)
        except Exception as error:  # noqa: BLE001 whatever it is, the reaper will find it, once we claim it no more
            log.warning("sandbox_not_deleted", error=str(error))
        finally:
            self._when_gone()

    def _refuse_if_over(self) -> None:
        if self._over:
            raise SandboxError(self._over)

    async def _there(self) -> None:
        assert self._started is not None  # noqa: S101 who calls has started it
        await asyncio.shield(asyncio.wrap_future(self._started))

    # ── its machine ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def blocked(self) -> bool:
        """Whether the vendor says that no network can be reached from its machine."""
        return self._machine.blocked

    def tried(self, command: str) -> tuple[int, str]:
        """Run a command of ours, which may run twice, on its machine, outside of all walls; return exit code and output."""
        self.wait()
        code, said = self._do(again(lambda: self._machine.run(command, _PATIENCE_SECONDS)))
        return code, said.decode(errors="replace").strip()

    # ── what may be asked ──────────────────────────────────────────────────────────────────────────────────

    def facts(self) -> Facts:
        """Ask what the machine has."""
        (result,), _ = self._ask([{"op": "facts"}])
        return Facts(_checked(result, "its machine cannot be looked at"))

    def write(self, files: Mapping[str, bytes], *, read_only: bool = False) -> None:
        """Write files below the root, making the directories they need."""
        if files:
            op = {"op": "write", "files": list(files), "mode": 0o444 if read_only else 0o644}
            (result,), _ = self._ask([op], list(files.values()))
            _checked(result, "a file cannot be written")

    def read(self, path: str, limit: int) -> bytes | None:
        """Read the start of a regular file; links, devices and directories are not there."""
        (result,), contents = self._ask([{"op": "read", "path": path, "limit": limit}])
        return contents[0] if _checked(result, "a file cannot be read")["found"] else None

    def changed(self, files: Mapping[str, bytes]) -> list[str]:
        """Name those of these files that are not what is said here, as of the last answer."""
        self._refuse_if_over()
        return [
            path for path, content in files.items() if self._digests.get(path) != sha256(content).hexdigest()
        ]

    def exec(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        timeout: float,
        heard: Callable[[bytes], None] | None = None,
    ) -> ExecResult:
        """Let the courier run a command, to its end or until it must end."""
        op = {"op": "exec", "command": list(command), "env": dict(env), "cwd": cwd, "timeout": timeout}
        self._commanding = True
        try:
            (result,), contents = self._ask([op], seconds=timeout)
        finally:
            self._commanding = False
        ended = _checked(result, "the command cannot be run")
        if ended["why"] == "lost":
            raise SandboxError("the sandbox died under the command")
        stdout, stderr, events = contents
        if heard:
            heard(events)
        return ExecResult(
            exit_code=ended["status"],
            stdout=stdout,
            stderr=stderr,
            events=events,
            duration_seconds=ended["seconds"],
            timed_out=ended["why"] == "time",
            output_limited=ended["why"] in {"output", "disk"},
            out_of_memory=ended["why"] == "memory",
        )

    # ── requests ───────────────────────────────────────────────────────────────────────────────────────────

    def _reach(self) -> None:
        """Learn where it lies, by asking for nothing."""
        if not self._root:
            self._ask([])

    def _ask(
        self, ops: list[dict[str, Any]], contents: Sequence[bytes] = (), *, seconds: float = 0
    ) -> tuple[list[dict[str, Any]], list[bytes]]:
        """Have things done; return what became of each, and what they brought."""
        self.start()
        answer: tuple[list[dict[str, Any]], list[bytes]] = self._do(self._asked(ops, contents, seconds))
        return answer

    def _do(self, what: Any) -> Any:  # noqa: ANN401 a coroutine of any result
        try:
            return run_async(what, self._halt)
        except HaltedError:
            if self._commanding and self._gone is not None:  # nothing that it started may be alive then
                with suppress(Exception):
                    self._gone.result(_END_SECONDS)
            raise SandboxError(self._over) from None

    async def _asked(
        self, ops: list[dict[str, Any]], contents: Sequence[bytes], seconds: float
    ) -> tuple[list[dict[str, Any]], list[bytes]]:
        await self._there()
        number = next(self._numbers)
        files: dict[str, bytes] = {}
        if not self._brought:
            files.update(_inside())
            if self._parcel is not None:
                ops = [await self._equipping(self._parcel, files), *ops]
        request = {
            "ops": ops,
            "memory": self._settings.ptc_sandbox_memory_mb * 2**20,
            "disk": self._settings.ptc_sandbox_disk_mb * 2**20,
            "network": self._network(),
            "filters": self._filters(),
        }
        blob = await asyncio.to_thread(packed, request, contents)
        if files or contents or len(blob) > _SHORT_BYTES:
            files[f"{BASE}/in-{number}"] = blob
        answer, given = await self._answered(
            number, files, "" if files else base64.b64encode(blob).decode(), seconds
        )
        self._root, self._digests = answer["root"], answer["digests"]
        results = answer["results"]
        if not self._brought and self._parcel is not None:
            self._look_at(results.pop(0), self._parcel)
        self._brought = True
        return results, given

    async def _equipping(self, parcel: Parcel, files: dict[str, bytes]) -> dict[str, Any]:
        if parcel.archive:
            files[f"{BASE}/env.tar"] = await asyncio.to_thread(parcel.archive.read_bytes)
        facts = {name: parcel.facts.told[name] for name in ("version", "home", "sites")}
        return {"op": "equip", "archive": "env.tar" if parcel.archive else "", **facts}

    def _look_at(self, result: dict[str, Any], parcel: Parcel) -> None:
        if _checked(result, "packages cannot be brought")["stamp"] != parcel.facts.stamp:
            raise ChangedError("the image of the sandboxes has changed since it was looked at")

    def _filters(self) -> Filters:
        """Give the filters of system calls; what is asked before the machine's kind is known runs no command."""
        if self._parcel is None:
            return _NO_FILTERS
        return filters_of(self._parcel.facts.machine, alone=self._machine.alone)

    async def _answered(
        self, number: int, files: Mapping[str, bytes], inline: str, seconds: float
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Bring a request, have it done, and fetch the answer; what is not sure is done again."""
        command = f'cd {BASE} && exec python3 -I -S -B -c "{_START}" {number} {inline}'
        async with asyncio.timeout(seconds + 3 * _PATIENCE_SECONDS) as bound:
            try:
                if files:
                    await again(lambda: self._machine.put(files))
                return await again(lambda: self._run_or_fetch(number, command, seconds))
            except TimeoutError:
                if not bound.expired():
                    raise
                raise UnsureError("the sandbox's machine does not answer in time") from None

    async def _run_or_fetch(
        self, number: int, command: str, seconds: float
    ) -> tuple[dict[str, Any], list[bytes]]:
        try:
            code, said = await self._machine.run(command, seconds + _PATIENCE_SECONDS)
        except UnsureError:
            if (answer := await self._fetched(number)) is None:
                raise
            return answer
        if code:
            raise _refusal(code, said, self._image)
        told = said.rpartition(b"answer ")[2].strip()
        if told != b"long":
            with suppress(ValueError):
                return unpacked(base64.b64decode(told))
        if (answer := await again(lambda: self._fetched(number))) is None:
            raise UnsureError("the answer is not there")
        return answer

    async def _fetched(self, number: int) -> tuple[dict[str, Any], list[bytes]] | None:
        blob = await self._machine.get(f"{BASE}/out-{number}")
        try:
            return None if blob is None else await asyncio.to_thread(unpacked, blob)
        except ValueError:
            raise UnsureError("the answer came cut") from None


@cache
def _inside() -> dict[str, bytes]:
    """Read what runs inside, the courier among it."""
    folder = Path(courier.__file__).parent
    return {
        f"{BASE}/lib/ptc_inside/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()
    }


@cache
def filters_of(machine: str, *, alone: bool) -> Filters:
    """Assemble the filters for a kind of processor, where nothing is served but by commands or where something may be.

    Raises:
        IsolationRefusedError: the numbers of its system calls are not known.
    """
    try:
        return {
            user: {
                name: seccomp.program(
                    seccomp.Rules(network=network, unix_sockets=network and (own or alone), own_files=own),
                    machine,
                ).hex()
                for name, network in (("none", False), ("sockets", True))
            }
            for user, own in (("other", True), ("same", False))
        }
    except seccomp.UnknownMachineError as error:
        raise IsolationRefusedError(str(error)) from None


def _tools(parcel: Parcel, base: str) -> Tools:
    node = parcel.facts.node
    home = [str(Path(node["program"]).parent)] if node else []
    return Tools(
        python=f"{base}/env/bin/python",
        path=":".join(
            dict.fromkeys([f"{base}/env/bin", parcel.facts.home, *home, "/usr/local/bin", "/usr/bin", "/bin"])
        ),
        plugins=parcel.plugins,
        inside=f"{base}/lib/ptc_inside",
        node=node["program"] if node else "",
        node_options=parcel.node_options,
        node_modules=f"{base}/env/node/node_modules" if parcel.node_modules else "",
    )


def _checked(result: dict[str, Any], what: str) -> dict[str, Any]:
    if "error" in result:
        raise SandboxError(f"{what}: {result['error']}")
    return result


def _refusal(code: int, said: bytes, image: str) -> SandboxError:
    """Say what a courier that gave no answer meant by its exit code."""
    match code:
        case courier.EX_DATAERR | courier.EX_TEMPFAIL:
            return UnsureError("a request came cut, or the courier was ended")
        case courier.EX_NOPERM:
            return IsolationRefusedError(
                f"{image} does not run as root, and its kernel has no Landlock of version 6: the tests could change "
                "their own verdict. Let its user be root"
            )
        case _ if code in {_NO_PROGRAM, _EX_OLD}:
            found = "no python3" if code == _NO_PROGRAM else "an older Python"
            return IsolationRefusedError(f"sandboxes need Python 3.11 or newer, and {image} has {found}")
    return SandboxError(f"the courier ended with {code}: {said[-500:].decode(errors='replace')}")
