"""What follows a verdict, and what the next draft starts from."""

from __future__ import annotations

import pytest
from support import make_plan

from ptc_contracts import ExecutionStatus, TestResult
from ptc_contracts.progress import Attempt, Progress, StopReason
from ptc_contracts.verdicts import Outcome, Verdict
from ptc_worker.filetypes import artifact
from ptc_worker.parsing import ParsedAnswer
from ptc_worker.refinement import End, merged, next_step, spent, unreadable_verdict

RED = Verdict(
    outcome=Outcome.FAILED,
    test_results=TestResult(test_command="pytest", exit_code=1, tests_failed=1, duration_seconds=0.1),
)
GREEN = Verdict(
    outcome=Outcome.PASSED,
    test_results=TestResult(test_command="pytest", exit_code=0, tests_passed=1, duration_seconds=0.1),
)


def _progress(verdict: Verdict | None = None, *, iteration: int = 1, **files: str) -> Progress:
    best = Attempt(
        iteration=1, files=[artifact(f"{n}.py", c) for n, c in files.items()], verdict=verdict or RED
    )
    return Progress(iteration=iteration, best=best)


def _merged(earlier: list[str], given: list[str], deleted: list[str]) -> list[tuple[str, str]]:
    best = Attempt(iteration=1, files=[artifact(path, "old") for path in earlier], verdict=RED)
    answer = ParsedAnswer(files=[artifact(path, "new") for path in given], deleted=deleted)
    return [(file.file_path, file.content) for file in merged(Progress(best=best), answer)]


@pytest.mark.parametrize(
    ("earlier", "given", "deleted", "expected"),
    [
        (["a", "b"], [], [], [("a", "old"), ("b", "old")]),
        (["a", "b"], ["a"], [], [("a", "new"), ("b", "old")]),
        (["a"], ["b"], [], [("a", "old"), ("b", "new")]),
        (["a", "b"], ["c"], ["a"], [("b", "old"), ("c", "new")]),
        (["a", "b"], [], ["a"], [("b", "old")]),
        (["a"], [], ["missing"], [("a", "old")]),
        (["a"], ["a"], ["a"], [("a", "new")]),
        (["README.md"], ["Readme.md"], [], [("Readme.md", "new")]),
        (["README.md"], [], ["readme.md"], []),
        (["app"], ["app/a"], [], [("app/a", "new")]),
        (["app/a", "b"], ["app"], [], [("b", "old"), ("app", "new")]),
    ],
)
def test_an_answer_is_laid_over_the_best_draft(
    earlier: list[str], given: list[str], deleted: list[str], expected: list[tuple[str, str]]
) -> None:
    """What it gives replaces, also where a folder stood; what it deletes goes; the rest stays in its place."""
    files = _merged(earlier, given, deleted)

    assert files == expected


def test_the_first_answer_stands_for_itself() -> None:
    """There is nothing to lay it over."""
    files = [artifact("a.py", "new")]
    answer = ParsedAnswer(files=files, deleted=["b.py"])

    assert merged(Progress(), answer) == files


def test_a_merge_leaves_the_best_draft_as_it_was() -> None:
    """The best draft may yet be the result."""
    progress = _progress(a="old")
    before = progress.model_copy(deep=True)
    merged(progress, ParsedAnswer(files=[artifact("a.py", "new")]))

    assert progress == before


def test_an_unreadable_answer_is_told_why() -> None:
    """The parser's problems are handed on."""
    verdict = unreadable_verdict(ParsedAnswer(problems=["one", "two"]))

    assert verdict.outcome is Outcome.UNREADABLE
    assert verdict.feedback.splitlines()[1:] == ["- one", "- two"]


def test_an_answer_without_any_block_is_told_what_it_lacks() -> None:
    """The model is reminded of the form."""
    verdict = unreadable_verdict(ParsedAnswer())

    assert "<file path=…>" in verdict.feedback


def test_a_green_verdict_ends_the_run() -> None:
    """However many iterations are left."""
    step = next_step(make_plan(max_iterations=3), _progress(GREEN, a=""))

    assert step == End(status=ExecutionStatus.SUCCESS, reason=StopReason.GREEN)


def test_a_red_verdict_starts_the_next_iteration_from_the_best_draft() -> None:
    """Only the number moves on."""
    progress = _progress(a="")
    step = next_step(make_plan(max_iterations=3), progress)

    assert step == progress.model_copy(update={"iteration": 2})


def test_the_last_red_verdict_ends_the_run_with_what_there_is() -> None:
    """Code whose tests are red is a partial success, and the message says what it is and why."""
    step = next_step(make_plan(max_iterations=2), _progress(iteration=2, a=""))

    assert step == End(
        status=ExecutionStatus.PARTIAL_SUCCESS,
        reason=StopReason.MAX_ITERATIONS,
        message="the tests are not green (failed): max_iterations=2 are spent",
    )


def test_a_step_needs_a_verdict() -> None:
    """Asking what follows nothing is a mistake of the caller."""
    with pytest.raises(ValueError, match="nothing was examined"):
        next_step(make_plan(), Progress())


def test_a_run_without_code_fails() -> None:
    """There is nothing to hand out."""
    end = spent(Progress(), StopReason.NO_ANSWER, "no model answered")

    assert end == End(
        status=ExecutionStatus.FAILURE,
        reason=StopReason.NO_ANSWER,
        message="no usable code: no model answered",
    )


def test_a_run_whose_draft_nobody_examined_is_a_partial_success() -> None:
    """The code is there, and the message says that its tests did not run."""
    end = spent(Progress(draft=[artifact("a.py", "")]), StopReason.NOT_RUN, "the sandbox is away")

    assert end == End(
        status=ExecutionStatus.PARTIAL_SUCCESS,
        reason=StopReason.NOT_RUN,
        message="the tests were not run: the sandbox is away",
    )


def test_a_tested_draft_counts_before_a_newer_one_that_nobody_ran() -> None:
    """The message speaks of the files that are handed out."""
    progress = _progress(a="").model_copy(update={"draft": [artifact("b.py", "")]})
    end = spent(progress, StopReason.TIMEOUT, "time is up")

    assert end.message == "the tests are not green (failed): time is up"
