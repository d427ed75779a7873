"""What an event log proves: logs that are whole, cut, forged or contradicted, without running anything."""

from __future__ import annotations

from typing import Any

import pytest
from event_logs import END, KEY, ROOT, A, B, collected, in_turn, log_of, passing, phases

from ptc_contracts.verdicts import Outcome
from ptc_worker.eventlog import EventLogReader
from ptc_worker.expected import Expected
from ptc_worker.sandbox.protocol import ExecResult
from ptc_worker.verdict import (
    COMPARED_CHARS,
    COMPARED_FAILURES,
    COMPARED_TEXTS,
    FEEDBACK_CHARS,
    FEEDBACK_TESTS,
    KEPT_ID_CHARS,
    KEPT_STREAM_CHARS,
    KEPT_TESTS,
    EventLog,
    judge,
)


def verdict(raw: list[bytes] | bytes, expected: Expected | None = None, **ran: Any) -> Any:
    """Judge a run that left this log."""
    fields = {"exit_code": 0, "stdout": b"", "stderr": b"", "duration_seconds": 1.0, **ran}
    raw = raw if isinstance(raw, bytes) else b"".join(raw)
    reader = EventLogReader(KEY)
    reader.feed(raw)
    return judge(ExecResult(**fields), reader.log, "python -m pytest", expected, ROOT)


def test_a_whole_log_of_passed_tests_is_green() -> None:
    """The one case that is."""
    judged = verdict(log_of(passing(A, B)))

    assert (judged.outcome, judged.counts, judged.feedback) == (Outcome.PASSED, {"passed": 2}, "")


@pytest.mark.parametrize("left", range(9))
def test_a_log_that_stops_early_is_a_crash(left: int) -> None:
    """Wherever it stops, and whatever the exit code claims."""
    assert verdict(log_of(passing(A, B))[:left]).outcome is Outcome.CRASHED


def test_a_last_line_that_is_cut_is_a_crash_and_no_forgery() -> None:
    """A process that is killed while it writes."""
    assert verdict(b"".join(log_of(passing(A)))[:-5]).outcome is Outcome.CRASHED


@pytest.mark.parametrize("line", range(9))
def test_a_line_that_is_missing_shows(line: int) -> None:
    """Its successors no longer hold; without the last there is no end."""
    lines = log_of(passing(A, B))
    judged = verdict([*lines[:line], *lines[line + 1 :]])

    assert judged.outcome is (Outcome.CRASHED if line == len(lines) - 1 else Outcome.TAMPERED)


@pytest.mark.parametrize("line", range(9))
def test_a_line_that_is_changed_shows(line: int) -> None:
    """By a single letter."""
    lines = log_of(passing(A, B))
    lines[line] = lines[line].replace(b'"event"', b'"Event"')

    assert verdict(lines).outcome is Outcome.TAMPERED


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [*lines[:3], lines[2], *lines[3:]],
        lambda lines: [*lines, *log_of([END], b"x" * 32)],
        lambda lines: [*lines, b"2 passed in 0.1s\n"],
        lambda lines: [b"\xff\xfe\n", *lines],
        lambda _: log_of(passing(A, B), b"x" * 32),
        lambda _: log_of([*passing(A), *passing(A)]),
        lambda _: log_of([*passing(A), {"event": "meddled", "text": "x"}]),
        lambda _: log_of([collected(A), collected(A), *passing(A)[1:]]),
        lambda _: log_of(passing(A)[1:]),
        lambda _: log_of([{"event": "phase"}]),
        lambda _: log_of([{}]),
    ],
    ids=[
        *("exchanged", "repeated", "another key's end", "output", "bytes", "another key", "two runs"),
        *("after the end", "one test twice", "never collected", "no fields", "no event"),
    ],
)
def test_a_log_that_was_written_to_is_tampered(change: Any) -> None:
    """Lines that are exchanged, repeated, added, foreign or nonsense."""
    judged = verdict(change(log_of(passing(A, B))))

    assert (judged.outcome, "Suspicious:" in judged.feedback) == (Outcome.TAMPERED, True)


