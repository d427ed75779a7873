"""The generate stage: models write a draft, and it is examined without being run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from ptc_contracts import ExecutionStatus
from ptc_contracts.progress import StopReason
from ptc_contracts.stages import Stage
from ptc_contracts.verdicts import GateStage
from ptc_worker import announcing
from ptc_worker.app import redactor, settings
from ptc_worker.asking import answer_to
from ptc_worker.drafting import joined, next_request, read
from ptc_worker.gate import examine, has_errors, has_python_tests, red_verdict
from ptc_worker.javascript import has_node_tests
from ptc_worker.linter import lint
from ptc_worker.llm.calls import NoAnswerError, OverBudgetError
from ptc_worker.llm.prices import REPLAY_PREFIX
from ptc_worker.parsing import parse_answer
from ptc_worker.providers import providers_for
from ptc_worker.refinement import End, beginning, drafted, merged, spent, unreadable_verdict
from ptc_worker.steps import examined, out_of_time

if TYPE_CHECKING:
    from ptc_contracts.bill import Request
    from ptc_contracts.progress import Progress
    from ptc_contracts.run import Run
    from ptc_worker.drafting import Reading
    from ptc_worker.leases import Hold
    from ptc_worker.llm.calls import Answer
    from ptc_worker.parsing import ParsedAnswer
    from ptc_worker.steps import Step

log = structlog.get_logger(__name__)


def write_draft(hold: Hold) -> Step:
    """Ask until this iteration has a draft or can get none; decide what follows from what can be seen without running it.

    Raises:
        BusyError: nobody can be asked for a while.
        ConfigurationError: no provider of the plan is configured.
    """
    run, plan = hold.run, hold.run.plan
    providers, warnings = providers_for(plan, settings(), run.progress.lead)
    progress = run.progress.noting(warnings)
    readings: list[Reading] = []
    try:
        while request := next_request(readings):
            answer = answer_to(request, hold, providers, readings)
            progress = progress.noting(_remarks(answer), **_facts(answer))
            readings.append(_read(answer, request, readings))
    except (NoAnswerError, OverBudgetError, TimeoutError) as error:
        return _cut_short(run, progress, readings, error)
    parsed = joined(readings)
    progress = progress.noting(parsed.problems)
    if not parsed.files and not parsed.deleted:
        progress = progress.examined(unreadable_verdict(), [])
        return progress, spent(
            progress, StopReason.UNPARSEABLE, "no file could be read in the model's answers"
        )
    return _judged_unrun(hold, progress, parsed)


def _judged_unrun(hold: Hold, progress: Progress, answer: ParsedAnswer) -> Step:
    """Make the draft of an answer, and decide what follows from what can be seen without running it."""
    run, plan = hold.run, hold.run.plan
    merge = merged(plan, progress, answer)
    progress, files = drafted(progress, merge, answer.disputes), merge.files
    if progress.best and files == progress.best.files:
        log.info("draft_unchanged")
        return examined(run, progress, progress.best.verdict, files)
    announcing.files_ready(
        hold.report, files, progress.best.files if progress.best else beginning(plan, progress)
    )
    announcing.gate_begun(hold.report, files)
    issues = examine(plan, files, settings().ptc_allowed_dependencies)
    if not has_errors(issues, GateStage.SYNTACTIC):
        issues += lint([file for file in files if file.file_path not in plan.test_files])
    announcing.gate_over(hold.report, issues)
    if has_errors(issues):
        log.info("draft_refused", issues=len(issues), files=len(files))
        return examined(run, progress, red_verdict(issues), files)
    log.info("draft_parsed", files=len(files))
    progress = progress.model_copy(update={"draft": files, "noticed": issues})
    if not plan.enable_testing:
        return progress, End(status=ExecutionStatus.SUCCESS, reason=StopReason.NOT_TESTED)
    if not has_python_tests(files) and not has_node_tests(files):
        why = "this project's tests cannot be run here: only pytest and Node's own test runner are supported"
        return progress, spent(progress, StopReason.UNSUPPORTED, why)
    return progress, Stage.SANDBOX


def _cut_short(run: Run, progress: Progress, readings: list[Reading], error: Exception) -> Step:
    """End a run in whose iteration no further answer came, with the files that had come by then."""
    if (parsed := joined(readings)).files:
        progress = progress.model_copy(update={"draft": merged(run.plan, progress, parsed).files})
    if isinstance(error, TimeoutError):
        return progress, out_of_time(run)
    reason = StopReason.BUDGET if isinstance(error, OverBudgetError) else StopReason.NO_ANSWER
    return progress, spent(progress, reason, str(error))


def _read(answer: Answer, request: Request, earlier: list[Reading]) -> Reading:
    return read(
        earlier, request, answer.text, parse_answer(redactor().exact(answer.text)), truncated=answer.truncated
    )


def _remarks(answer: Answer) -> list[str]:
    """Word what a reader of the result should know about an answer."""
    cut = ["a model's answer was cut at its token limit"] if answer.truncated else []
    replayed = answer.model.startswith(REPLAY_PREFIX)
    replay = ["the code comes from the replay server's recordings, not from a model"] if replayed else []
    return [*replay, *cut]


def _facts(answer: Answer) -> dict[str, str]:
    replayed = answer.model.startswith(REPLAY_PREFIX)
    mode = {"provider_mode": "replay"} if replayed else {}
    return {"provider": answer.provider, "model": answer.model, **mode}
