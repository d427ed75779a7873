"""E2B on loopback: speaks its API, and that of its sandboxes, to the real SDK, and runs everything in local sandboxes.

What the protocol is was read from the SDK: the control plane in `e2b/api/client`, files and processes in `e2b/envd`.
"""

from __future__ import annotations

import base64
import json
import socket
import struct
import threading
from collections import Counter, defaultdict, deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit
from uuid import uuid4

from sandbox.nested import FILE_BYTES, host_of
from support import served

from ptc_worker.sandbox.protocol import SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ptc_worker.sandbox.local import LocalSandbox
    from ptc_worker.settings import WorkerSettings

KEY = "e2b_0000"
TEMPLATE = "base"
RETRY_AFTER_SECONDS = 7
_PAGE = 2
"""Sandboxes on a page of a list: few, so that whoever forgets to turn pages is found out."""

_ENVD_VERSION = "0.6.7"
_STARTED = "2026-01-01T00:00:00Z"
_END_OF_STREAM = 2
"""The flag of a Connect stream's last message."""


class Fault(Enum):
    """What a request may meet instead of a good answer."""

    LIMITED = auto()
    """Nothing is done, and it is said when to come back."""
    FULL = auto()
    """Nothing is done, and that is not said."""
    BUSY = auto()
    """Nothing is done, for E2B itself has no room."""
    LOST = auto()
    """All is done, and the answer lost on the way."""
    HANGS = auto()
    """All is done, and never answered."""
    RESET = auto()
    """The connection is gone before the request was read."""
    CUT = auto()
    """All is done, and the connection gone in the middle of the answer."""
    STALE = auto()
    """A list without anything that there is."""
    LIES = auto()
    """Nothing is done, and the opposite said."""
    VANISHES = auto()
    """The sandbox is gone while it does what was asked."""


