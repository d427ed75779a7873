"""`ptc-replay`: speaks both model protocols on loopback and answers from recordings; never invents."""

from __future__ import annotations

import argparse
import json
import select
import socket
import struct
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptc_contracts import ConfigurationError
from ptc_worker.llm.replay.faults import Fault, FaultPlan
from ptc_worker.llm.replay.recordings import Part, Recordings, Turn, load, recorded
from ptc_worker.llm.replay.wire import DIALECTS, Dialect, Served

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

STATS_PATH = "/_replay/stats"
"""GET: what was served: `{"calls", "faults", "unknown", "left", "by_turn": {"<content id>:<turn>": n}, "in_flight":
{"<model>": n}}`. `left` counts the answers whose caller was gone before their end; a turn is `2`, or `2.3` for the third
request of the second iteration."""

SCRIPT_PATH = "/_replay/faults"
"""POST a JSON list of fault names: what the next requests meet; null is a good answer."""

_STALL_SECONDS = 3600.0
_LOOK_SECONDS = 0.2

_STATUS_FAULTS: dict[Fault, tuple[int, str, str, dict[str, str]]] = {
    Fault.RATE_LIMITED: (429, "rate_limit_error", "slow down", {"retry-after": "0.05"}),
    Fault.RATE_LIMITED_LONG: (429, "rate_limit_error", "slow down", {"retry-after": "3600"}),
    Fault.QUOTA: (429, "insufficient_quota", "you exceeded your current quota", {}),
    Fault.OVERLOADED: (529, "overloaded_error", "Overloaded", {}),
    Fault.SERVER_ERROR: (500, "api_error", "internal error", {}),
    Fault.AUTH: (401, "authentication_error", "invalid key", {}),
    Fault.PAYMENT: (402, "billing_error", "payment required", {}),
    Fault.FORBIDDEN: (403, "permission_error", "not allowed", {}),
    Fault.UNKNOWN_MODEL: (404, "not_found_error", "model not found", {}),
    Fault.TOO_LONG: (400, "invalid_request_error", "prompt is too long: 9 tokens > 8 maximum", {}),
    Fault.TOO_LARGE: (413, "request_too_large", "request too large", {}),
    Fault.BAD_REQUEST: (400, "invalid_request_error", "unexpected field", {}),
}


@dataclass
class Call:
    """One request for a recorded turn, for whoever has to account for it."""

    turn: Turn
    model: str
    """The model that was asked for: processes that share a server can be told apart by it."""
    fault: Fault | None
    """What it met instead of a good answer."""
    started: float
    """When it came in, by `time.monotonic()`."""
    ended: float | None = None
    """When its answer was written, or given up; None while it is in flight."""


