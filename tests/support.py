"""What tests of every tier build on: plans, answers, and a replay server inside the test process."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ptc_contracts import PTCExecutionPlan
from ptc_contracts.keys import content_id
from ptc_worker.llm.replay.server import ReplayServer

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Sequence

    import pytest

    from ptc_worker.llm.replay.recordings import Recorded


def make_plan(description: str = "Build API", **fields: Any) -> PTCExecutionPlan:
    """Make a plan; fields of the scaffolding may be given beside the plan's own."""
    spec_fields = {"requirements", "architecture", "dependencies", "file_structure", "context"}
    spec = {name: fields.pop(name) for name in spec_fields & fields.keys()}
    fields.setdefault("execution_id", "test")
    return PTCExecutionPlan(scaffolding={"task_description": description, **spec}, **fields)


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
    server = ReplayServer({content_id(plan): answers for plan, answers in recordings}, **options)
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

    http = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    patch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{http.server_address[1]}/simple")
    try:
        yield asked
    finally:
        over.set()
        http.shutdown()
        http.server_close()
        thread.join()


def until(holds: Callable[[], object]) -> None:
    """Wait for something that another thread or process does; the suite's own limit ends a wait in vain."""
    pause = threading.Event()
    while not holds():
        pause.wait(0.01)


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
