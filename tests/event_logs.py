"""Event logs as the pytest plugin in a sandbox writes them, made by hand."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

KEY = b"k" * 32
ROOT = "/work"
HERE = f"{ROOT}/project/tests/test_a.py"


def log_of(events: list[dict[str, Any]], key: bytes = KEY) -> list[bytes]:
    """Write events as the plugin does, each line with the MAC over all lines so far."""
    chain, lines = blake2b(key=key, digest_size=16), []
    for event in events:
        text = json.dumps(event).encode()
        chain.update(text)
        lines.append(chain.hexdigest().encode() + b" " + text + b"\n")
    return lines


def collected(test: str, line: int | None = 1) -> dict[str, Any]:
    """Tell that a test was found."""
    return {"event": "collected", "id": test, "file": HERE if line else None, "line": line}


def phases(test: str, call: str = "passed", **more: Any) -> list[dict[str, Any]]:
    """Tell how the three phases of a test were reported."""
    outcomes = {"setup": "passed", "call": call, "teardown": "passed"}
    return [
        {
            "event": "phase",
            "id": test,
            "when": when,
            "outcome": outcome,
            "xfail": False,
            "seconds": 0.1,
            "text": "",
        }
        | more
        for when, outcome in outcomes.items()
    ]


def in_turn(test: str) -> list[dict[str, Any]]:
    """Tell of one test that passes: its function comes to its end before the call is reported."""
    setup, call, teardown = phases(test)
    return [setup, {"event": "ran", "id": test}, call, teardown]


def passing(*tests: str) -> list[dict[str, Any]]:
    """Tell of tests that all pass, and of the end."""
    found = [collected(test) for test in tests]
    runs = [event for test in tests for event in in_turn(test)]
    return [*found, *runs, END]


END = {"event": "end", "exit": 0, "seconds": 0.5}
A, B = "tests/test_a.py::test_a", "tests/test_a.py::test_b"
