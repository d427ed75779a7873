"""What to do with a verdict: end the run, or try once more; and how an answer changes the best draft so far."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ptc_contracts.progress import Progress, StopReason, TestRepair
from ptc_contracts.result import ExecutionStatus
from ptc_contracts.verdicts import Outcome, Verdict
from ptc_worker.expected import expected_of
from ptc_worker.filetypes import artifact
from ptc_worker.frozen import (
    Imported,
    frozen_files,
    is_change_of_tests,
    is_exchange,
    is_interpreters_own,
    is_part_of_tests,
    is_removal_of_tests,
    is_runners_own,
    is_test_material,
)
from ptc_worker.javascript import node_tests

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from ptc_contracts.plan import PTCExecutionPlan
    from ptc_contracts.result import CodeArtifact
    from ptc_worker.parsing import ParsedAnswer

REPEATS_TO_START_AFRESH = 2
REPEATS_TO_STOP = 3
"""How often the same failure comes before the draft is thrown away, and before the run is stuck. The same dialogue
on and on loses most of its power to repair after two or three tries; a fresh start restores it (arXiv 2506.18403)."""


_DISCARDED = re.compile(r"\AYour changes of .+ were discarded: these tests stand\.\n\n")

UNWANTED = {StopReason.MAX_ITERATIONS, StopReason.STUCK, StopReason.UNPARSEABLE}
"""Ends whose answers nobody wants to get again: whoever submits the plan once more hopes for better ones."""


@dataclass(frozen=True, kw_only=True)
class End:
    """How a run ends."""

    status: ExecutionStatus
    reason: StopReason
    message: str | None = None
    given_up: bool = False
    """Whether it goes into the list of the dead, to be looked at and sent again."""


@dataclass(frozen=True, kw_only=True)
class Merge:
    """A draft made of the best one so far and an answer."""

    files: list[CodeArtifact]
    rejected: list[str] = field(default_factory=list)
    """Paths of tests that the answer wanted to change and may not."""
    repair: TestRepair | None = None
    """The change of frozen tests that it may make, because it disputes them."""
    frozen: list[CodeArtifact] | None = None
    """The frozen files after it; None while nothing is frozen."""


def merged(plan: PTCExecutionPlan, progress: Progress, answer: ParsedAnswer) -> Merge:
    """Lay an answer over what it starts from, and the plan's own tests over both.

    Frozen tests change once at most, with a dispute, and then they may not become fewer; given ones never.
    """
    given = [artifact(path, content) for path, content in plan.test_files.items()]
    frozen = progress.frozen or []
    imported = Imported(given)
    protected = [f for f in answer.files if is_exchange(f, given) or imported.hidden_by(f.file_path)]
    changed = _changes(progress, [file for file in answer.files if file not in protected])
    repair = _repair_in(progress, answer, changed)
    repairable = {_name(path) for path in repair.files} if repair else set()
    kept = [path for path in answer.deleted if is_removal_of_tests(path, [*given, *frozen])]
    discarded = [*protected, *(file for file in changed if _name(file.file_path) not in repairable)]
    taken = [file for file in answer.files if file not in discarded]
    files = _overlaid(_start(plan, progress), taken, [path for path in answer.deleted if path not in kept])
    rejected = [file.file_path for file in discarded if file.content != plan.test_files.get(file.file_path)]
    repaired = [file for file in taken if _name(file.file_path) in repairable]
    return Merge(
        files=_overlaid(files, given),
        rejected=[*rejected, *kept],
        repair=repair,
        frozen=progress.frozen if progress.frozen is None else _overlaid(frozen, repaired),
    )


def _start(plan: PTCExecutionPlan, progress: Progress) -> list[CodeArtifact]:
    """Give what an answer is laid over; frozen tests stand in it as they are, whatever the draft was that is best."""
    if progress.fresh or progress.best is None:
        return beginning(plan, progress)
    return _overlaid(progress.best.files, [file for file in progress.frozen or () if is_part_of_tests(file)])


def beginning(plan: PTCExecutionPlan, progress: Progress) -> list[CodeArtifact]:
    """Give what a draft begins with that does not go on from another: the plan's initial files, and the frozen tests.

    Once tests are frozen, they are all there are: those that the first draft took away do not come back.
    """
    files = [artifact(path, content) for path, content in sorted(plan.initial_files.items())]
    if progress.frozen is None:
        return files
    return _overlaid([file for file in files if not is_test_material(file.file_path)], progress.frozen)


def _repair_in(
    progress: Progress, answer: ParsedAnswer, changed: Sequence[CodeArtifact]
) -> TestRepair | None:
    """Find the repair of frozen tests that an answer makes and may make; None if it makes none.

    Only files that the dispute speaks of are changed. It may concern what tests read and how they run, too: a fixture,
    a value in a file.
    """
    if progress.frozen is None or progress.repair is not None or not answer.disputes:
        return None
    known = {file.file_path for file in progress.frozen}
    changes = [
        file
        for file in changed
        if not is_interpreters_own(file.file_path)
        and _is_named(file, answer.disputes)
        and (file.file_path in known or is_runners_own(file.file_path) or not is_part_of_tests(file))
    ]
    if not changes or _count(_overlaid(progress.frozen, changes)) < _count(progress.frozen):
        return None
    paths = [file.file_path for file in changes]
    return TestRepair(iteration=progress.iteration, note="\n".join(answer.disputes), files=paths)


def _is_named(file: CodeArtifact, disputes: Sequence[str]) -> bool:
    """Tell whether a dispute speaks of a file, by its name or one of its tests; what has no tests goes with any."""
    nodes = node_tests([file]).files.values()
    tests = {test.rpartition("::")[2] for test in expected_of([file]).tests}
    tests |= {name for defined in nodes for test in defined for name in test.names}
    names = {PurePosixPath(file.file_path).name, *filter(None, tests)}
    return not tests or any(name in note for name in names for note in disputes)


def _changes(progress: Progress, files: Sequence[CodeArtifact]) -> list[CodeArtifact]:
    """Choose the files of an answer that would change frozen tests."""
    if progress.frozen is None:
        return []
    imported = Imported(progress.frozen, progress.best.files if progress.best else [])
    return [file for file in files if is_change_of_tests(file, progress.frozen, imported)]


def _count(tests: Sequence[CodeArtifact]) -> int:
    """Count the tests that files are sure to define, and that run on every condition."""
    expected, nodes = expected_of(tests), node_tests(tests).files.values()
    always = [test for test in expected.tests if not expected.may_be_left_out(test)]
    return len(always) + sum(not test.conditional for defined in nodes for test in defined)


def _overlaid(
    earlier: Sequence[CodeArtifact], given: Sequence[CodeArtifact], deleted: Iterable[str] = ()
) -> list[CodeArtifact]:
    """Lay files over others: what is given replaces, what is deleted is left out.

    What is given also replaces an earlier file or folder that stands in its way.
    """
    laid = {_name(file.file_path): file for file in given}
    folders = {_name(parent) for file in given for parent in PurePosixPath(file.file_path).parents}
    gone = folders | {_name(path) for path in deleted}
    kept = {
        name: file
        for file in earlier
        if (name := _name(file.file_path)) in laid
        or not (
            name in gone or any(_name(parent) in laid for parent in PurePosixPath(file.file_path).parents)
        )
    }
    return list((kept | laid).values())


def _name(path: str | PurePosixPath) -> str:
    """Fold case: two spellings are one file on some systems."""
    return str(path).casefold()


def drafted(progress: Progress, merge: Merge, disputes: Sequence[str]) -> Progress:
    """Note what became of an answer's changes of tests."""
    warnings = []
    if merge.rejected:
        warnings.append(f"changes of tests were discarded: {', '.join(merge.rejected)}")
    if merge.repair:
        paths = ", ".join(merge.repair.files)
        warnings.append(f"tests were changed after a dispute ({paths}): {merge.repair.note}")
    else:
        warnings += [f"the model disputes a test, which stands: {note}" for note in disputes]
    facts = {}
    if merge.rejected:
        facts["rejected_paths"] = [
            *dict.fromkeys([*progress.facts.get("rejected_paths", []), *merge.rejected])
        ]
    return progress.noting(
        (f"iteration {progress.iteration}: {warning}" for warning in warnings), **facts
    ).model_copy(
        update={
            "rejected": merge.rejected,
            "repair": progress.repair or merge.repair,
            "frozen": merge.frozen,
        }
    )


