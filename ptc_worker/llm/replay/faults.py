"""The ways in which the replay server can misbehave on request, each as seen at real providers."""

from __future__ import annotations

import random
import threading
from collections import deque
from dataclasses import dataclass, field
from enum import Enum


class Fault(str, Enum):
    """One way a call goes wrong."""

    RATE_LIMITED = "rate_limited"
    """429 with `retry-after: 0.05`."""
    RATE_LIMITED_LONG = "rate_limited_long"
    """429 that asks for an hour."""
    QUOTA = "quota"
    """429 `insufficient_quota`."""
    OVERLOADED = "overloaded"
    """529."""
    SERVER_ERROR = "server_error"
    """500."""
    HTML_502 = "html_502"
    """502 with a page instead of JSON."""
    AUTH = "auth"
    """401."""
    PAYMENT = "payment"
    """402."""
    FORBIDDEN = "forbidden"
    """403."""
    UNKNOWN_MODEL = "unknown_model"
    """404."""
    TOO_LONG = "too_long"
    """400: the prompt is too long."""
    TOO_LARGE = "too_large"
    """413."""
    BAD_REQUEST = "bad_request"
    """400 for any other reason."""
    CLOSED = "closed"
    """The connection is closed before any answer."""
    RESET = "reset"
    """The connection is reset in the middle of the stream."""
    STALL = "stall"
    """The stream stops half-way and stays open."""
    PINGS = "pings"
    """Keep-alives and nothing else."""
    CUT_OFF = "cut_off"
    """The stream ends cleanly half-way."""
    GARBLED = "garbled"
    """A line of the stream is no JSON."""
    STREAM_ERROR = "stream_error"
    """An error arrives inside the stream."""
    EMPTY = "empty"
    """A complete answer without text."""
    REFUSAL = "refusal"
    """The model refuses."""
    LENGTH = "length"
    """The answer is cut at the token limit."""


@dataclass
class FaultPlan:
    """Decides which fault, if any, the next request meets: first the scripted ones, then by chance."""

    rate: float = 0.0
    kinds: tuple[Fault, ...] = (
        Fault.RATE_LIMITED,
        Fault.OVERLOADED,
        Fault.SERVER_ERROR,
        Fault.HTML_502,
        Fault.CLOSED,
        Fault.RESET,
        Fault.CUT_OFF,
        Fault.GARBLED,
        Fault.STREAM_ERROR,
    )
    """What chance draws from: faults that a retry mends."""
    seed: int = 0
    _script: deque[Fault | None] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 a fault is no secret

    def script(self, faults: list[Fault | None]) -> None:
        """Let the next requests meet these faults, in this order; None is a good answer."""
        with self._lock:
            self._script.extend(faults)

    def draw(self) -> Fault | None:
        """Return the fault for one request, None for a good answer."""
        with self._lock:
            if self._script:
                return self._script.popleft()
            return self._random.choice(self.kinds) if self._random.random() < self.rate else None
