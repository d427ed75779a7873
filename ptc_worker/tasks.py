"""The life of a run: generate, sandbox, finish. Whoever reads this page knows the system.

A task takes its run, does one stage of it, and either ends the run or hands it over to the next stage. What a
stage pays for is kept before anything else happens to it, so that whoever repeats the stage need not pay again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import structlog
from celery.exceptions import Ignore, Reject
from redis.exceptions import RedisError, ResponseError

from ptc_contracts import (
    ConfigurationError,
    ExecutionStatus,
    PayloadTooLargeError,
    UnreadableBlobError,
)
from ptc_contracts.progress import StopReason
from ptc_contracts.record import CANCELLED, EXPIRED
from ptc_contracts.run import LeaseLostError, NotOurs, Run
from ptc_contracts.stages import Stage
from ptc_worker import announcing
from ptc_worker.app import app, leases, publisher, redactor, send, settings, store
from ptc_worker.asking import forget_answers
from ptc_worker.busy import BusyError
from ptc_worker.generating import write_draft
from ptc_worker.halt import HaltedError, Why
from ptc_worker.outages import through_outages
from ptc_worker.quarantine import quarantined
from ptc_worker.redaction import redact_progress
from ptc_worker.refinement import UNWANTED, End, spent
from ptc_worker.sandbox.protocol import SandboxError
from ptc_worker.steps import Step, out_of_time
from ptc_worker.testing import run_draft

if TYPE_CHECKING:
    from collections.abc import Callable

    from ptc_contracts import PTCArtifactResult
    from ptc_contracts.events import Addition
    from ptc_contracts.progress import Progress
    from ptc_worker.leases import Hold

log = structlog.get_logger(__name__)

_REASON_CHARS = 500
"""Most of what is kept of why a run waits."""

_CANCELLED = End(status=ExecutionStatus.FAILURE, reason=StopReason.CANCELLED, message=CANCELLED)


@dataclass(frozen=True)
class Ended:
    """A result on its way into Celery's backend; its `repr`, which events and Flower show, tells no content."""

    result: PTCArtifactResult

    def __repr__(self) -> str:
        tests = self.result.test_results
        counts = f", {tests.tests_passed} passed, {tests.tests_failed} failed" if tests else ""
        used, files = self.result.iterations_used, len(self.result.artifacts)
        return f"{self.result.status.value}: iteration {used}, {files} files{counts}"

    def __json__(self) -> dict[str, Any]:
        """Serialise as the wire form; kombu's JSON encoder asks for this."""
        return self.result.model_dump(mode="json")


@app.task(name=Stage.GENERATE.task_name)
def generate(run_id: str, sending: int) -> Ended:
    """Ask a model for the next draft and examine it without running it."""
    return _work(run_id, sending, Stage.GENERATE, write_draft)


@app.task(name=Stage.SANDBOX.task_name)
def sandbox(run_id: str, sending: int) -> Ended:
    """Run the draft's tests in isolation and decide what follows."""
    return _work(run_id, sending, Stage.SANDBOX, run_draft)


def _work(run_id: str, sending: int, stage: Stage, step: Callable[[Hold], Step]) -> Ended:
    """Take the run, do the stage, and move the run on; return its result if it has ended.

    A message whose run is held, elsewhere or gone has done its duty: it is acknowledged and forgotten. What
    an outage of Redis interrupts for too long is taken up again by recovery, once the run's lease has passed.
    """
    run = _begun(run_id, sending, stage)
    if isinstance(run, NotOurs):
        tell = log.warning if run.reason.startswith("unreadable") else log.info
        tell("message_ignored", run=run_id, stage=stage.value, reason=run.reason)
        if run.result is None:
            raise Ignore
        return Ended(run.result)
    context = {"run": run_id, "key": run.key, "stage": stage.value, "iteration": run.progress.iteration}
    with (
        structlog.contextvars.bound_contextvars(**context),
        publisher().reporting(run) as report,
        leases().holding(run, report) as hold,
    ):
        announcing.stage_begun(report)
        ended = _held(hold, step)
    if ended is None:
        raise Ignore
    return ended


def _begun(run_id: str, sending: int, stage: Stage) -> Run | NotOurs:
    """Take the run; a worker that ends, or that cannot reach Redis, gives the message back."""
    if leases().ending:
        raise Reject("this worker ends", requeue=True)
    us = uuid4().hex
    try:
        return through_outages(lambda: store().begin(run_id, stage, sending, us))
    except ResponseError:
        log.exception("run_cannot_be_begun", run=run_id)  # given back, the message would come again at once
        raise Ignore from None
    except RedisError as error:
        log.warning("message_given_back", run=run_id, stage=stage.value, error=type(error).__name__)
        raise Reject(type(error).__name__, requeue=True) from None