@pytest.mark.parametrize(
    ("events", "ran", "outcome", "told"),
    [
        ([], {"exit_code": 4}, Outcome.USAGE_ERROR, "refused its configuration"),
        ([], {"exit_code": 0}, Outcome.CRASHED, "ended before"),
        ([], {"exit_code": -11}, Outcome.CRASHED, "ended before"),
        (passing(A), {"exit_code": -11}, Outcome.CRASHED, "ended before"),
        (passing(A), {"timed_out": True, "exit_code": -9}, Outcome.TIMEOUT, "in time"),
        (passing(A), {"out_of_memory": True, "exit_code": -9}, Outcome.OUT_OF_MEMORY, "too much memory"),
        (passing(A), {"output_limited": True, "exit_code": -9}, Outcome.OUTPUT_LIMIT, "too much output"),
        (passing(A), {"exit_code": 1}, Outcome.FAILED, "Some tests fail"),
        ([END | {"exit": 5}], {"exit_code": 5}, Outcome.NO_TESTS, "No test passed"),
        ([END], {}, Outcome.NO_TESTS, "No test passed"),
        ([*passing(A)[:-1], END | {"exit": 1}], {}, Outcome.TAMPERED, "ended with 1, but its process with 0"),
        ([*passing(A)[:-1], END | {"exit": 3}], {"exit_code": 3}, Outcome.CRASHED, "ended before"),
        ([collected(A), *phases(A), END], {}, Outcome.TAMPERED, f"{A} was reported as passed, and its function"),
        (
            [{"event": "raised", "id": A, "when": "call"}, *passing(A)],
            {},
            Outcome.TAMPERED,
            f"{A} raised, and was not reported as failed",
        ),
        ([collected(B), *passing(A)], {}, Outcome.TAMPERED, f"{B} was collected and then left out"),
        ([collected(B), *passing(A)[:-1]], {}, Outcome.CRASHED, f"Not finished: {B}"),
        ([{"event": "meddled", "text": "x was replaced"}, *passing(A)], {}, Outcome.TAMPERED, "- x was replaced."),
        (
            [{"event": "collect_error", "id": "tests/test_b.py", "text": "no module"}, *passing(A)],
            {},
            Outcome.COLLECTION_ERROR,
            "tests/test_b.py\nno module",
        ),
        ([*passing(A)[:-1], collected(B), *phases(B, "failed"), END | {"exit": 1}], {"exit_code": 1}, Outcome.FAILED, B),
        ([*passing(A)[:-1], collected(B), *phases(B, "skipped"), END], {}, Outcome.FAILED, f"(skipif): {B}"),
        ([collected(A), *phases(A, "skipped"), END], {}, Outcome.NO_TESTS, f"(skipif): {A}"),
        ([collected(A, None), *phases(A), END], {}, Outcome.PASSED, ""),
    ],
)  # fmt: skip
def test_each_end_has_its_class_and_its_words(
    events: list[dict[str, Any]], ran: dict[str, Any], outcome: Outcome, told: str
) -> None:
    """Whatever is not green never shows exit code 0."""
    judged = verdict(log_of(events), **ran)

    assert judged.outcome is outcome
    assert told in judged.feedback
    assert (judged.test_results.exit_code == 0) is (outcome is Outcome.PASSED)


@pytest.mark.parametrize(
    ("expected", "outcome"),
    [
        (Expected(tests={A: 1, B: None}), Outcome.PASSED),
        (Expected(tests={"tests/test_c.py::test_c": 1}), Outcome.TAMPERED),
        (Expected(tests={A: 2}), Outcome.TAMPERED),
        (Expected(doubts=["x.py:1: objects of the class X are equal to everything"]), Outcome.TAMPERED),
    ],
)
def test_what_the_files_promise_must_show(expected: Expected, outcome: Outcome) -> None:
    """Tests that stand in them, with the functions that stand in them."""
    assert verdict(log_of(passing(A, B)), expected).outcome is outcome


def test_a_test_with_a_long_parameter_is_the_one_that_its_file_promises() -> None:
    """What an id has before its parameters is not cut."""
    long = f"{A}[{'x' * 100_000}]"

    assert verdict(log_of(passing(long)), Expected(tests={A: 1})).outcome is Outcome.PASSED
    assert verdict(log_of(passing(long)), Expected(tests={B: 1})).outcome is Outcome.TAMPERED


def test_a_test_whose_name_is_too_long_is_not_taken_for_another() -> None:
    """Two names that begin alike are two tests, of which both must be there."""
    one, other = (f"tests/test_a.py::test_{'x' * 2_000}_{number}" for number in range(2))

    assert verdict(log_of(passing(one)), Expected(tests={other: 1})).outcome is Outcome.TAMPERED


def test_a_file_may_leave_itself_out_on_a_condition() -> None:
    """If it says so, and was reported as skipped."""
    expected = Expected(tests={"tests/test_b.py::test_b": 1}, conditional={"tests/test_b.py"})
    skipped = {"event": "skipped_file", "id": "tests/test_b.py"}

    assert verdict(log_of([skipped, *passing(A)]), expected).outcome is Outcome.PASSED
    assert verdict(log_of(passing(A)), expected).outcome is Outcome.TAMPERED


