"""What a worker reads of the log of a Node process: sealed lines, events that say what they must, names of any length."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest

from ptc_worker.node.eventlog import NodeLogReader
from ptc_worker.node.events import Account
from ptc_worker.sandbox.protocol import ExecResult
from ptc_worker.telling import Teller, TestTold, Told

KEY = b"k" * 32
ENDED = ExecResult(exit_code=0, stdout=b"", stderr=b"", duration_seconds=0.1)
TEST = {"event": "test", "id": 1, "name": "a", "digest": "d", "skip": False, "todo": False}
RAN = {"event": "ran", "id": 1, "seconds": 0.1}
END = {"event": "end", "code": 0, "natural": True}


def sealed(events: list[Any]) -> bytes:
    """Write a log as the probe does."""
    chain, lines = b"0" * 64, []
    for event in events:
        text = json.dumps(event).encode()
        digest = hashlib.sha256(text).hexdigest().encode()
        chain = hmac.new(KEY, chain + digest, "sha256").hexdigest().encode()
        lines.append(chain + b" " + text + b"\n")
    return b"".join(lines)


def read(log: bytes) -> tuple[NodeLogReader, list[Told]]:
    """Read a log, and hear what is told meanwhile."""
    told: list[Told] = []
    reader = NodeLogReader("a.test.js", KEY, Teller(told.append, "node"))
    reader.feed(log)
    return reader, told


def judged(events: list[Any]) -> Account:
    """Take the account of one file's run."""
    account = Account("/project")
    account.take("a.test.js", ENDED, read(sealed(events))[0].log, [])
    return account


def test_a_log_that_holds_is_read_to_its_end() -> None:
    """Each test is told, and nothing is suspicious."""
    reader, told = read(sealed([TEST, RAN, END]))

    assert [(each.test, each.outcome) for each in told if isinstance(each, TestTold)] == [
        ("a.test.js::a", "passed")
    ]
    assert reader.log.natural
    assert not reader.log.meddling


def test_a_line_that_is_left_out_is_missed() -> None:
    """A line holds only after all those that were written before it."""
    lines = sealed([TEST, {"event": "raised", "id": 1, "seconds": 0.1, "text": "x"}, RAN, END]).splitlines(
        keepends=True
    )
    reader, _ = read(b"".join([lines[0], *lines[2:]]))

    assert reader.log.meddling == ["the test report was written to, cut or exchanged"]


@pytest.mark.parametrize(
    "odd",
    [
        None,
        [],
        "end",
        {},
        {"event": None},
        {"event": ["end"]},
        {"event": "sealed"},
        {"event": "end", "natural": True},
        {"event": "end", "code": [1], "natural": True},
        {"event": "end", "code": True, "natural": True},
        {"event": "end", "code": 2**70, "natural": True},
        {"event": "ran", "id": None, "seconds": 0.1},
        {"event": "ran", "id": [1], "seconds": 0.1},
        {"event": "ran", "id": 2, "seconds": 0.1},
        {"event": "ran", "id": 1},
        {"event": "ran", "id": 1, "seconds": 1e308},
        {"event": "ran", "id": 1, "seconds": float("nan")},
        {"event": "ran", "id": 1, "seconds": -1},
        {"event": "raised", "id": 1, "seconds": 0.1, "text": {}},
        {"event": "error", "name": 1, "text": "x"},
        TEST,
        TEST | {"id": 2, "name": None},
        TEST | {"id": 2, "digest": 1},
        TEST | {"id": 2, "skip": "yes"},
    ],
)
def test_an_odd_event_is_no_exception(odd: object) -> None:
    """Who has the key may write anything: it ends in a verdict, not in an error of the worker."""
    reader, _ = read(sealed([TEST, odd, END]))

    assert reader.log.meddling == ["the test report cannot be read"]


def test_what_the_runner_refuses_has_failed() -> None:
    """A test whose function ran to its end, and which Node takes for failed, is not green."""
    account = judged([TEST, RAN, {"event": "refused", "id": 1, "text": "the plan was not met"}, END])

    assert account.log.outcome_of("a.test.js::a") == "failed"


def test_a_code_that_was_taken_back_counts() -> None:
    """The code that Node told of its end holds, though the process ended with another."""
    account = judged([TEST, RAN, END | {"code": 1}])

    assert account.whole_run().exit_code == 1


def test_tests_of_one_name_are_told_apart() -> None:
    """Each has a number that no other test has as its name; thousands of them take no time."""
    names = ["a (2)", *["a"] * 20_000, "b"]
    account = judged([*(TEST | {"id": at, "name": name} for at, name in enumerate(names, 1)), END])
    told = list(account.log.phases)

    assert told[:4] == ["a.test.js::a (2)", "a.test.js::a", "a.test.js::a (3)", "a.test.js::a (4)"]
    assert len(told) == len(names)


def test_a_long_name_is_cut_and_stays_its_own() -> None:
    """Names that differ only at their ends are two tests; neither takes megabytes of a result."""
    long = ["x" * 100_000 + end for end in "ab"]
    account = judged([*(TEST | {"id": at, "name": name} for at, name in enumerate(long, 1)), END])
    told = list(account.log.phases)

    assert len(told) == 2
    assert max(map(len, told)) < 1_200


def test_lines_of_the_runner_are_left_out_of_a_long_text() -> None:
    """Thousands of empty lines between them change nothing, and take no time."""
    text = "Error: x\n" + "\n" * 50_000 + "    at it (/project/a.js:1:2)\n    at node:internal/x:1:2\n"
    account = judged([TEST, {"event": "raised", "id": 1, "seconds": 0.1, "text": text}, END])
    shown = account.log.phases["a.test.js::a"][0]["text"]

    assert shown.startswith("Error: x")
    assert shown.endswith("at it (a.js:1:2)")
