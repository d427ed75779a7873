"""What is told of a failing test, and when two failures are the same."""

from __future__ import annotations

import pytest

from ptc_contracts.verdicts import Outcome
from ptc_worker.failures import (
    TOLD_LINE_CHARS,
    TOLD_LINES,
    TOLD_NAMES,
    Failure,
    grouped,
    last_lines,
    normalised,
    signature_of,
)

TEXT = """\
tests/test_it.py:6: in test_a
    assert total([1, 2]) == 4
           ^^^^^^^^^^^^^
E   assert 3 == 4
E    +  where 3 = total([1, 2])"""

DEEP = """\
tests/test_it.py:{line}: in {test}
    {call}
src/app/core.py:{there}: in total
    return sum(numbers) / 0
           ~~~~~~~~~~~~~^~~
E   ZeroDivisionError: division by zero"""


def failure(text: str, name: str = "tests/test_it.py::test_a") -> Failure:
    """Make a failed test."""
    return Failure(name, "failed", text)


SAME = {
    "addresses": ("<A object at 0x7f6fbccc56d0>", "<A object at 0x55d0ab>"),
    "a shortened address": ("{<object obje...7f6fbccc5dc0>}", "{<object obje...7facd81a5dc0>}"),
    "the rest of an address": ("{<object at 0...5dc0>}", "{<object at 0...4a10>}"),
    "a UUID": ("743f0c41-02b7-4f68-abe2-6647b82b8c3c", "f8def0f3-5e5b-46ef-aa7b-e556d7259b2c"),
    "a shortened UUID": ("'a70eb5b2-9ea...-8b8fc8e68213'", "'12345678-901...-123456789012'"),
    "a Unix time with a fraction": ("assert 1795293349.428371 == 1", "assert 1795293350.5 == 1"),
    "a digest": ("got d41d8cd98f00b204e9800998ecf8427e", "got 9e107d9d372bb6826bd81d3542a419d6"),
    "a token": ("token Drmhze6EPcv0fN81BjnA3q", "token q2LmPz77xcvb0NN81Bjn0w"),
    "a time": ("at 2026-11-21 20:35:49.123", "at 2026-11-22T21:00:00Z"),
    "a datetime": (
        "datetime.datetime(2026, 11, 21, 20, 35, 49, 1)",
        "datetime.datetime(2027, 1, 2, 3, 4, 5, 678)",
    ),
    "a time of day": ("20:35:49,001 failed", "07:00:01 failed"),
    "a Unix time": ("assert 1795293349 < 1", "assert 1795300000 < 1"),
    "a duration": ("took 0.12s", "took 12.3456 seconds"),
    "milliseconds": ("took 12 ms", "took 7.5ms"),
    "a float that is no round one": ("assert 0.0013427734375 < 1", "assert 0.0021362304687 < 1"),
    "a tiny float": ("assert 1.2e-05 < 1", "assert 3.4e-06 < 1"),
    "a process": ("pid 4711 died", "pid 12 died"),
    "a thread": ("in Thread-12", "in Thread-3"),
    "a port": ("http://127.0.0.1:43121/x", "http://127.0.0.1:50007/x"),
    "a temporary path": ("'../tmp/tmpab12cd_f/x'", "'../tmp/tmp98xyz_12/x'"),
    "a temporary path elsewhere": ("open /tmp/a1/b failed", "open /tmp/c/d/e failed"),
    "a temporary name": ("no module tmpab12cd_f", "no module tmp98xyz_12"),
    "a line": ("src/app/core.py:12: in f", "src/app/core.py:99: in f"),
    "a line in a traceback": ('File "app.py", line 3, in f', 'File "app.py", line 4, in f'),
    "a set's order": ("assert {'a', 'b', 'c'} == 1", "assert {'c', 'a', 'b'} == 1"),
    "a dict's order": ("{'a': {'x': 1, 'y': 2}, 'b': 3}", "{'b': 3, 'a': {'y': 2, 'x': 1}}"),
}  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_what_differs_from_run_to_run_makes_no_other_failure(one: str, other: str) -> None:
    """Alone, in an error, and in a parameter of a test."""
    assert normalised(one) == normalised(other)
    assert failure(f"E   {one}").fingerprint == failure(f"E   {other}").fingerprint
    assert (
        failure(TEXT, f"a.py::test[{one}]").fingerprint == failure(TEXT, f"a.py::test[{other}]").fingerprint
    )