def test_what_a_result_keeps_is_bounded() -> None:
    """Streams, and what is told test by test: those that are not green come first."""
    tests = [f"tests/test_a.py::test_{number}[{'x' * 1000}]" for number in range(KEPT_TESTS + 10)]
    last = "tests/test_a.py::test_last"
    events = [*passing(*tests)[:-1], collected(last), *phases(last, "failed"), END | {"exit": 1}]
    judged = verdict(log_of(events), exit_code=1, stdout=b"x" * 10 * KEPT_STREAM_CHARS)

    assert len(judged.tests) == KEPT_TESTS
    assert judged.tests[0] == {"id": last, "outcome": "failed", "seconds": 0.3}
    assert max(len(test["id"]) for test in judged.tests) < KEPT_ID_CHARS + 80
    assert judged.counts == {"passed": len(tests), "failed": 1}
    assert len(judged.test_results.stdout) < KEPT_STREAM_CHARS + 80
    assert f"180000 characters left out, {KEPT_STREAM_CHARS} are kept" in judged.test_results.stdout


def failing(texts: dict[str, str]) -> list[bytes]:
    """Write the log of tests that fail with these texts."""
    found = [collected(test) for test in texts]
    runs = [
        event | {"text": text if event["when"] == "call" else ""}
        for test, text in texts.items()
        for event in phases(test, "failed")
    ]
    return log_of([*found, *runs, END | {"exit": 1}])


def test_a_model_is_told_equal_failures_once() -> None:
    """And which tests they are of."""
    error = "tests/test_a.py:3: in f\n    x\nE   KeyError: 'x'"
    judged = verdict(failing({A: error, "tests/test_a.py::test_c": "E   TypeError", B: error}), exit_code=1)

    assert judged.feedback.count("KeyError") == 1
    assert f"{A} (failed)\nalso: {B}\n" in judged.feedback
    assert "E   TypeError" in judged.feedback


def test_a_model_is_told_of_a_few_failures_in_few_words() -> None:
    """A small one next to large ones is told whole."""
    large = {
        f"tests/test_a.py::test_{n}": "\n".join(f"E   {n} {line} {'x' * 200}" for line in range(90))
        for n in range(20)
    }
    judged = verdict(failing({A: "E   small", **large}), exit_code=1)

    assert len(judged.feedback) <= FEEDBACK_CHARS
    assert judged.feedback.count("(failed)") == FEEDBACK_TESTS
    assert "E   small" in judged.feedback
    assert judged.feedback.endswith("… and 13 more.")


def test_very_many_failures_are_told_apart_by_their_names() -> None:
    """All of them count, and the work for them stays small."""
    many = [f"tests/test_a.py::test_{number}" for number in range(3 * COMPARED_FAILURES)]
    one = verdict(failing(dict.fromkeys(many, "E   KeyError: 1")), exit_code=1)
    fewer = verdict(failing(dict.fromkeys(many[:-1], "E   KeyError: 1")), exit_code=1)

    assert one.signature != fewer.signature
    assert one.feedback.endswith(f"… and {2 * COMPARED_FAILURES} more.")


def test_of_a_test_that_is_reported_very_often_the_first_texts_count() -> None:
    """A test can have itself reported thousands of times."""
    reports = [phases(A, "failed", text=f"E   error {number}")[1] for number in range(2 * COMPARED_TEXTS)]
    few, many = (
        verdict(log_of([collected(A), *told, END | {"exit": 1}]), exit_code=1)
        for told in (reports[:COMPARED_TEXTS], reports)
    )

    assert (few.outcome, few.signature, few.feedback) == (Outcome.FAILED, many.signature, many.feedback)


def test_of_a_very_long_text_the_start_and_the_end_count() -> None:
    """Whoever has read the log, and whatever it let pass."""
    half = "E   x\n" * COMPARED_CHARS
    ran = ExecResult(exit_code=1, stdout=b"", stderr=b"", duration_seconds=1.0)
    one, other = (
        judge(
            ran,
            EventLog(collect_errors=[{"id": "a.test.mjs", "text": f"{half}E   {word}\n{half}"}]),
            "node --test",
        )
        for word in ("one", "two")
    )

    assert one.outcome is Outcome.COLLECTION_ERROR
    assert one.signature == other.signature


