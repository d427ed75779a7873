"""What follows a verdict, and what the next draft starts from."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from support import make_plan

from ptc_contracts import ExecutionStatus, TestResult
from ptc_contracts.progress import Attempt, IterationNote, Progress, StopReason, TestRepair, conclude
from ptc_contracts.verdicts import Outcome, Verdict
from ptc_worker.filetypes import artifact
from ptc_worker.parsing import ParsedAnswer
from ptc_worker.refinement import (
    End,
    Merge,
    drafted,
    merged,
    next_step,
    spent,
    with_rejections,
    with_tests_frozen,
)

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
    return [(file.file_path, file.content) for file in merged(make_plan(), Progress(best=best), answer).files]


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

    assert merged(make_plan(), Progress(), answer).files == files


def test_the_first_answer_is_laid_over_the_initial_files() -> None:
    """What it does not speak of stays, and tests are no different from other files yet."""
    files = {"b.py": "old", "a.py": "old", "tests/test_a.py": "old", "main.go": "old"}
    answer = _answer({"a.py": "new", "tests/test_a.py": "new", "c.py": "new"}, ("b.py",))
    merge = merged(make_plan(initial_files=files), Progress(), answer)

    assert (merge.rejected, merge.frozen) == ([], None)
    assert _contents(merge) == {"a.py": "new", "tests/test_a.py": "new", "main.go": "old", "c.py": "new"}


def test_a_later_answer_is_laid_over_the_best_draft_whatever_the_initial_files_were() -> None:
    """What the first draft removed stays away."""
    plan = make_plan(initial_files={"a.py": "start", "gone.py": "start"})
    merge = merged(plan, _progress(a="old"), _answer({"b.py": "new"}))

    assert _contents(merge) == {"a.py": "old", "b.py": "new"}


def test_an_answer_that_repeats_an_initial_file_is_a_draft() -> None:
    """Nobody has run the project yet: its tests may be green."""
    plan = make_plan(initial_files={"a.py": "old", "b.py": "old"})
    merge = merged(plan, Progress(), _answer({"a.py": "old"}))

    assert _contents(merge) == plan.initial_files


def test_a_merge_leaves_the_best_draft_as_it_was() -> None:
    """The best draft may yet be the result."""
    progress = _progress(a="old")
    before = progress.model_copy(deep=True)
    merged(make_plan(), progress, ParsedAnswer(files=[artifact("a.py", "new")]))

    assert progress == before


def test_a_green_verdict_ends_the_run() -> None:
    """However many iterations are left."""
    step = next_step(make_plan(max_iterations=3), _progress(GREEN, a=""))

    assert step == End(status=ExecutionStatus.SUCCESS, reason=StopReason.GREEN)


def test_a_red_verdict_starts_the_next_iteration_from_the_best_draft() -> None:
    """Only the number moves on."""
    progress = _progress(a="")
    step = next_step(make_plan(max_iterations=3), progress)

    assert step == progress.model_copy(update={"iteration": 2})


def _noted(*signatures: str, iteration: int | None = None) -> Progress:
    history = [
        IterationNote(iteration=n, outcome=Outcome.FAILED, signature=s) for n, s in enumerate(signatures, 1)
    ]
    return _progress(a="", iteration=iteration or len(signatures)).model_copy(update={"history": history})


@pytest.mark.parametrize(
    ("signatures", "fresh"),
    [(("a",), False), (("a", "b"), False), (("a", "a"), True), (("a", "b", "a"), True), (("", ""), False)],
)
def test_the_same_failure_twice_starts_afresh_with_the_fallback_in_the_lead(
    signatures: tuple[str, ...], *, fresh: bool
) -> None:
    """In a row or in turn: more of the same dialogue would bring more of the same."""
    step = next_step(make_plan(max_iterations=9), _noted(*signatures))

    assert isinstance(step, Progress)
    assert (step.fresh, step.lead) == (fresh, "kimi" if fresh else None)


def test_without_a_fallback_the_primary_starts_afresh() -> None:
    """There is nobody else to ask."""
    step = next_step(make_plan(fallback_llm=None), _noted("a", "a"))

    assert isinstance(step, Progress)
    assert (step.fresh, step.lead) == (True, None)


def test_another_failure_goes_on_from_the_best_draft_with_the_fallback_still_in_the_lead() -> None:
    """A fresh start is one draft, the change of model stays."""
    progress = _noted("a", "a", "b").model_copy(update={"fresh": True, "lead": "kimi"})
    step = next_step(make_plan(max_iterations=9), progress)

    assert isinstance(step, Progress)
    assert (step.fresh, step.lead) == (False, "kimi")


def test_the_same_failure_three_times_ends_the_run_as_stuck() -> None:
    """Iterations that are left are not spent on it."""
    step = next_step(make_plan(max_iterations=9), _noted("a", "a", "a"))

    assert isinstance(step, End)
    assert (step.status, step.reason) == (ExecutionStatus.PARTIAL_SUCCESS, StopReason.STUCK)
    assert "the same failure came 3 times" in (step.message or "")


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


TESTS = {
    "tests/test_a.py": "def test_a():\n    assert a() == 1\n",
    "conftest.py": "",
    "pytest.ini": "[pytest]\n",
}


def _frozen(**changes: object) -> Progress:
    files = [artifact(path, content) for path, content in {"a.py": "old", **TESTS}.items()]
    progress = Progress(iteration=2, best=Attempt(iteration=1, files=files, verdict=RED))
    return with_tests_frozen(make_plan(), progress, files).model_copy(update=changes)


def _answer(files: dict[str, str], deleted: tuple[str, ...] = (), *disputes: str) -> ParsedAnswer:
    given = [artifact(path, content) for path, content in files.items()]
    return ParsedAnswer(files=given, deleted=list(deleted), disputes=list(disputes))


def _contents(merge: Merge) -> dict[str, str]:
    return {file.file_path: file.content for file in merge.files}


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("tests/test_a.py", "def test_a():\n    pass\n"),
        ("Tests/Test_a.py", "def test_a():\n    pass\n"),
        ("tests/test_a.py/b.py", ""),
        ("tests", "a file where a folder must be"),
        ("tests/test_b.py", "def test_b():\n    assert True\n"),
        ("conftest.py", "import os"),
        ("tests/conftest.py", "import os"),
        ("pytest.ini", "[pytest]\naddopts = --co\n"),
        (".pytest.ini", "[pytest]\n"),
        ("pyproject.toml", "[tool.pytest.ini_options]\naddopts = ['--co']\n"),
        ("setup.cfg", "[tool:pytest]\naddopts = --co\n"),
        ("tox.ini", "[pytest]\naddopts = --co\n"),
        ("sitecustomize.py", ""),
        ("src/usercustomize.py", ""),
        ("evil.pth", "import os"),
        ("pytest.toml", "[pytest]\n"),
        ("node_modules/assert/index.js", ""),
    ],
)
def test_a_change_of_frozen_tests_is_discarded_and_reported(path: str, content: str) -> None:
    """A model that cannot make the code right may not make the tests easy; the rest of its answer counts."""
    merge = merged(make_plan(), _frozen(), _answer({"a.py": "new", path: content}))

    assert merge.rejected == [path]
    assert _contents(merge) == {"a.py": "new", **TESTS}


def test_a_frozen_test_cannot_be_deleted() -> None:
    """Neither it nor its configuration."""
    merge = merged(make_plan(), _frozen(), _answer({}, ("tests/test_a.py", "CONFTEST.py", "a.py")))

    assert merge.rejected == ["tests/test_a.py", "CONFTEST.py"]
    assert _contents(merge) == TESTS


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("tests/data/rows.csv", "1"),
        ("pyproject.toml", "[project]\nname = 'a'\n"),
        ("package.json", '{"scripts": {"test": "node --test"}}'),
        ("vitest.config.ts", ""),
        ("tests/test_a.py", TESTS["tests/test_a.py"]),
    ],
)
def test_what_changes_no_frozen_test_is_taken(path: str, content: str) -> None:
    """What tests may read later, and a file given again as it was, are no change."""
    merge = merged(make_plan(), _frozen(), _answer({path: content}))

    assert merge.rejected == []
    assert _contents(merge)[path] == content


def test_nothing_is_frozen_before_a_draft_has_passed_the_gate() -> None:
    """Until then tests may be as wrong as the code."""
    progress = _frozen(frozen=None)
    merge = merged(make_plan(), progress, _answer({"tests/test_a.py": "new"}))

    assert (merge.rejected, _contents(merge)["tests/test_a.py"]) == ([], "new")


IMPORTING = {
    "tests/__init__.py": "",
    "tests/checks.py": "def same(a, b):\n    assert a == b\n",
    "tests/unit/calc/__init__.py": "",
    "tests/unit/calc/test_a.py": "import decimal\nfrom a.b import c\nfrom tests.checks import same\n",
    "tests/test_b.py": "import checks\nfrom .checks import same\n",
}


def _merged_beside(path: str, *, fresh: bool) -> Merge:
    """Let an answer add a file to a draft whose tests import something."""
    files = [artifact(place, content) for place, content in {"a/b.py": "c = 1", **IMPORTING}.items()]
    progress = Progress(iteration=2, best=Attempt(iteration=1, files=files, verdict=RED), fresh=fresh)
    progress = with_tests_frozen(make_plan(), progress, files)
    return merged(make_plan(), progress, _answer({path: "c = 2"}))


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    "path",
    [
        "checks.py",
        "src/checks.py",
        "checks/__init__.py",
        "tests/checks/__init__.py",
        "tests.py",
        "src/tests/__init__.py",
        "src/tests/checks.py",
        "decimal.py",
        "tests/decimal/__init__.py",
    ],
)
def test_no_new_file_comes_between_frozen_tests_and_what_they_import(path: str, *, fresh: bool) -> None:
    """Neither their own modules nor those from outside are exchanged by one that is found first."""
    assert _merged_beside(path, fresh=fresh).rejected == [path]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    "path",
    [
        "a/b.py",
        "a/__init__.py",
        "src/a/b.py",
        "a/checks.py",
        "calc.py",
        "tests/unit/__init__.py",
    ],
)
def test_the_project_is_free_to_be_what_frozen_tests_import(path: str, *, fresh: bool) -> None:
    """That is what the tests are for."""
    assert _merged_beside(path, fresh=fresh).rejected == []


REPAIRED = "def test_a():\n    assert a() == 2\n"


def test_a_dispute_changes_frozen_tests_once() -> None:
    """The change is part of the result's warnings and metadata; from then on the new tests are the frozen ones."""
    answer = _answer({"tests/test_a.py": REPAIRED}, (), "test_a contradicts requirement 1")
    merge = merged(make_plan(), _frozen(), answer)
    progress = drafted(_frozen(), merge, answer.disputes)
    again = merged(make_plan(), progress, _answer({"tests/test_a.py": "x"}, (), "once more"))

    assert (merge.rejected, _contents(merge)["tests/test_a.py"]) == ([], REPAIRED)
    assert progress.repair == TestRepair(
        iteration=2, note="test_a contradicts requirement 1", files=["tests/test_a.py"]
    )
    assert "test_a contradicts requirement 1" in progress.warnings[0]
    assert (again.rejected, _contents(again)["tests/test_a.py"]) == (["tests/test_a.py"], REPAIRED)


