"""Docker engines that fail in odd ways, on loopback: what the caller sees, and what is left."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from support import served, until

from ptc_worker.busy import BusyError
from ptc_worker.halt import Halt
from ptc_worker.loop import begin_async, run_async
from ptc_worker.sandbox import prepare_sandboxes, reap_sandboxes
from ptc_worker.sandbox.kinds.docker import Docker
from ptc_worker.sandbox.protocol import IsolationRefusedError, Purpose
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

US = Purpose(installation="ours", worker="us", run_id="run-1", fence=3)
LIMITED = "toomanyrequests: You have reached your pull rate limit"


@dataclass(frozen=True)
class Pull:
    """How a pull ends."""

    status: int = 200
    said: bytes = b""
    cut: bool = False


class OddEngine(ThreadingHTTPServer):
    """Speaks as much of the engine's API as comes before a container runs anything."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pull: Pull | None = None
        """How each pull ends; None where the image is there."""
        self.containers: dict[str, dict[str, Any]] = {}
        """The containers that there are, as a list tells them."""
        self.calls: Counter[str] = Counter()
        """Requests so far, by method and path."""
        self.answers = threading.Event()
        """Set unless pulls and creations are to wait."""
        self.answers.set()
        self.answers_at_all = threading.Event()
        """Set unless everything is to wait."""
        self.answers_at_all.set()

    @property
    def address(self) -> str:
        """What DOCKER_HOST is to be."""
        return f"tcp://127.0.0.1:{self.server_address[1]}"

    def server_close(self) -> None:
        """Let nobody wait any more."""
        self.answers.set()
        self.answers_at_all.set()
        super().server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OddEngine

    def _serve(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        path = url.path.removeprefix("/v1.44")
        self.server.calls[f"{self.command} {path}"] += 1
        self.server.answers_at_all.wait()
        match self.command, path.strip("/").split("/"):
            case "GET", ["version"]:
                self._reply(200, {"ApiVersion": "1.44"})
            case "POST", ["images", "create"]:
                self._pull()
            case "POST", ["containers", "create"]:
                self._create(parse_qs(url.query)["name"][0])
            case "GET", ["containers", "json"]:
                self._reply(200, list(self.server.containers.values()))
            case "DELETE", ["containers", name] if self.server.containers.pop(name, None):
                self._reply(204, None)
            case "GET", ["containers", name, "json"] if name in self.server.containers:
                self._reply(200, self.server.containers[name])
            case _:
                self._reply(404, {"message": f"no such thing: {path}"})

    do_GET = do_POST = do_DELETE = _serve  # noqa: N815 as http.server has it

    def _create(self, name: str) -> None:
        if self.server.pull:
            self._reply(404, {"message": "No such image"})
            return
        self.server.answers.wait()
        self.server.containers[name] = {"Id": name, "Names": [f"/{name}"], "Labels": {}}
        self._reply(201, {"Id": name, "Warnings": []})

    def _pull(self) -> None:
        pull = self.server.pull or Pull()
        self.server.answers.wait()
        if pull.status != 200:
            self._reply(pull.status, {"message": pull.said.decode()})
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(pull.said), pull.said))
        if pull.cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.wfile.write(b"0\r\n\r\n")

    def _reply(self, status: int, content: object) -> None:
        body = b"" if status == 204 else json.dumps(content).encode()
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 as http.server has it
        """Stay quiet."""


@pytest.fixture
def engine() -> Iterator[OddEngine]:
    """An engine that has the image, and nothing else."""
    with served(OddEngine()) as running:
        yield running


@pytest.fixture
def settings(engine: OddEngine, tmp_path: Path) -> WorkerSettings:
    """The settings that lead there."""
    return WorkerSettings(ptc_sandbox="docker", docker_host=engine.address, ptc_cache_dir=tmp_path)


