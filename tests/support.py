"""What tests of every tier build on: plans, answers, and a replay server inside the test process."""

from __future__ import annotations

import inspect
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseServer
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from structlog import DropEvent
from structlog.testing import capture_logs

from ptc_contracts import CodeArtifact, PTCArtifactResult, PTCExecutionPlan
from ptc_contracts.keys import content_id
from ptc_worker.halt import Halt
from ptc_worker.llm.replay.server import ReplayServer

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, MutableMapping, Sequence

    import pytest

    from ptc_worker.llm.replay.recordings import Recorded


def make_plan(description: str = "Build API", **fields: Any) -> PTCExecutionPlan:
    """Make a plan; fields of the scaffolding may be given beside the plan's own."""
    spec_fields = {"requirements", "architecture", "dependencies", "file_structure", "context"}
    spec = {name: fields.pop(name) for name in spec_fields & fields.keys()}
    fields.setdefault("execution_id", "test")
    return PTCExecutionPlan(scaffolding={"task_description": description, **spec}, **fields)


def make_result(*files: tuple[str, str], **fields: Any) -> PTCArtifactResult:
    """Make a result that holds these files, each a path and its content."""
    moment = "2026-01-01T00:00:00Z"
    artifacts = [CodeArtifact(file_path=path, content=content) for path, content in files]
    plain = {"execution_id": "x", "status": "SUCCESS", "started_at": moment, "completed_at": moment}
    return PTCArtifactResult(**{**plain, "duration_seconds": 0, "artifacts": artifacts, **fields})


def answer_with(**files: str) -> str:
    """Write a model's answer; a name's double underscores stand for slashes and its last one for the dot."""
    return "\n".join(
        f'<file path="{name.replace("__", "/").replace("_py", ".py")}">\n{content}\n</file>'
        for name, content in files.items()
    )


@contextmanager
def replaying(
    *recordings: tuple[PTCExecutionPlan, Sequence[Recorded]], **options: Any
) -> Iterator[ReplayServer]:
    """Serve recorded answers for the time of the block."""
    with served(
        ReplayServer({content_id(plan): answers for plan, answers in recordings}, **options)
    ) as server:
        yield server


S = TypeVar("S", bound=BaseServer)


@contextmanager
def served(server: S) -> Iterator[S]:
    """Let a server serve, in a thread of its own, for the time of the block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def silent_index(patch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let installers ask a package index that never answers; yield what is set once one has asked."""
    asked, over = threading.Event(), threading.Event()

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            over.wait()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 as http.server has it
            """Stay quiet."""

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Silent)) as http:
        patch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{http.server_address[1]}/simple")
        try:
            yield asked
        finally:
            over.set()


PATIENCE_SECONDS = 180.0
"""What anything may take on a machine that is busy; only what never comes takes as long."""


def until(holds: Callable[[], object]) -> None:
    """Wait for something that another thread or process does.

    Raises:
        TimeoutError: it never does.
    """
    pause, end = threading.Event(), time.monotonic() + PATIENCE_SECONDS
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"waited in vain for {PATIENCE_SECONDS:g} s: {_source(holds)}")
        pause.wait(0.01)


def _source(holds: Callable[[], object]) -> str:
    try:
        return " ".join(inspect.getsource(holds).split())
    except (OSError, TypeError):
        return repr(holds)


@contextmanager
def logged_here() -> Iterator[list[MutableMapping[str, Any]]]:
    """Gather what this thread logs in the block: threads of earlier tests may live on, and have things to say."""
    here = threading.get_ident()

    def ours(_: object, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if threading.get_ident() != here:
            raise DropEvent
        return line

    with capture_logs(processors=[ours]) as lines:
        yield lines


class WatchedHalt(Halt):
    """A halt that tells when those whom it may concern wait for something: they look at it again and again."""

    _ENOUGH = 8
    """Looks that no work takes which has not to wait."""

    def __init__(self) -> None:
        super().__init__()
        self._looks = 0

    @property
    def waits(self) -> bool:
        """Whether there is somebody who waits."""
        return self._looks >= self._ENOUGH

    def check(self) -> None:
        """Count, and look."""
        self._looks += 1
        super().check()


class Enqueue(Protocol):
    """Runs `ptc-enqueue` in an empty directory."""

    def __call__(
        self, *arguments: str, stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run it with these arguments and variables."""


def mounts_at(*paths: Path) -> set[str]:
    """Name what this machine has mounted at, above or below these paths: tests beside this one mount elsewhere."""
    places = {Path(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines()}
    return {
        str(place)
        for place in places
        if any(place.is_relative_to(path) or path.is_relative_to(place) for path in paths)
    }