@pytest.mark.parametrize(
    ("note", "taken"),
    [
        ("test_a expects too much", True),
        ("see tests/test_a.py", True),
        ("all of them", False),
        ("test_b", False),
    ],
)
def test_a_dispute_speaks_of_what_it_changes(note: str, *, taken: bool) -> None:
    """A word against one test is no reason to write the others anew."""
    merge = merged(make_plan(), _frozen(), _answer({"tests/test_a.py": REPAIRED}, (), note))

    assert (merge.repair is not None, merge.rejected == []) == (taken, taken)


@pytest.mark.parametrize(
    "files",
    [
        {"tests/test_a.py": "def helper():\n    pass\n"},
        {"tests/test_a.py": "def helper():\n    pass\n", "pytest.ini": "[pytest]\npython_files = *.py\n"},
        {"sitecustomize.py": ""},
        {"Tests/Test_a.py": "def test_a():\n    pass\n"},
    ],
)
def test_a_dispute_makes_tests_no_fewer_and_moves_none(files: dict[str, str]) -> None:
    """It is a way to correct an expectation, and what it is drawn from."""
    merge = merged(make_plan(), _frozen(), _answer(files, (), "wrong"))

    assert (merge.repair, merge.rejected, _contents(merge)) == (None, [*files], {"a.py": "old", **TESTS})