def with_tests_frozen(plan: PTCExecutionPlan, progress: Progress, files: Sequence[CodeArtifact]) -> Progress:
    """Freeze the tests of the first draft that passed the gate, but for those that the plan gives anyway."""
    if progress.frozen is not None:
        return progress
    given = {_name(path) for path in plan.test_files}
    own = [file for file in files if _name(file.file_path) not in given]
    return progress.model_copy(update={"frozen": frozen_files(own)})


def with_rejections(verdict: Verdict, rejected: Collection[str]) -> Verdict:
    """Tell the model of its changes that were discarded."""
    if verdict.outcome is Outcome.PASSED:
        return verdict
    told = [f"Your changes of {', '.join(rejected)} were discarded: these tests stand."] if rejected else []
    findings = _DISCARDED.sub("", verdict.feedback)  # an unchanged draft has the verdict that it had
    return verdict.model_copy(update={"feedback": "\n\n".join([*told, findings])})


def unreadable_verdict() -> Verdict:
    """Say that an iteration's answers held no file."""
    return Verdict(outcome=Outcome.UNREADABLE)


def next_step(plan: PTCExecutionPlan, progress: Progress) -> End | Progress:
    """Decide after a verdict: how the run ends, or with what the next iteration starts.

    The same failure twice throws the draft away: the next one starts afresh, and the fallback model is asked first
    from then on. Three times end the run.
    """
    if progress.best is None:
        raise ValueError("nothing was examined yet")
    if progress.best.verdict.outcome is Outcome.PASSED:
        return End(status=ExecutionStatus.SUCCESS, reason=StopReason.GREEN)
    repeats = _repeats(progress)
    if repeats >= REPEATS_TO_STOP:
        return spent(progress, StopReason.STUCK, f"the same failure came {repeats} times")
    if progress.iteration >= plan.max_iterations:
        return spent(progress, StopReason.MAX_ITERATIONS, f"max_iterations={plan.max_iterations} are spent")
    fresh = repeats == REPEATS_TO_START_AFRESH
    lead = plan.fallback_llm.value if fresh and plan.fallback_llm else progress.lead
    return progress.model_copy(update={"iteration": progress.iteration + 1, "fresh": fresh, "lead": lead})


def _repeats(progress: Progress) -> int:
    """Count how often the latest failure has come, in a row or not: two drafts may take turns."""
    latest = progress.history[-1].signature if progress.history else ""
    return sum(note.signature == latest for note in progress.history) if latest else 0


def spent(progress: Progress, reason: StopReason, why: str) -> End:
    """End a run that is not green: partly done if there is any code, failed if there is none."""
    if not progress.best_files:
        return End(status=ExecutionStatus.FAILURE, reason=reason, message=f"no usable code: {why}")
    verdict = progress.best_verdict
    outcome = f"the tests are not green ({verdict.outcome.value})" if verdict else "the tests were not run"
    return End(status=ExecutionStatus.PARTIAL_SUCCESS, reason=reason, message=f"{outcome}: {why}")