@pytest.mark.parametrize(
    "pull",
    [
        pytest.param(Pull(said=b'{"status": "Pulling"}\r\n', cut=True), id="cut"),
        pytest.param(Pull(said=b"<html>"), id="garbage"),
        pytest.param(Pull(said=json.dumps({"error": LIMITED}).encode()), id="a limit, in the stream"),
        pytest.param(Pull(429, LIMITED.encode()), id="a limit"),
        pytest.param(Pull(500, LIMITED.encode()), id="a limit, as old engines tell it"),
        pytest.param(Pull(503, b"unavailable"), id="an engine that fails"),
        pytest.param(
            Pull(said=b'{"error": "received unexpected HTTP status: 503 Service Unavailable"}'),
            id="a registry that fails",
        ),
    ],
)
def test_a_pull_that_breaks_makes_the_run_wait(
    settings: WorkerSettings, engine: OddEngine, pull: Pull
) -> None:
    """It says nothing about the image: another one may go well."""
    engine.pull = pull

    with pytest.raises(BusyError, match=r"no sandbox can be had|does not answer"):
        prepare_sandboxes(settings, US)


@pytest.mark.parametrize(
    "pull",
    [
        pytest.param(Pull(404, b"pull access denied"), id="no image"),
        pytest.param(Pull(500, b"dial tcp: lookup ptc.invalid: no such host"), id="no registry"),
        pytest.param(Pull(said=b'{"error": "manifest unknown"}'), id="no tag"),
    ],
)
def test_a_pull_that_will_never_do_is_refused(
    settings: WorkerSettings, engine: OddEngine, pull: Pull
) -> None:
    """The message names the setting."""
    engine.pull = pull

    with pytest.raises(IsolationRefusedError, match="PTC_DOCKER_IMAGE"):
        prepare_sandboxes(settings, US)


def test_an_engine_that_does_not_answer_makes_the_run_wait(
    settings: WorkerSettings, engine: OddEngine
) -> None:
    """It may be busy, or still pulling the image; what it may have made is removed."""
    hurried = settings.model_copy(update={"ptc_sandbox_start_timeout": 0.5})
    engine.answers.clear()

    with pytest.raises(BusyError, match="PTC_SANDBOX_START_TIMEOUT"):
        prepare_sandboxes(hurried, US)


def test_an_engine_that_hangs_before_anything_is_asked_makes_the_run_wait(
    settings: WorkerSettings, engine: OddEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is not as if there were none."""
    monkeypatch.setattr("ptc_worker.sandbox.kinds.docker_engine.CALL_SECONDS", 0.1)
    engine.answers_at_all.clear()

    with pytest.raises(BusyError, match="does not answer"):
        prepare_sandboxes(settings, US)


@pytest.mark.parametrize("names", [[], None])
def test_a_container_without_a_name_is_reaped_with_the_others(
    settings: WorkerSettings, engine: OddEngine, names: list[str] | None
) -> None:
    """An engine that could not remove one at first may have forgotten how it was called."""
    labels = Purpose(installation=US.installation, worker="dead").labels
    engine.containers["1"] = {"Id": "1", "Names": names, "Labels": labels}
    engine.containers["2"] = {"Id": "2", "Names": ["/ptc-dead-0-1"], "Labels": labels}

    assert reap_sandboxes(settings, US, lambda _: ()) == 2
    assert engine.containers == {}


@pytest.mark.parametrize(
    ("pull", "waits_for"), [(None, "POST /containers/create"), (Pull(), "POST /images/create")]
)
def test_a_container_that_is_made_after_its_sandbox_is_gone_is_removed(
    settings: WorkerSettings, engine: OddEngine, pull: Pull | None, waits_for: str
) -> None:
    """What a call has begun goes on when nobody waits for it any more."""
    machine = Docker(settings).machine("ptc-run-1-3-1", US)
    engine.pull = pull
    engine.answers.clear()
    starting = begin_async(machine.start())
    until(lambda: engine.calls[waits_for])
    starting.cancel()
    run_async(machine.delete(), Halt())
    engine.pull = None
    engine.answers.set()
    until(lambda: not any(thread.name == "docker" for thread in threading.enumerate()))

    assert engine.calls["POST /containers/create"] == 1
    assert engine.calls["POST /containers/ptc-run-1-3-1/start"] == 0
    assert engine.containers == {}