OTHER = {
    "a short number": ("assert 2 == 3", "assert 4 == 3"),
    "the sides": ("assert 2 == 3", "assert 3 == 2"),
    "an amount": ("assert 10050 == 10500", "assert 10400 == 10500"),
    "a day": ("'20240101' == x", "'20240102' == x"),
    "a round float": ("assert 2.5 == 3", "assert 2.25 == 3"),
    "a date": ("'2024-01-01' == '2024-01-02'", "'2024-01-03' == '2024-01-02'"),
    "a key": ("KeyError: 'a'", "KeyError: 'b'"),
    "a kind": ("KeyError: 'a'", "ValueError: 'a'"),
    "a list's order": ("assert [1, 2] == [2]", "assert [2, 1] == [2]"),
    "a member": ("assert {'a', 'b'} == 1", "assert {'a', 'c'} == 1"),
    "a name": ("no attribute 'total_of_2_numbers'", "no attribute 'total_of_3_numbers'"),
    "a position": ("line 1 column 1 (char 0)", "line 2 column 1 (char 5)"),
    "whole seconds": ("assert '5 seconds' == x", "assert '6 seconds' == x"),
}


@pytest.mark.parametrize(("one", "other"), OTHER.values(), ids=OTHER)
def test_what_code_decides_makes_another_failure(one: str, other: str) -> None:
    """A model that comes nearer must not be taken for one that is stuck."""
    assert normalised(one) != normalised(other)
    assert failure(f"E   {one}").fingerprint != failure(f"E   {other}").fingerprint


def test_lines_may_come_in_any_order_within_an_error() -> None:
    """As a set's surplus items do."""
    assert failure("E   Extra:\nE   1\nE   2").fingerprint == failure("E   Extra:\nE   2\nE   1").fingerprint


def test_another_test_or_another_end_is_another_failure() -> None:
    """Though the cause is the same."""
    one, other, ended = failure(TEXT), failure(TEXT, "b.py::test_b"), Failure("b.py::test_b", "error", TEXT)

    assert one.cause == other.cause
    assert len({one.fingerprint, other.fingerprint, ended.fingerprint}) == 3


def test_equal_causes_are_put_together() -> None:
    """Wherever the lines stand by now, and whichever test met with them."""
    first = failure(DEEP.format(line=3, test="test_a", call="total([1])", there=7))
    second = failure(DEEP.format(line=9, test="test_b", call="mean([2])", there=8), "test_b")
    third = failure(TEXT, "test_c")

    assert grouped([first, second, third]) == [(first, ["test_b"]), (third, [])]


def test_a_failure_is_told_with_the_names_of_its_like() -> None:
    """Up to a number of them."""
    told = failure(TEXT).told([f"test_{number}" for number in range(TOLD_NAMES + 2)]).split("\n")

    assert told[0] == "tests/test_it.py::test_a (failed)"
    assert told[1] == "also: test_0, test_1, test_2, test_3, test_4, test_5, test_6, test_7, and 2 more"
    assert told[2:] == TEXT.split("\n")


def test_of_a_long_traceback_the_end_is_told() -> None:
    """With the last frames, and all of a short error."""
    frames = [f"src/a.py:{number}: in f\n    f({number})" for number in range(100)]
    told = last_lines("\n".join([*frames, "E   first", "E   second"]))

    assert len(told) == TOLD_LINES + 1
    assert told[0] == "…"
    assert told[-4:] == ["src/a.py:99: in f", "    f(99)", "E   first", "E   second"]


def test_of_a_long_error_the_start_and_the_end_are_told() -> None:
    """The first line says what was compared; the frame above it stays, too."""
    error = [f"E   {number}" for number in range(100)]
    told = last_lines("\n".join(["tests/a.py:1: in test", "    assert a == b", *error]))

    assert told[:3] == ["tests/a.py:1: in test", "    assert a == b", "E   0"]
    assert (told[-1], len(told) <= TOLD_LINES) == ("E   99", True)
    assert "… 87 lines …" in told


@pytest.mark.parametrize("text", ["x" * 100_000, "x\n" * 100_000, "E   x\n" * 100_000, "{" * 100_000, ""])
def test_what_is_told_of_any_text_is_small(text: str) -> None:
    """Text that is no traceback, too."""
    told = failure(text).told()

    assert len(told) <= (TOLD_LINES + 3) * (TOLD_LINE_CHARS + 4)


def test_of_a_very_long_text_the_start_and_the_end_are_compared() -> None:
    """All other runs of a worker stand still while it is looked through."""
    text = normalised("first " + "1-" * 1_000_000 + " last")

    assert len(text) < 20_000
    assert (text[:6], text[-5:]) == ("first ", " last")


def test_a_signature_is_of_the_outcome_and_all_causes_in_any_order() -> None:
    """16 digits that need no store to be compared."""
    one = signature_of(Outcome.FAILED, ["a", "b"])

    assert one == signature_of(Outcome.FAILED, ["b", "a", "b"])
    assert len({one, signature_of(Outcome.CRASHED, ["a", "b"]), signature_of(Outcome.FAILED, ["a"])}) == 3
    assert (len(one), set(one) <= set("0123456789abcdef")) == (16, True)
