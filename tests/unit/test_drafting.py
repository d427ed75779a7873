"""The answers of one iteration: what is asked next, and the one answer that they make."""

from __future__ import annotations

import pytest
from support import answer_with

from ptc_contracts.bill import Request
from ptc_worker.drafting import Reading, joined, next_request, read
from ptc_worker.parsing import parse_answer

WHOLE = answer_with(a_py="x = 1")
CUT = f'{WHOLE}\n<file path="b.py">\ny = '
PROSE = "I would rather talk about it."


def _asked(*answers: tuple[str, bool]) -> list[Request]:
    """Answer one request after the other, and list what was asked; the last request has no answer any more."""
    readings: list[Reading] = []
    asked = []
    for text, truncated in answers:
        request = next_request(readings)
        assert request is not None
        asked.append(request)
        readings.append(read(readings, request, text, parse_answer(text), truncated=truncated))
    last = next_request(readings)
    return [*asked, last] if last else asked


DRAFT, MORE, REPAIR = Request.DRAFT, Request.CONTINUATION, Request.FORMAT_REPAIR


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ([], [DRAFT]),
        ([(WHOLE, False)], [DRAFT]),
        ([('<delete path="a.py"/>', False)], [DRAFT]),
        ([(WHOLE, True)], [DRAFT, MORE]),
        ([(CUT, True)], [DRAFT, MORE]),
        ([(CUT, False)], [DRAFT, MORE]),
        ([(CUT, True), (WHOLE, False)], [DRAFT, MORE]),
        ([(CUT, True), (CUT, True)], [DRAFT, MORE, MORE]),
        ([(CUT, True), (CUT, True), (CUT, True)], [DRAFT, MORE, MORE]),
        ([(CUT, True), (PROSE, False)], [DRAFT, MORE]),
        ([(PROSE, False)], [DRAFT, REPAIR]),
        ([(PROSE, False), (WHOLE, False)], [DRAFT, REPAIR]),
        ([(PROSE, False), (PROSE, False)], [DRAFT, REPAIR]),
        ([(PROSE, False), (CUT, True)], [DRAFT, REPAIR, MORE]),
        ([(PROSE, True)], [DRAFT, MORE]),
        ([(PROSE, True), (PROSE, False)], [DRAFT, MORE, REPAIR]),
        ([(PROSE, True), (PROSE, True), (PROSE, True)], [DRAFT, MORE, MORE, REPAIR]),
        ([(PROSE, True), (PROSE, True), (PROSE, True), (PROSE, True)], [DRAFT, MORE, MORE, REPAIR]),
    ],
)
def test_a_cut_answer_is_continued_twice_and_an_unreadable_one_repaired_once(
    answers: list[tuple[str, bool]], asked: list[Request]
) -> None:
    """A file that is still open at the end counts as cut, whatever the provider says."""
    assert _asked(*answers) == asked


def test_the_answers_of_an_iteration_make_one() -> None:
    """A file that is given again counts as it was given last; what was deleted, disputed or wrong adds up."""
    texts = [CUT, answer_with(b_py="y = 2", A_py="x = 3") + '\n<delete path="c.py"/>']
    readings: list[Reading] = []
    for text in texts:
        readings.append(read(readings, DRAFT, text, parse_answer(text), truncated=False))
    answer = joined(readings)

    assert [(file.file_path, file.content) for file in answer.files] == [
        ("A.py", "x = 3\n"),
        ("b.py", "y = 2\n"),
    ]
    assert (answer.deleted, answer.complete) == (["c.py"], True)
    assert answer.problems == ["'b.py' was not taken: the answer ends in the middle of it"]


def test_a_file_of_one_answer_gives_way_to_a_folder_of_another() -> None:
    """Both together could not be written."""
    texts = ['<file path="data">\nx\n</file>', '<file path="data/a.csv">\n1\n</file>']
    readings = [read([], DRAFT, text, parse_answer(text), truncated=False) for text in texts]

    assert [file.file_path for file in joined(readings).files] == ["data/a.csv"]


def test_an_answer_that_stays_cut_is_not_complete() -> None:
    """Its reader is told."""
    readings = [read([], DRAFT, WHOLE, parse_answer(WHOLE), truncated=True)]

    assert not joined(readings).complete
