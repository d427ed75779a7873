"""Providers that are opened for a test, and model servers that answer by hand what the replay server never would."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from support import served

from ptc_contracts import LLMProvider
from ptc_worker.llm import open_provider
from ptc_worker.settings import ProviderSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from ptc_worker.llm.protocol import Provider
    from ptc_worker.llm.replay.server import ReplayServer

FAKE_KEY = "test-key-for-models"
MODEL = "model-1"


@asynccontextmanager
async def opened(
    name: LLMProvider, url: str, *, max_output_tokens: int = 1000, **settings: Any
) -> AsyncIterator[Provider]:
    """Open a provider for the time of the block."""
    base_url = url if name is LLMProvider.CLAUDE else f"{url}/v1"
    fields = {"model": MODEL, "api_key": FAKE_KEY, **settings}
    provider = open_provider(
        name, ProviderSettings(name=name.value, base_url=base_url, **fields), max_output_tokens
    )
    try:
        yield provider
    finally:
        await provider.close()


def requests_of(server: ReplayServer) -> int:
    """Count the requests that a server took."""
    stats = server.stats()
    return int(stats["calls"] + stats["faults"])


@dataclass
class Fixed:
    """A server that answers every request alike."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    """What it was sent, as JSON."""


@contextmanager
def fixed(
    body: bytes, *, status: int = 200, kind: str = "text/event-stream", headers: dict[str, str] | None = None
) -> Iterator[Fixed]:
    """Answer every request with these bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            server.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status)
            for name, value in {"content-type": kind, **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 as http.server has it
            """Stay quiet."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Fixed(f"http://127.0.0.1:{http.server_address[1]}")
    http.daemon_threads = True
    with served(http):
        yield server


@contextmanager
def serving(body: bytes, **answer: Any) -> Iterator[str]:
    """Answer every request with these bytes; yield the address."""
    with fixed(body, **answer) as server:
        yield server.url


def chunks(*payloads: object, done: bool = True) -> bytes:
    """Write a stream of `/chat/completions`."""
    lines = [json.dumps(payload) for payload in payloads] + (["[DONE]"] if done else [])
    return "".join(f"data: {line}\n\n" for line in lines).encode()


def chunk(model: str = MODEL, **choice: object) -> dict[str, object]:
    """Make a chunk with one choice."""
    frame = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model}
    return {**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": None, **choice}]}


def events(*payloads: dict[str, object]) -> bytes:
    """Write a stream of `/v1/messages`."""
    return "".join(f"event: {p['type']}\ndata: {json.dumps(p)}\n\n" for p in payloads).encode()


MESSAGE_START: dict[str, object] = {
    "type": "message_start",
    "message": {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 10,
            "cache_read_input_tokens": 200,
            "cache_creation_input_tokens": 30,
            "output_tokens": 1,
        },
    },
}