class ReplayServer(ThreadingHTTPServer):
    """Answers recorded turns; counts every request it took."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        recordings: Recordings,
        *,
        port: int = 0,
        latency: float = 0.0,
        chunk_chars: int = 400,
        chunk_seconds: float = 0.0,
        faults: FaultPlan | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.recordings = recordings
        self.latency = latency
        self.chunk_chars = chunk_chars
        self.chunk_seconds = chunk_seconds
        self.faults = faults or FaultPlan()
        self.disguised = False
        """Whether answers bear the name of the model that was asked for, and so its price: for tests of costs."""
        self.stopping = threading.Event()
        self.journal: list[Call] = []
        self._counts: Counter[str] = Counter()
        self._by_turn: Counter[str] = Counter()
        self._counting = threading.Lock()

    @property
    def url(self) -> str:
        """Where it listens: Anthropic's base URL as it is, everybody else's with `/v1` behind it."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self, what: str, turn: Turn | None = None) -> None:
        """Count a request, and the turn it asked for."""
        with self._counting:
            self._counts[what] += 1
            if turn:
                self._by_turn[str(turn)] += 1

    def stats(self) -> dict[str, Any]:
        """Tell what was served so far."""
        with self._counting:
            counts = {name: self._counts[name] for name in ("calls", "faults", "unknown", "left")}
            in_flight = Counter(call.model for call in self.journal if call.ended is None)
            return {**counts, "by_turn": dict(self._by_turn), "in_flight": dict(in_flight)}

    @contextmanager
    def serving(self, turn: Turn, model: str, fault: Fault | None) -> Iterator[None]:
        """Note a call for as long as it is in flight."""
        call = Call(turn=turn, model=model, fault=fault, started=time.monotonic())
        with self._counting:
            self.journal.append(call)
        try:
            yield
        finally:
            call.ended = time.monotonic()

    def shutdown(self) -> None:
        """Stop, and wake the requests that stall on purpose."""
        self.stopping.set()
        super().shutdown()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 as socketserver has it
        """Ignore clients that went away; report anything else."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: ReplayServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each small event waits for the delayed acknowledgement of the last

    def do_GET(self) -> None:
        if self.path == STATS_PATH:
            self._send_json(200, json.dumps(self.server.stats()).encode())
        else:
            self._send_json(404, b'{"error": "unknown path"}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"null")
        if self.path == SCRIPT_PATH:
            self.server.faults.script([name and Fault(name) for name in body])
            self._send_json(200, b"{}")
        elif dialect := DIALECTS.get(self.path.partition("?")[0]):
            try:
                self._answer(dialect, body)
            except OSError:
                self.server.count("left")
                raise
        else:
            self._send_json(404, b'{"error": "unknown path"}')

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 as http.server has it
        """Stay quiet: the statistics tell more than a line for each request."""

    def _answer(self, dialect: Dialect, request: dict[str, Any]) -> None:
        turn = Turn.of(dialect.prompt_text(request))
        part = recorded(self.server.recordings, turn) if turn else None
        if turn is None or part is None:
            self.server.count("unknown", turn)
            wanted = f"plan and turn {turn}" if turn else "this prompt"
            # Not 404: there is a model, and other plans may well be recorded.
            self._send_json(400, dialect.error("invalid_request_error", f"no recording for {wanted}"))
            return
        fault = self.server.faults.draw()
        self.server.count("faults" if fault else "calls", turn)
        with self.server.serving(turn, str(request.get("model")), fault):
            self._serve(dialect, request, part, fault)

    def _serve(self, dialect: Dialect, request: dict[str, Any], part: Part, fault: Fault | None) -> None:
        self._pause(self.server.latency)
        text, finish = part["text"], part.get("finish", "stop")
        if fault is Fault.EMPTY:
            text = ""
        elif fault is Fault.LENGTH:
            text, finish = text[: len(text) // 2], "length"
        elif fault is Fault.REFUSAL:
            finish = "refusal"
        prompt_chars = len(dialect.prompt_text(request))
        served = Served(
            text=text,
            model=str(request.get("model")),
            prompt_chars=prompt_chars,
            finish=finish,
            disguised=self.server.disguised,
        )
        if fault and self._failed_early(dialect, fault):
            return
        if request.get("stream"):
            self._stream(dialect, served, fault)
        else:
            self._send_json(200, dialect.whole(served))

    def _failed_early(self, dialect: Dialect, fault: Fault) -> bool:
        """Carry out a fault that comes instead of any answer; tell whether it was one."""
        if fault in _STATUS_FAULTS:
            status, kind, message, headers = _STATUS_FAULTS[fault]
            self._send_json(status, dialect.error(kind, message), headers)
        elif fault is Fault.HTML_502:
            self._send(502, "text/html", b"<html><body>Bad gateway</body></html>")
        elif fault is Fault.CLOSED:
            self.close_connection = True
        else:
            return False
        return True

    def _stream(self, dialect: Dialect, served: Served, fault: Fault | None) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        if fault is Fault.PINGS:
            self._ping_until_stopped()
            return
        pieces = list(_pieces(served.text, self.server.chunk_chars))
        for event in dialect.opening(served):
            self._chunk(event)
        for index, piece in enumerate(pieces):
            if fault and index == len(pieces) // 2 and self._broken_off(dialect, fault):
                return
            self._chunk(dialect.piece(served, piece))
            self._pause(self.server.chunk_seconds)
        for event in dialect.closing(served):
            self._chunk(event)
        self._chunk(b"")

    def _broken_off(self, dialect: Dialect, fault: Fault) -> bool:
        """Carry out a fault in the middle of a stream; tell whether it was one."""
        self.close_connection = True
        match fault:
            case Fault.RESET:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            case Fault.STALL:
                self._pause(_STALL_SECONDS)
            case Fault.CUT_OFF:
                self._chunk(b"")
            case Fault.GARBLED:
                self._chunk(b"event: content_block_delta\ndata: {not json\n\n")
            case Fault.STREAM_ERROR:
                self._chunk(dialect.stream_error("overloaded_error", "Overloaded"))
                self._chunk(b"")
            case _:
                return False
        return True

    def _ping_until_stopped(self) -> None:
        until = time.monotonic() + _STALL_SECONDS
        while time.monotonic() < until and not self.server.stopping.wait(0.05):
            self._chunk(
                b'event: ping\ndata: {"type": "ping"}\n\n' if "messages" in self.path else b": PROCESSING\n\n"
            )

    def _pause(self, seconds: float) -> None:
        """Wait while the server runs and the caller stays.

        Raises:
            ConnectionError: the caller has left.
        """
        until = time.monotonic() + seconds
        caller = select.poll()
        caller.register(self.connection, select.POLLIN)
        while (left := until - time.monotonic()) > 0 and not self.server.stopping.is_set():
            if caller.poll(1000 * min(left, _LOOK_SECONDS)):
                raise ConnectionAbortedError("the caller has left")  # nobody sends two requests at once

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _send_json(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._send(status, "application/json", body, headers)

    def _send(self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "content-type": kind,
            "content-length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _pieces(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve recordings until interrupted. Exit code: 0, or 2 where the recordings cannot be read."""
    parser = argparse.ArgumentParser(
        prog="ptc-replay",
        description="Answer both model protocols on 127.0.0.1 from recordings. Unknown plans get an error.",
    )
    parser.add_argument(
        "recordings",
        nargs="+",
        type=Path,
        help="folder with plan.json and answer-N.md, or with transcripts (PTC_RECORD), or JSONL",
    )
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: any free one)")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer (default: 0)")
    parser.add_argument("--chunk-chars", type=int, default=400, help="characters in each streamed piece")
    parser.add_argument("--chunk-seconds", type=float, default=0.0, help="seconds between two pieces")
    parser.add_argument("--fault-rate", type=float, default=0.0, help="share of requests that fail, 0 to 1")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults")
    options = parser.parse_args(arguments)
    try:
        server = ReplayServer(
            load(options.recordings),
            port=options.port,
            latency=options.latency,
            chunk_chars=options.chunk_chars,
            chunk_seconds=options.chunk_seconds,
            faults=FaultPlan(rate=options.fault_rate, seed=options.seed),
        )
    except (ConfigurationError, OSError) as error:
        print(f"ptc-replay: {error}", file=sys.stderr)
        return 2
    print(f"replay server on {server.url} with {len(server.recordings)} recordings", flush=True)
    try:
        server.serve_forever(poll_interval=0.1)
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
