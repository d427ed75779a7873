"""The other end of the line to an agent, and of the pipes from what it runs."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OUTPUT_LIMIT = 4 * 2**20
"""Bytes a command may write to its two streams together before it is ended."""

EVENTS_LIMIT = 32 * 2**20
"""Bytes of events that a command may write before it is ended."""

_HEADER = struct.Struct("!I")
_ANSWER_SECONDS = 30.0
_MOST_FACTS, _MOST_CONTENT = 2**20, 2**27
_CHUNK = 2**16
_END_SECONDS = 5.0
_TOGETHER_SECONDS = 0.002
"""How long an event waits for others: to read one costs as much as to read many."""


class Line:
    """A socket: a length, JSON facts, and as many bytes as the facts' `size` says; descriptors may come along."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._socket.settimeout(_ANSWER_SECONDS)

    def fileno(self) -> int:
        """Return the descriptor, for selectors."""
        return self._socket.fileno()

    def send(self, request: dict[str, Any], content: bytes = b"", descriptors: Sequence[int] = ()) -> None:
        """Send a request.

        Raises:
            OSError: the agent has gone, or does not read.
        """
        text = json.dumps(request).encode()
        header = _HEADER.pack(len(text))
        if descriptors:
            socket.send_fds(self._socket, [header], list(descriptors))
        else:
            self._socket.sendall(header)
        self._socket.sendall(text + content)

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Wait for an answer.

        Raises:
            OSError: it does not come, or is longer than any that could be asked for.
            EOFError: the agent has gone.
        """
        (length,) = _HEADER.unpack(self._bytes(_HEADER.size, _HEADER.size))
        facts: dict[str, Any] = json.loads(self._bytes(length, _MOST_FACTS))
        return facts, self._bytes(facts["size"], _MOST_CONTENT)

    def _bytes(self, size: int, most: int) -> bytes:
        if size > most:
            raise OSError("the agent's answer is too long")
        parts = []
        while size:
            part = self._socket.recv(min(size, _CHUNK))
            if not part:
                raise EOFError("the agent has gone")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def cut(self) -> None:
        """Let it go dead at both ends; any thread may do so, and again."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back."""
        self._socket.close()


class Streams:
    """Three pipes from a command: output, errors and events, each read up to its limit."""

    def __init__(self, heard: Callable[[bytes], None] | None = None) -> None:
        self._heard = heard
        """Gets the events, as they are read."""
        pairs = [os.pipe() for _ in range(3)]
        self.near = [near for near, _ in pairs]
        self.far = [far for _, far in pairs]
        self._parts: dict[int, list[bytes]] = {near: [] for near in self.near}
        self._sizes = dict.fromkeys(self.near, 0)
        for near in self.near:
            os.set_blocking(near, False)

    @property
    def full(self) -> bool:
        """Whether the command has written more than it may."""
        output, errors, events = (self._sizes[near] for near in self.near)
        return output + errors > OUTPUT_LIMIT or events > EVENTS_LIMIT

    @property
    def texts(self) -> tuple[bytes, bytes, bytes]:
        """What was read: output, errors, events."""
        output, errors, events = (b"".join(self._parts[near]) for near in self.near)
        return output, errors, events

    def take(self, near: int) -> bool:
        """Read what is there now; return whether the stream is at its end."""
        try:
            part = os.read(near, _CHUNK)
        except BlockingIOError:
            return False
        self._parts[near].append(part)
        self._sizes[near] += len(part)
        if self._heard and near == self.near[-1]:
            self._heard(part)
        return not part

    def drain(self) -> None:
        """Read what is left in the pipes, within the limits."""
        for near in self.near:
            before = -1
            while not self.full and self._sizes[near] > before:
                before = self._sizes[near]
                self.take(near)

    def close_far(self) -> None:
        """Close the ends that the agent has by now."""
        while self.far:
            os.close(self.far.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_far()
        for near in self.near:
            os.close(near)


def follow(line: Line, streams: Streams, deadline: float, kill: Callable[[], None]) -> dict[str, Any]:
    """Read the streams until the agent tells of the command's end, and return what it tells.

    It is told to make an end when time (of the monotonic clock) or room is over, and killed if it does not. `why`
    then says which: `time`, `output`, or `lost` if the agent has gone.
    """
    why = ""
    with selectors.DefaultSelector() as selector:
        selector.register(line, selectors.EVENT_READ)
        for stream in streams.near:
            selector.register(stream, selectors.EVENT_READ)
        while True:
            ready = _ready(selector, streams, deadline)
            for stream in streams.near:
                if stream in ready and streams.take(stream):
                    selector.unregister(stream)
            if line in ready:
                break
            verdict = "output" if streams.full else "time" if time.monotonic() >= deadline else ""
            if verdict and why:
                kill()
                break
            if verdict:
                why = verdict
                with suppress(OSError):  # it has gone: its socket tells next
                    line.send({"op": "stop"})
                deadline = time.monotonic() + _END_SECONDS
                for stream in set(streams.near) & set(selector.get_map()):
                    selector.unregister(stream)
    streams.drain()
    try:
        facts, _ = line.receive()
    except (OSError, EOFError):
        return {"status": -signal.SIGKILL, "why": why or "lost"}
    return {**facts, "why": why or facts["why"]}


def _ready(selector: selectors.BaseSelector, streams: Streams, deadline: float) -> list[Any]:
    """Wait until something can be read, or time is over; return what can be."""
    ready = [key.fileobj for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]
    if ready == streams.near[-1:]:
        time.sleep(_TOGETHER_SECONDS)
    return ready
