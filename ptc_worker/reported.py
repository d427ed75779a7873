"""The events of a pytest run as they may be told: of the right types, and of a size that can be looked at."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from ptc_worker.verdict import shortened

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Check = Callable[[Any], Any]

MOST_ID_CHARS = 1_000
MOST_TEXT_CHARS = 8_000
"""Of a longer id or text the rest is left out; the plugin keeps 6,000 characters of a failure."""
MOST_PATH_CHARS = 4_096
MOST_SECONDS = 1e10
"""Tests that set the clock measure decades, and less than nothing."""


def checked(event: Any) -> dict[str, Any]:  # noqa: ANN401 any JSON value
    """Give the fields of an event that are known, each of its type and within its bounds.

    Raises:
        ValueError, KeyError, TypeError: it is no event that the plugin writes.
    """
    kind = event["event"]
    if any(isinstance(value, list | dict) for value in event.values()):
        raise TypeError("no event has parts")
    return {"event": kind, **{name: check(event[name]) for name, check in _FIELDS[kind].items()}}


def bounded_id(test: str) -> str:
    """Cut an id that is long, as pytest makes them of long parameters; a digest tells it from others that begin alike."""
    if len(test) <= MOST_ID_CHARS:
        return test
    return f"{test[:MOST_ID_CHARS]}…{blake2b(test.encode(errors='replace'), digest_size=16).hexdigest()}"


def _written(value: Any) -> str:  # noqa: ANN401 any JSON value
    """Replace what cannot be written as UTF-8 again: a test can raise any text."""
    if not isinstance(value, str):
        raise TypeError("no text")
    return value.encode(errors="replace").decode()


def _id(value: Any) -> str:  # noqa: ANN401 any JSON value
    return bounded_id(_written(value))


def _text(value: Any) -> str:  # noqa: ANN401 any JSON value
    return shortened(_written(value), MOST_TEXT_CHARS)


def _path(value: Any) -> str | None:  # noqa: ANN401 any JSON value
    path = None if value is None else _written(value)
    if path and len(path) > MOST_PATH_CHARS:
        raise ValueError("no path")
    return path


def _number(value: Any) -> int:  # noqa: ANN401 any JSON value
    if type(value) is not int or value.bit_length() > 32:  # noqa: PLR2004 as exit codes and lines have
        raise TypeError("no number")
    return value


def _line(value: Any) -> int | None:  # noqa: ANN401 any JSON value
    return None if value is None else _number(value)


def _seconds(value: Any) -> float:  # noqa: ANN401 any JSON value
    if type(value) not in {int, float} or not -MOST_SECONDS <= value <= MOST_SECONDS:
        raise TypeError("no time")
    return float(value)


def _truth(value: Any) -> bool:  # noqa: ANN401 any JSON value
    if not isinstance(value, bool):
        raise TypeError("neither true nor false")
    return value


_FIELDS: Mapping[str, Mapping[str, Check]] = {
    "collected": {"id": _id, "file": _path, "line": _line},
    "phase": {"id": _id, "when": _id, "outcome": _id, "xfail": _truth, "seconds": _seconds, "text": _text},
    "ran": {"id": _id},
    "raised": {"id": _id},
    "collect_error": {"id": _id, "text": _text},
    "skipped_file": {"id": _id},
    "looked": {},
    "meddled": {"text": _text},
    "end": {"exit": _number},
}
"""What is looked at of each kind of event, and how."""