def _held(hold: Hold, step: Callable[[Hold], Step]) -> Ended | None:
    """Do the stage of a run that is ours; None if it goes on elsewhere."""
    try:
        try:
            return _finish(hold, *_guarded(step, hold))
        except HaltedError as halted:
            return _halted(hold, halted.why)
        except BusyError as busy:
            _deferred(hold, busy.seconds, redactor().text(str(busy))[:_REASON_CHARS])
    except LeaseLostError:
        log.warning("run_left_to_another_worker")
    except RedisError as error:
        log.warning("run_left_to_recovery", error=type(error).__name__)
    except Exception:
        log.exception("run_left_to_recovery")  # raised, it would become a result behind the record
    return None


def _finish(hold: Hold, progress: Progress, follows: Stage | End) -> Ended | None:
    """End the run, or hand it over: the task id is kept, so that one `AsyncResult` follows it to its end."""
    if isinstance(follows, End):
        return _end(hold, progress, follows)
    told = announcing.stage_over(hold.report, progress, follows)
    try:
        owed = through_outages(lambda: store().hand_over(hold.run, follows, progress, told))
    except PayloadTooLargeError as error:
        return _end(hold, hold.run.progress, _misconfigured(str(error)), told)
    send(owed)
    log.info("run_handed_over", to=follows.value, iteration=progress.iteration)
    return None


def _end(hold: Hold, progress: Progress, end: End, told: Addition | None = None) -> Ended:
    run, last = hold.run, told or announcing.stage_over(hold.report, progress, end)
    if end.reason in UNWANTED:
        forget_answers(run)
    result = through_outages(
        lambda: store().finish(
            run,
            end.status,
            progress=redact_progress(redactor(), progress),
            error_message=redactor().text(end.message) if end.message else None,
            stop_reason=end.reason,
            given_up=end.given_up,
            told=last,
        )
    )
    log.info("run_ended", status=result.status.value, seconds=round(result.duration_seconds, 2))
    return Ended(result)


def _halted(hold: Hold, why: Why) -> Ended | None:
    """Leave a run whose work was stopped: end it, or give it to another worker."""
    log.warning("run_halted", why=why.value)
    if why is Why.CANCELLED:
        return _end(hold, hold.run.progress, _CANCELLED)
    if why is Why.SHUTDOWN:
        send(store().hand_back(hold.run, announcing.handed_back(hold.report)))
    return None


def _deferred(hold: Hold, seconds: float, why: str) -> None:
    """Let a run wait in its queue; that is told once, however often it comes and goes."""
    tell = log.debug if hold.run.waited_for else log.info
    tell("run_deferred", seconds=round(seconds, 1), reason=why)
    told = announcing.deferred(hold.report, seconds, why)
    through_outages(lambda: store().defer(hold.run, seconds, why, told))


def _guarded(step: Callable[[Hold], Step], hold: Hold) -> Step:
    """Do a stage; a run ends whatever happens in it."""
    run = hold.run
    progress = run.progress
    if end := _over_already(run):
        return progress, end
    try:
        with quarantined(hold, store(), settings().ptc_max_deliveries):
            return step(hold)
    except (LeaseLostError, HaltedError, RedisError, BusyError):
        raise
    except TimeoutError:
        return progress, out_of_time(run)
    except (ConfigurationError, PayloadTooLargeError, UnreadableBlobError) as error:
        return progress, _misconfigured(f"configuration: {error}")
    except SandboxError as error:
        return progress, spent(progress, StopReason.NOT_RUN, str(error))
    except Exception as error:
        log.exception("stage_failed")
        return progress, spent(
            progress, StopReason.INTERNAL, f"internal error in {run.stage.value}: {type(error).__name__}"
        )


def _over_already(run: Run) -> End | None:
    """Tell how a run ends that has nothing more to do here, None if it has."""
    if run.cancelled:
        return _CANCELLED
    if run.expired:
        return End(status=ExecutionStatus.TIMEOUT, reason=StopReason.TIMEOUT, message=EXPIRED)
    if run.time_left() <= 0:
        return out_of_time(run)
    if run.starts > (most := settings().ptc_max_deliveries):
        message = (
            f"given up: {run.stage.value} was begun {most} times without progress; each time its worker died or "
            f"fell silent (PTC_MAX_DELIVERIES={most})"
        )
        return End(status=ExecutionStatus.FAILURE, reason=StopReason.GIVEN_UP, message=message, given_up=True)
    return None


def _misconfigured(message: str) -> End:
    return End(status=ExecutionStatus.FAILURE, reason=StopReason.CONFIGURATION, message=message)
