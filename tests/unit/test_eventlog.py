"""What is told of tests while their log is still written: cut anywhere, forged, or heard by someone who fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from event_logs import END, KEY, A, B, collected, in_turn, log_of, passing, phases

from ptc_worker.eventlog import EventLogReader
from ptc_worker.reported import MOST_ID_CHARS, MOST_TEXT_CHARS
from ptc_worker.sealed import MOST_LINE_BYTES
from ptc_worker.telling import TestsBegan, TestTold

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ptc_worker.telling import Told
    from ptc_worker.verdict import EventLog

FORGED = "the test report was written to, cut or exchanged"
UNREADABLE = "the test report cannot be read"


def read(pieces: Iterable[bytes]) -> tuple[list[Told], EventLog]:
    """Read a log that comes in these pieces; return what was told, and what it proves."""
    heard: list[Told] = []
    reader = EventLogReader(KEY, heard.append)
    for piece in pieces:
        reader.feed(piece)
    return heard, reader.log


def test_a_test_is_told_when_its_teardown_was_reported() -> None:
    """Neither earlier, for the teardown may fail, nor later; and what was found is told first, once."""
    reports = [*in_turn(A), *in_turn(B)]
    heard: list[Told] = []
    reader = EventLogReader(KEY, heard.append)
    told_after = []
    for line in log_of([collected(A), collected(B), *reports, END]):
        reader.feed(line)
        told_after.append(len(heard))

    assert told_after == [0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    assert heard == [TestsBegan("pytest", 2), TestTold(A, "passed", 0.3), TestTold(B, "passed", 0.3)]


@pytest.mark.parametrize("size", [1, 7, 250, 2**20])
def test_a_log_may_come_in_pieces_of_any_size(size: int) -> None:
    """Whatever is read at a time, the same is told and proved."""
    whole = b"".join(log_of(passing(A, B)))
    heard, log = read(whole[start : start + size] for start in range(0, len(whole), size))

    assert [type(told) for told in heard] == [TestsBegan, TestTold, TestTold]
    assert (log.exit_code, log.meddling, log.ran) == (0, [], {A, B})


@pytest.mark.parametrize(
    ("events", "outcome"),
    [
        (in_turn(A), "passed"),
        (phases(A, "failed"), "failed"),
        ([*phases(A)[:2], phases(A)[2] | {"outcome": "failed"}], "error"),
        ([phases(A)[0] | {"outcome": "failed"}, phases(A)[2]], "error"),
        ([phases(A)[0] | {"outcome": "skipped"}, phases(A)[2]], "skipped"),
        (phases(A, "skipped", xfail=True), "xfailed"),
        ([{"event": "ran", "id": A}, *phases(A, xfail=True)], "xpassed"),
        (phases(A), "hidden"),
        ([{"event": "raised", "id": A, "when": "call"}, *in_turn(A)], "hidden"),
    ],
)
def test_what_is_told_is_what_the_verdict_says(events: list[dict[str, Any]], outcome: str) -> None:
    """One rule for both."""
    heard, log = read(log_of([collected(A), *events]))

    assert [told.outcome for told in heard if isinstance(told, TestTold)] == [outcome]
    assert log.outcome_of(A) == outcome


def test_a_file_that_cannot_be_collected_is_told_as_an_error() -> None:
    """By its name; after that no test runs."""
    error = {"event": "collect_error", "id": "tests/test_b.py", "text": "E   ImportError"}
    heard, _ = read(log_of([collected(A), error, {"event": "end", "exit": 2, "seconds": 0.1}]))

    assert heard == [TestsBegan("pytest", 1), TestTold("tests/test_b.py", "error", 0.0)]


def test_a_run_that_finds_nothing_is_told_to_have_begun() -> None:
    """Whoever shows it knows that it is over."""
    heard, _ = read(log_of([{"event": "end", "exit": 5, "seconds": 0.1}]))

    assert heard == [TestsBegan("pytest", 0)]


def test_nothing_is_told_from_the_first_line_on_that_does_not_hold() -> None:
    """Not even of lines behind it that hold."""
    lines = log_of(passing(A, B))
    forged = lines[5].replace(b'"teardown"', b'"teardOwn"')
    heard, log = read([*lines[:5], forged, *lines[6:]])

    assert heard == [TestsBegan("pytest", 2)]
    assert log.meddling == [FORGED]


def test_a_test_is_told_once() -> None:
    """However often it is reported."""
    heard, _ = read(log_of([collected(A), *in_turn(A), *phases(A, "failed")]))

    assert heard == [TestsBegan("pytest", 1), TestTold(A, "passed", 0.3)]


STRANGE: dict[str, Any] = {
    "no object": [1],
    "of an unknown kind": {"event": "x", "id": A},
    "with lists beside what is known": {"event": "ran", "id": A, "a": [[], []]},
    "of no kind": {"event": []},
    "no id": {"event": "ran", "id": None},
    "a list for an id": {"event": "collect_error", "id": [1], "text": ""},
    "a field that is missing": {"event": "phase", "id": A, "when": "teardown"},
    "a text that is none": phases(A, text=5)[1],
    "an outcome that is none": phases(A, outcome=[1])[1],
    "a truth that is none": phases(A, xfail="no")[1],
    "a time that no float holds": phases(A, seconds=10**4000)[1],
    "a time that adds up to infinity": phases(A, seconds=1e308)[1],
    "a time that is no number": phases(A, seconds=float("nan"))[1],
    "an end that is no number": {"event": "end", "exit": []},
    "an end that is too large": {"event": "end", "exit": 2**40},
    "a line that is true": collected(B) | {"line": True},
    "a path that is none": collected(B) | {"file": 5},
    "a path that is too long": collected(B) | {"file": "x" * 5_000},
}


@pytest.mark.parametrize("event", STRANGE.values(), ids=STRANGE)
def test_an_event_that_nobody_writes_ends_the_reading(event: Any) -> None:
    """It is a sign that code of the project wrote it, and nothing that a worker could fail of."""
    _, log = read([b"".join(log_of([collected(A), event, *in_turn(A), END]))])

    assert (log.meddling, log.exit_code, log.phases) == ([UNREADABLE], None, {A: []})


def test_long_ids_are_cut_and_stay_different() -> None:
    """As those of tests with long parameters; each event of a test has the same."""
    one, other = (f"{A}[{'x' * 10 * MOST_ID_CHARS}{number}]" for number in range(2))
    heard, log = read(log_of(passing(one, other)))

    assert [type(told) for told in heard] == [TestsBegan, TestTold, TestTold]
    assert (len(log.places), log.ran, log.meddling, log.exit_code) == (2, set(log.places), [], 0)
    assert all(test.startswith(f"{A}[xxx") and len(test) <= MOST_ID_CHARS + 40 for test in log.places)


def test_long_texts_are_cut() -> None:
    """The plugin cuts them, too; a forged line may hold more."""
    text = "a" * 10 * MOST_TEXT_CHARS
    error = {"event": "collect_error", "id": "tests/test_b.py", "text": text}
    meddled = {"event": "meddled", "text": text}
    _, log = read(log_of([collected(A), *phases(A, "failed", text=text), error, meddled, END]))
    texts = [log.phases[A][1]["text"], log.collect_errors[0]["text"], *log.meddling]

    assert all(MOST_TEXT_CHARS < len(text) < MOST_TEXT_CHARS + 100 for text in texts)


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("size", [2**12, 2**22])
def test_a_line_of_megabytes_is_not_looked_at(size: int, end: bytes) -> None:
    """Nor waited for: it is said at once how such a line can come about."""
    (line,) = log_of([{"event": "ran", "id": "x" * MOST_LINE_BYTES}])
    whole = line.rstrip(b"\n") + end
    heard, log = read(whole[start : start + size] for start in range(0, len(whole), size))

    assert (heard, log.ran) == ([], set())
    assert "parameters that long need ids of their own" in log.meddling[0]


def test_a_line_of_almost_a_megabyte_is_read() -> None:
    """A test may well have a parameter of a million characters, and pytest makes an id of it."""
    _, log = read([b"".join(log_of(passing(f"{A}[{'x' * 1_000_000}]")))])

    assert (len(log.ran), log.meddling, log.exit_code) == (1, [], 0)


def test_a_listener_that_fails_loses_nothing_but_itself() -> None:
    """The log is read to its end."""
    asked = []

    def fail(told: Told) -> None:
        asked.append(told)
        raise RuntimeError("no room for more")

    reader = EventLogReader(KEY, fail)
    reader.feed(b"".join(log_of(passing(A, B))))

    assert (len(asked), reader.log.exit_code, reader.log.meddling) == (1, 0, [])
