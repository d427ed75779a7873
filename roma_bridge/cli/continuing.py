"""`--continue`: a new plan from a run that has ended, which starts from its files."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

from ptc_contracts import InvalidPlanError, RunNotFinishedError
from roma_bridge.cli.changes import Change, changed
from roma_bridge.cli.here import hint
from roma_bridge.cli.plans import Given
from roma_bridge.handle import PlanHandle
from roma_bridge.plans import read_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ptc_contracts import PTCArtifactResult, PTCExecutionPlan
    from roma_bridge.client import PTC

_END_CHARACTERS = 4_000
"""Of what the tests of a run wrote, this much is told to the next one: a model needs the failures, which come last."""


def continued(ptc: PTC, run_id: str, changes: Sequence[str], *, local: bool) -> Given:
    """Make the plan that goes on where a run has ended.

    Raises:
        InvalidPlanError: the run left no files, or ended green and nothing is to change; or a change does not fit.
        PayloadTooLargeError: with the files of the run it is larger than `PTC_MAX_PAYLOAD_MB`.
        RunNotFinishedError: it has not ended.
    """
    parsed = [Change.parse(change) for change in changes]
    handle = PlanHandle.of(run_id, ptc)
    if not handle.ready():
        cancel = hint("--cancel", run_id, local=local)
        raise RunNotFinishedError(f"run {run_id} has not ended; cancel it first with: {cancel}")
    result = handle.get()
    if not result.artifacts:
        raise InvalidPlanError(f"run {run_id} left no files to go on from: submit its plan again instead")
    if result.success and not parsed:
        raise InvalidPlanError(
            f"run {run_id} ended green: say what is to change, such as --set scaffolding.task_description='…'"
        )
    document = _next_plan(handle.plan, result).model_dump_json().encode()
    plan = read_plan(changed(document, parsed))
    ptc.store.form.small(plan)
    return Given(f"--continue {run_id}", None, plan)


def _next_plan(plan: PTCExecutionPlan, result: PTCArtifactResult) -> PTCExecutionPlan:
    files = {
        each.file_path: each.content for each in result.artifacts if each.file_path not in plan.test_files
    }
    context = "\n\n".join(filter(None, (plan.scaffolding.context, _ending(result))))
    return plan.model_copy(
        update={
            "execution_id": f"{plan.execution_id}-{uuid4().hex[:8]}",
            "initial_files": files,
            "scaffolding": plan.scaffolding.model_copy(update={"context": context or None}),
        }
    )


def _ending(result: PTCArtifactResult) -> str:
    """Tell the next author how the last one's tests ended; nothing of green ones."""
    if result.success:
        return ""
    told = [f"The files to start from were written before; that run ended as {result.status.value}."]
    if result.error_message:
        told.append(result.error_message)
    if tests := result.test_results:
        told.append(
            f"Of its tests {tests.tests_passed} passed and {tests.tests_failed} failed. Their output ended with:"
        )
        told.append(tests.stdout[-_END_CHARACTERS:])
    return "\n".join(told)
