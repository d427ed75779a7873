"""What a stage leaves of a run: how far it has come, and where it goes from there."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from ptc_contracts import ExecutionStatus
from ptc_contracts.bill import ANSWERED
from ptc_contracts.progress import Progress, StopReason
from ptc_contracts.stages import Stage
from ptc_contracts.verdicts import Outcome
from ptc_worker.app import redactor, store
from ptc_worker.redaction import redact_verdict
from ptc_worker.refinement import End, next_step, with_rejections

if TYPE_CHECKING:
    from ptc_contracts import CodeArtifact
    from ptc_contracts.run import Run
    from ptc_contracts.verdicts import Verdict

Step = tuple[Progress, Stage | End]
"""What a stage leaves: how far the run has come, and where it goes from here."""


def examined(run: Run, progress: Progress, verdict: Verdict, files: list[CodeArtifact]) -> Step:
    """Note a verdict and decide: end the run, or let a model try once more."""
    verdict = redact_verdict(redactor(), with_rejections(verdict, progress.rejected))
    progress = progress.examined(verdict, files)
    if verdict.outcome is not Outcome.PASSED and run.time_left() <= 0:
        return progress, out_of_time(run)
    follows = next_step(run.plan, progress)
    return (progress, follows) if isinstance(follows, End) else (follows, Stage.GENERATE)


def out_of_time(run: Run) -> End:
    """End a run whose time is over, with the best files so far; say what its models made of it."""
    message = f"timeout_seconds={run.plan.timeout_seconds} ran out in {run.stage.value}"
    if run.waited_for:
        message += f" (it had waited: {run.waited_for})"
    if failed := _failed_calls(run):
        message += f" (model calls that failed: {failed})"
    return End(status=ExecutionStatus.TIMEOUT, reason=StopReason.TIMEOUT, message=message)


def _failed_calls(run: Run) -> str:
    """Count this iteration's calls that brought nothing, by provider and kind of failure."""
    if run.stage is not Stage.GENERATE:
        return ""
    with suppress(RedisError):  # the message is good without them
        calls = [call for call in store().calls(run) if call.iteration == run.progress.iteration]
        failed = Counter(f"{c.provider} {c.outcome}" for c in calls if c.outcome not in ANSWERED)
        return ", ".join(f"{number} x {what}" for what, number in sorted(failed.items()))
    return ""