def test_a_dispute_without_a_change_is_told_and_leaves_the_repair_for_later() -> None:
    """The test stands until its correction is there."""
    answer = _answer({"a.py": "new"}, (), "test_a is wrong")
    progress = drafted(_frozen(), merged(make_plan(), _frozen(), answer), answer.disputes)

    assert progress.repair is None
    assert progress.warnings == ["iteration 2: the model disputes a test, which stands: test_a is wrong"]


def test_a_fresh_start_keeps_the_frozen_tests_and_nothing_else() -> None:
    """A new project has to pass the tests that the old one could not."""
    merge = merged(make_plan(), _frozen(fresh=True), _answer({"b.py": "new", "tests/test_a.py": "easy"}))

    assert merge.rejected == ["tests/test_a.py"]
    assert _contents(merge) == {**TESTS, "b.py": "new"}


def test_a_fresh_start_begins_with_the_initial_files_and_the_frozen_tests() -> None:
    """Code is as it was before all drafts; tests that the first one changed or removed do not come back."""
    earlier = {
        "tests/test_a.py": "old",
        "tests/test_gone.py": "old",
        "tests/gone.json": "{}",
        "gone/conftest.py": "",
    }
    plan = make_plan(initial_files={"a.py": "start", "gone.py": "start", **earlier})
    merge = merged(plan, _frozen(fresh=True), _answer({"b.py": "new", "tests/test_a.py": "easy"}))

    assert merge.rejected == ["tests/test_a.py"]
    assert _contents(merge) == {"a.py": "start", "gone.py": "start", **TESTS, "b.py": "new"}


