"""Reads what the probe in Node's process tells while it is written, and tells of each test as it ends."""

from __future__ import annotations

import hmac
import json
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from ptc_worker.reported import bounded_id
from ptc_worker.sealed import ForgedError, SealedLines

if TYPE_CHECKING:
    from collections.abc import Callable

    from ptc_worker.telling import Teller

Known = dict[str, dict[str, Any]]
"""The events of one test, by their kind."""


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_text_or_nothing(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_truth(value: object) -> bool:
    return isinstance(value, bool)


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_duration(value: object) -> bool:
    return type(value) in {int, float} and 0 <= value < 10**6  # type: ignore[operator]  # NaN is neither


_Shape = dict[str, "Callable[[object], bool]"]
_OF_TEST: _Shape = {"id": _is_number}
_KINDS: dict[str, _Shape] = {
    "test": _OF_TEST
    | {"name": _is_text, "digest": _is_text_or_nothing, "skip": _is_truth, "todo": _is_truth},
    "began": _OF_TEST,
    "ran": _OF_TEST | {"seconds": _is_duration},
    "raised": _OF_TEST | {"seconds": _is_duration, "text": _is_text},
    "refused": _OF_TEST | {"text": _is_text},
    "skip": _OF_TEST,
    "todo": _OF_TEST,
    "suite_left_out": {"name": _is_text},
    "error": {"name": _is_text, "text": _is_text},
    "uncaught": {"text": _is_text},
    "exit_called": {"text": _is_text},
    "meddled": {"text": _is_text},
    "end": {"code": _is_number, "natural": _is_truth},
}
"""What each kind of event must say, and what each of its values must be."""


@dataclass
class NodeLog:
    """The events of one test file's process, as far as they can be trusted."""

    events: list[dict[str, Any]] = field(default_factory=list)
    tests: dict[int, Known] = field(default_factory=dict)
    """Those of its tests, by number, in the order in which they were registered."""
    meddling: list[str] = field(default_factory=list)
    ended: bool = False
    """Whether the process told of its end."""

    def take(self, event: dict[str, Any]) -> None:
        """Add an event."""
        self.events.append(event)
        self.ended = event["event"] == "end"
        if "id" in event:
            self.tests.setdefault(event["id"], {})[event["event"]] = event

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of a kind."""
        return [event for event in self.events if event["event"] == kind]

    @property
    def natural(self) -> bool:
        """Whether it ended because nothing was left to do, and not by its own word."""
        return any(event["natural"] for event in self.of("end"))


class NodeLogReader:
    """What one test file's process proves so far; what comes after a line that does not hold is not looked at."""

    def __init__(self, path: str, key: bytes, teller: Teller) -> None:
        self.log = NodeLog()
        self._path = path
        self._lines = SealedLines(_chained(key))
        self._teller = teller
        self._names: dict[int, str] = {}
        """Ids of the tests, as results name them, by their numbers in the log."""
        self._free = FreeNames()

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the log; a last line that is cut is a crash, no forgery."""
        if self.log.meddling:
            return
        try:
            for text in self._lines.ended_by(piece):
                if self.log.ended:
                    raise ForgedError  # noqa: TRY301 the end is the last line
                self._take(_read(text))
        except ForgedError:
            self.log.meddling.append("the test report was written to, cut or exchanged")
        except (ValueError, RecursionError):
            self.log.meddling.append("the test report cannot be read")

    def _take(self, event: dict[str, Any]) -> None:
        number = event.get("id")
        if number is not None and (event["event"] == "test") is (number in self._names):
            raise ValueError("a test is registered once, and before anything else is told of it")
        self.log.take(event)
        if number is None:
            return
        known = self.log.tests[number]
        if event["event"] == "test":
            self._names[number] = self._free.of(f"{self._path}::{title(event['name'])}")
        if became := _became(known):
            seconds = seconds_of(known) if became in {"passed", "failed"} else 0.0
            self._teller.end(self._names[number], became, seconds)


def _became(known: Known) -> str:
    """Say what became of a test, as `EventLog.outcome_of` would; nothing while it is yet to end."""
    test = known["test"]
    if "raised" in known or "refused" in known:
        return "failed"
    if "ran" not in known and test["digest"] and not test["skip"]:
        return ""
    if test["todo"] or "todo" in known:
        return "xfailed"
    return "skipped" if test["skip"] or "skip" in known else "passed"


def seconds_of(known: Known) -> float:
    """Return how long a test ran; 0 for one that did not."""
    seconds: float = (known.get("raised") or known.get("ran") or {}).get("seconds", 0.0)
    return seconds


def title(name: str) -> str:
    """Write a test's name after those of the suites around it."""
    return name.encode(errors="replace").decode().replace("\0", " > ")


class FreeNames:
    """Tells tests of one name apart by number."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._last: Counter[str] = Counter()
        """The highest number that was given to a name."""

    def of(self, name: str) -> str:
        """Take a name, or the first of it with a number that nobody has."""
        free = name
        while free in self._taken:
            self._last[name] += 1
            free = f"{name} ({self._last[name] + 1})"
        self._taken.add(free)
        return free


def _read(text: bytes) -> dict[str, Any]:
    """Read an event.

    Raises:
        ValueError: it is none: something is missing, or of another type than it must be.
    """
    event = json.loads(text.decode(errors="replace"))
    kind = event.get("event") if isinstance(event, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"there is no such event: {kind!r}")
    for name, holds in _KINDS[kind].items():
        if not holds(event.get(name)):
            raise ValueError(f"{name} of the event {kind} is none")
    if "name" in _KINDS[kind]:
        event["name"] = bounded_id(event["name"])
    return {"event": kind} | {name: event[name] for name in _KINDS[kind]}


def _chained(key: bytes) -> Callable[[bytes], bytes]:
    chain = b"0" * 64

    def seal(text: bytes) -> bytes:
        nonlocal chain
        chain = hmac.new(key, chain + sha256(text).hexdigest().encode(), "sha256").hexdigest().encode()
        return chain

    return seal