def test_very_many_suspicions_are_told_apart() -> None:
    """All of them count, and the work for them stays small."""
    many = [collected(f"tests/test_a.py::test_{number}") for number in range(3 * COMPARED_FAILURES)]
    one, fewer = (verdict(log_of([*found, *passing(A)])) for found in (many, many[:-1]))

    assert one.outcome is Outcome.TAMPERED
    assert one.signature != fewer.signature


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/work/project/src/a.py:1: in f", "src/a.py:1: in f"),
        ("cwd is /work/project", "cwd is ."),
        ("'/work/project'", "'.'"),
        ("'/work/tmp/x' is missing", "'../tmp/x' is missing"),
        ("in /work", "in .."),
        ("/work/projects/a.py", "../projects/a.py"),
        ("/homework/project/a.py", "/homework/project/a.py"),
        ("/home/work/project/a.py", "/home/work/project/a.py"),
        ("/worker/a.py", "/worker/a.py"),
    ],
)
def test_paths_are_told_as_seen_from_the_project(path: str, told: str) -> None:
    """What the sandbox is called is nothing that a model could mend."""
    assert f"E   {told}\n" in verdict(failing({A: f"E   {path}\n."}), exit_code=1).feedback


SIGNED: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "green": (passing(A), {}),
    "failed": ([collected(A), *phases(A, "failed"), END | {"exit": 1}], {"exit_code": 1}),
    "failed otherwise": ([collected(A), *phases(A, "failed", text="E   1"), END | {"exit": 1}], {"exit_code": 1}),
    "another failed": ([collected(B), *phases(B, "failed"), END | {"exit": 1}], {"exit_code": 1}),
    "not collected": ([{"event": "collect_error", "id": "tests/test_b.py", "text": "E   no module"}], {"exit_code": 2}),
    "timeout": ([collected(A), collected(B), *in_turn(A)], {"exit_code": -9, "timed_out": True}),
    "timeout in another": ([collected(A), collected(B)], {"exit_code": -9, "timed_out": True}),
    "crash": ([collected(A), collected(B), *in_turn(A)], {"exit_code": -11}),
    "crash of another kind": ([collected(A), collected(B), *in_turn(A)], {"exit_code": 7}),
    "crash without a word": ([], {"exit_code": 1}),
    "crash with words": ([], {"exit_code": 1, "stderr": b"Fatal: no x"}),
    "usage": ([], {"exit_code": 4, "stderr": b"ERROR: unknown option"}),
    "memory": (passing(A), {"exit_code": -9, "out_of_memory": True}),
    "output": (passing(A), {"exit_code": -9, "output_limited": True}),
    "tampered": ([{"event": "meddled", "text": "x was replaced"}, *passing(A)], {}),
    "tampered otherwise": ([{"event": "meddled", "text": "y was replaced"}, *passing(A)], {}),
    "skipped": ([*passing(A)[:-1], collected(B), *phases(B, "skipped"), END], {}),
    "none": ([END], {}),
}  # fmt: skip


def test_each_way_to_be_red_has_a_signature_of_its_own() -> None:
    """Green alone has none."""
    signatures = {name: verdict(log_of(events), **ran).signature for name, (events, ran) in SIGNED.items()}

    assert signatures.pop("green") == ""
    assert {len(signature) for signature in signatures.values()} == {16}
    assert len(set(signatures.values())) == len(signatures)


def test_equal_failures_have_equal_signatures() -> None:
    """Whatever the order, the time they took, where the sandbox stood and what its addresses were."""
    one = failing({A: "E   <A at 0x7f12>", B: f"E   no {ROOT}/tmp/tmpab12cd34"})
    other = failing({B: f"E   no {ROOT}/tmp/tmpzz99yy88", A: "E   <A at 0x55ab>"})

    assert verdict(one, exit_code=1).signature == verdict(other, exit_code=1, duration_seconds=9.0).signature


def test_equal_last_words_have_equal_signatures() -> None:
    """Of a run that ends before any test does."""
    said = 'Traceback\n  File "{root}/a.py", line {line}, in f\nOSError: <A at {address}> after {time} s'
    one = said.format(root="/work/project", line=3, address="0x7f12", time=0.1)
    other = said.format(root="/work/project", line=4, address="0x55ab", time=12.75)

    assert (
        verdict([], exit_code=3, stderr=one.encode()).signature
        == verdict([], exit_code=3, stderr=other.encode()).signature
    )


def test_a_draft_that_cannot_be_believed_is_no_better_than_one_that_fails() -> None:
    """Whatever number of tests it claims to pass."""
    tampered = verdict(log_of([{"event": "meddled", "text": "x"}, *passing(A, B)]))
    failing = verdict(log_of([collected(A), *phases(A, "failed"), END | {"exit": 1}]), exit_code=1)

    assert tampered.score < failing.score