def test_a_fresh_start_before_any_test_is_frozen_begins_with_the_initial_files_alone() -> None:
    """Their tests count again, too."""
    files = {"a.py": "start", "tests/test_a.py": "start"}
    progress = _progress(a="old", b="old").model_copy(update={"fresh": True})
    merge = merged(make_plan(initial_files=files), progress, _answer({"a.py": "new"}))

    assert _contents(merge) == {**files, "a.py": "new"}


@pytest.mark.parametrize("path", ["tests/test_given.py", "Tests/Test_Given.py", "tests"])
def test_given_tests_take_the_place_of_initial_files(path: str) -> None:
    """Whoever gives both wants the test to be passed; the same file may come from an earlier run's result."""
    plan = make_plan(test_files={"tests/test_given.py": "given"}, initial_files={path: "start"})
    merge = merged(plan, Progress(), _answer({"a.py": "new"}))

    assert (merge.rejected, _contents(merge)) == ([], {"a.py": "new", "tests/test_given.py": "given"})


@pytest.mark.parametrize("fresh", [False, True])
def test_given_tests_are_laid_over_everything(*, fresh: bool) -> None:
    """Neither an answer nor a dispute changes them, and what stands in their way goes."""
    plan = make_plan(test_files={"tests/test_given.py": "given"})
    files = {"tests/test_given.py": "mine", "a.py": "new"}
    merge = merged(plan, _frozen(fresh=fresh), _answer(files, ("tests/test_given.py",), "wrong"))

    assert merge.rejected == ["tests/test_given.py", "tests/test_given.py"]
    assert _contents(merge)["tests/test_given.py"] == "given"


def test_given_tests_are_there_from_the_first_draft_on() -> None:
    """Whatever the model wrote for their paths."""
    plan = make_plan(test_files={"tests/test_given.py": "given"})
    merge = merged(plan, Progress(), _answer({"a.py": "new", "tests/test_given.py": "given"}))

    assert (merge.rejected, _contents(merge)) == ([], {"a.py": "new", "tests/test_given.py": "given"})


def test_the_model_is_told_which_of_its_changes_were_discarded() -> None:
    """It would try again otherwise; a green run has nothing to tell."""
    told = with_rejections(RED.model_copy(update={"feedback": "1 failed"}), ["tests/test_a.py"])

    assert told.feedback == ("Your changes of tests/test_a.py were discarded: these tests stand.\n\n1 failed")
    assert with_rejections(told, ["conftest.py"]).feedback.endswith(
        "of conftest.py were discarded: these tests stand.\n\n1 failed"
    )
    assert with_rejections(told, []).feedback == "1 failed"
    assert with_rejections(GREEN, ["tests/test_a.py"]) == GREEN


def test_an_iteration_counts_when_it_has_left_a_draft() -> None:
    """One in which the run is cancelled, or its time runs out, has not."""
    progress = _noted("a", iteration=2)
    counted = [
        conclude(
            make_plan(),
            each,
            ExecutionStatus.TIMEOUT,
            run_id="r",
            cache_key="k",
            calls=[],
            stop_reason=StopReason.TIMEOUT,
            started_at=datetime.now(UTC),
        ).iterations_used
        for each in (progress, progress.model_copy(update={"draft": []}))
    ]

    assert counted == [1, 2]
