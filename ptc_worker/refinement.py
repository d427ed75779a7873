"""What to do with a verdict: end the run, or try once more; and which files the next draft starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ptc_contracts.progress import Progress, StopReason
from ptc_contracts.result import ExecutionStatus
from ptc_contracts.verdicts import Outcome, Verdict

if TYPE_CHECKING:
    from ptc_contracts.plan import PTCExecutionPlan
    from ptc_contracts.result import CodeArtifact
    from ptc_worker.parsing import ParsedAnswer


@dataclass(frozen=True, kw_only=True)
class End:
    """How a run ends."""

    status: ExecutionStatus
    reason: StopReason
    message: str | None = None
    given_up: bool = False
    """Whether it goes into the list of the dead, to be looked at and sent again."""


def merged(progress: Progress, answer: ParsedAnswer) -> list[CodeArtifact]:
    """Lay an answer over the best draft so far: what it gives replaces, what it deletes is left out.

    What an answer gives also replaces an earlier file or folder that stands in its way.
    """
    earlier = progress.best.files if progress.best else []
    given = {_name(file.file_path): file for file in answer.files}
    folders = {_name(parent) for file in answer.files for parent in PurePosixPath(file.file_path).parents}
    gone = folders | {_name(path) for path in answer.deleted}
    kept = {
        name: file
        for file in earlier
        if (name := _name(file.file_path)) in given
        or not (
            name in gone or any(_name(parent) in given for parent in PurePosixPath(file.file_path).parents)
        )
    }
    return list((kept | given).values())


def _name(path: str | PurePosixPath) -> str:
    """Fold case: two spellings are one file on some systems."""
    return str(path).casefold()


def unreadable_verdict(answer: ParsedAnswer) -> Verdict:
    """Say that an answer held no file, and why."""
    problems = [f"- {problem}" for problem in answer.problems] or ["- it holds no <file path=…> block"]
    return Verdict(
        outcome=Outcome.UNREADABLE,
        feedback="\n".join(["Your last answer held no usable file:", *problems]),
    )


def next_step(plan: PTCExecutionPlan, progress: Progress) -> End | Progress:
    """Decide after a verdict: how the run ends, or with what the next iteration starts."""
    if progress.best is None:
        raise ValueError("nothing was examined yet")
    if progress.best.verdict.outcome is Outcome.PASSED:
        return End(status=ExecutionStatus.SUCCESS, reason=StopReason.GREEN)
    if progress.iteration < plan.max_iterations:
        return progress.model_copy(update={"iteration": progress.iteration + 1})
    return spent(progress, StopReason.MAX_ITERATIONS, f"max_iterations={plan.max_iterations} are spent")


def spent(progress: Progress, reason: StopReason, why: str) -> End:
    """End a run that is not green: partly done if there is any code, failed if there is none."""
    if not progress.best_files:
        return End(status=ExecutionStatus.FAILURE, reason=reason, message=f"no usable code: {why}")
    verdict = progress.best_verdict
    outcome = f"the tests are not green ({verdict.outcome.value})" if verdict else "the tests were not run"
    return End(status=ExecutionStatus.PARTIAL_SUCCESS, reason=reason, message=f"{outcome}: {why}")