@dataclass(frozen=True)
class Answer:
    """What goes back."""

    status: int
    content: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def error(cls, status: int, message: str, **headers: str) -> Answer:
        """An error in the form of E2B's."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status, {"code": status, "message": message}, named)


GONE = Answer.error(502, "The sandbox was not found")
_INSTEAD = {
    Fault.LIMITED: Answer.error(429, "slow down", Retry_After=str(RETRY_AFTER_SECONDS)),
    Fault.FULL: Answer.error(429, "you have reached the maximum number of concurrent sandboxes"),
    Fault.BUSY: Answer.error(503, "no node has room", Retry_After=str(RETRY_AFTER_SECONDS)),
    Fault.LIES: Answer(204),
    Fault.STALE: Answer(200, []),
}


@dataclass
class Box:
    """A sandbox that somebody asked for."""

    host: LocalSandbox
    asked: dict[str, Any]
    """The request that made it."""
    id: str = field(default_factory=lambda: f"i{uuid4().hex[:19]}")
    token: str = field(default_factory=lambda: uuid4().hex)
    turn: threading.Lock = field(default_factory=threading.Lock)
    """A local sandbox does one thing at a time."""

    @property
    def told(self) -> dict[str, Any]:
        """What E2B says of it."""
        return {
            "sandboxID": self.id,
            "templateID": self.asked["templateID"],
            "clientID": "loopback",
            "envdVersion": _ENVD_VERSION,
            "envdAccessToken": self.token,
            "metadata": self.asked["metadata"],
            "allowInternetAccess": self.asked.get("allow_internet_access"),
            "state": "running",
            "startedAt": _STARTED,
            "endAt": _STARTED,
            "cpuCount": 2,
            "memoryMB": 1024,
            "diskSizeMB": 1024,
        }


class E2BServer(ThreadingHTTPServer):
    """Counts what it is asked, and meets it with the faults that it was told of."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, settings: WorkerSettings, environment: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: Counter[str] = Counter()
        """Requests so far, by what they asked for."""
        self.boxes: dict[str, Box] = {}
        """The sandboxes that there are."""
        self.asked: list[dict[str, Any]] = []
        """The requests that made one."""
        self.unconfirmed: set[str] = set()
        """Sandboxes that somebody asked for and was not told yet that they are gone."""
        self.knows_keys = True
        """Whether what is asked for again with the same key is made once."""
        self.over = threading.Event()
        self.path = f"{environment}/bin:/usr/bin:/bin"
        self._settings, self._environment = settings, environment
        self._faults: defaultdict[str, deque[Fault | None]] = defaultdict(deque)
        self._by_key: dict[str, Box] = {}
        self._making = threading.Lock()

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings that lead here."""
        address = f"http://127.0.0.1:{self.server_address[1]}"
        return {
            "ptc_sandbox": "e2b",
            "e2b_api_key": KEY,
            "e2b_api_url": address,
            "e2b_sandbox_url": address,
            "ptc_e2b_template": TEMPLATE,
        }

    def meet(self, operation: str, *faults: Fault | None) -> None:
        """Let the next requests of a kind meet these; None is a good answer."""
        self._faults[operation].extend(faults)

    @property
    def to_meet(self) -> bool:
        """Whether there are faults that no request has met yet."""
        return any(self._faults.values())

    def met(self, operation: str) -> Fault | None:
        """Count a request; tell what it is to meet."""
        self.calls[operation] += 1
        return self._faults[operation].popleft() if self._faults[operation] else None

    def make(self, asked: dict[str, Any], key: str | None) -> Box:
        """Make a sandbox, or find the one that was made for the same key."""
        with self._making:
            if key and self.knows_keys and key in self._by_key:
                return self._by_key[key]
            box = Box(host_of(self._settings, self._environment), asked)
            box.host.start()
            self.asked.append(asked)
            self.boxes[box.id] = box
            if key:
                self._by_key[key] = box
            return box

    def remove(self, box: Box) -> None:
        """End a sandbox, whatever it does."""
        self.boxes.pop(box.id, None)
        box.host.destroy()

    def server_close(self) -> None:
        """End everything."""
        self.over.set()
        for box in list(self.boxes.values()):
            self.remove(box)
        super().server_close()


@contextmanager
def serving(settings: WorkerSettings, environment: Path) -> Iterator[E2BServer]:
    """Serve for the time of a block; an environment is what is in its one template."""
    with served(E2BServer(settings, environment)) as server:
        yield server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: E2BServer

    def _serve(self) -> None:
        url = urlsplit(self.path)
        self._query = {
            name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()
        }
        operation, self._id = self._operation(url.path.strip("/").split("/"))
        fault = self.server.met(operation)
        if fault is Fault.RESET:
            self._reset()
            return
        self._content = self._received()
        if operation == "run":
            self._run(fault)
            return
        answer = (
            self._refused(operation) or _INSTEAD.get(fault or Fault.LOST) or getattr(self, f"_{operation}")()
        )
        match fault:
            case Fault.LOST:
                answer = Answer.error(502, "bad gateway")
            case Fault.HANGS:
                self.server.over.wait()
        self._reply(answer, cut=fault is Fault.CUT)
        if answer.status == 404 and fault is None:
            self.server.unconfirmed.discard(self._id)

    do_GET = do_POST = do_DELETE = _serve  # noqa: N815 as http.server has it

    def _operation(self, path: list[str]) -> tuple[str, str]:
        match self.command, path:
            case "POST", ["v2", "sandboxes"]:
                return "create", ""
            case "GET", ["v2", "sandboxes"]:
                return "list", ""
            case "GET", ["sandboxes", sandbox_id]:
                return "get", sandbox_id
            case "DELETE", ["sandboxes", sandbox_id]:
                return "kill", sandbox_id
            case "POST", ["v2", "sandboxes", sandbox_id, "connect"]:
                return "connect", sandbox_id
            case _:
                inside = self.headers.get("E2b-Sandbox-Id", "")
                names = {"health": "health", "files": "upload" if self.command == "POST" else "download"}
                return names.get(
                    path[0], "run" if path == ["process.Process", "Start"] else "unknown"
                ), inside

    def _refused(self, operation: str) -> Answer | None:
        box = self.server.boxes.get(self._id)
        if operation in {"health", "upload", "download", "run"}:
            if box is None:
                return GONE
            if operation != "health" and self.headers.get("X-Access-Token") != box.token:
                return Answer.error(401, "no such token")
        elif (key := self.headers.get("X-API-KEY")) != KEY:
            return Answer.error(401, f"there is no key {key}")
        elif self._id and box is None:
            return Answer.error(404, f"sandbox {self._id} not found")
        return None

    # ── the control plane ──────────────────────────────────────────────────────────────────────────────────

    @property
    def _box(self) -> Box:
        return self.server.boxes[self._id]

    def _create(self) -> Answer:
        asked = json.loads(self._content)
        if asked["templateID"] != TEMPLATE:
            return Answer.error(404, f"template '{asked['templateID']}' not found")
        box = self.server.make(asked, self.headers.get("Idempotency-Key"))
        self.server.unconfirmed.add(box.id)
        return Answer(201, box.told)

    def _list(self) -> Answer:
        wanted = {
            (unquote(name), unquote(value))
            for name, value in parse_qsl(self._query.get("metadata", ""), keep_blank_values=True)
        }
        told = [box.told for box in self.server.boxes.values() if wanted <= box.asked["metadata"].items()]
        start = int(self._query.get("nextToken", 0))
        more = {"x-next-token": str(start + _PAGE)} if len(told) > start + _PAGE else {}
        return Answer(200, told[start : start + _PAGE], more)

    def _get(self) -> Answer:
        return Answer(200, self._box.told)

    def _connect(self) -> Answer:
        return Answer(200, self._box.told)

    def _kill(self) -> Answer:
        self.server.remove(self._box)
        return Answer(204)

    # ── files ──────────────────────────────────────────────────────────────────────────────────────────────

    def _health(self) -> Answer:
        return Answer(204)

    def _upload(self) -> Answer:
        files = dict(_parts(self.headers["Content-Type"], self._content))
        if "path" in self._query:
            files = dict.fromkeys([self._query["path"]], *files.values())
        with self._box.turn:
            self._box.host.write(files)
        return Answer(200, [{"name": path, "type": "file", "path": path} for path in files])

    def _download(self) -> Answer:
        """Read a file; one that a command may be writing is not there."""
        path = self._query["path"]
        content = None
        if self._box.turn.acquire(blocking=False):
            try:
                content = self._box.host.read(path, FILE_BYTES)
            finally:
                self._box.turn.release()
        return Answer.error(404, f"path '{path}' does not exist") if content is None else Answer(200, content)

    # ── processes ──────────────────────────────────────────────────────────────────────────────────────────

    def _run(self, fault: Fault | None) -> None:
        """Answer with a stream of messages, each a flag, a length and JSON."""
        if refused := self._refused("run"):
            self._reply(refused)
            return
        box = self._box
        self.send_response(200)
        self.send_header("Content-Type", "application/connect+json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._event(start={"pid": 1})
        match fault:
            case Fault.CUT:
                self._reset()
            case Fault.VANISHES:
                self.server.remove(box)
        command = json.loads(self._content[5:])["process"]
        seconds = int(self.headers["Connect-Timeout-Ms"]) / 1000
        with suppress(OSError):
            self._message(_END_OF_STREAM, self._ran(box, command, seconds))
            self._chunk(b"")

    def _ran(self, box: Box, command: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Run a command, and tell of it; return what ends the stream."""
        # Not as a login shell: the profile of this machine would hide what is in the template.
        words = [command["cmd"], *(word for word in command["args"] if word != "-l")]
        try:
            with box.turn:
                ran = box.host.exec(words, env={"PATH": self.server.path}, cwd=".", timeout=seconds)
        except SandboxError:
            return {"error": {"code": "unavailable", "message": "the connection to the sandbox ended"}}
        if ran.timed_out:
            return {"error": {"code": "deadline_exceeded", "message": "it took too long"}}
        for name, text in (("stdout", ran.stdout), ("stderr", ran.stderr)):
            if text:
                self._event(data={name: base64.b64encode(text).decode()})
        self._event(end={"exitCode": max(ran.exit_code, -1), "exited": ran.exit_code >= 0, "status": ""})
        return {}

    def _event(self, **event: dict[str, Any]) -> None:
        self._message(0, {"event": event})

    def _message(self, flag: int, content: dict[str, Any]) -> None:
        told = json.dumps(content).encode()
        self._chunk(struct.pack(">BI", flag, len(told)) + told)

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))
        self.wfile.flush()

    # ── HTTP ───────────────────────────────────────────────────────────────────────────────────────────────

    def _received(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _reply(self, answer: Answer, *, cut: bool = False) -> None:
        raw = isinstance(answer.content, bytes)
        content = answer.content if raw else json.dumps(answer.content).encode()
        with suppress(OSError):
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/octet-stream" if raw else "application/json")
            self.send_header("Content-Length", str(len(content)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self._reset()

    def _reset(self) -> None:
        """Let the other side see the connection reset."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 as http.server has it
        """Stay quiet."""


def _parts(kind: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """Take apart an upload of several files: their paths are the names."""
    boundary = b"--" + kind.partition("boundary=")[2].encode()
    for part in content.split(boundary)[1:-1]:
        head, _, rest = part.partition(b"\r\n\r\n")
        yield (
            unquote(head.partition(b'filename="')[2].partition(b'"')[0].decode()),
            rest.removesuffix(b"\r\n"),
        )
