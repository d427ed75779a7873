"""Waits for a run and tells each of its steps on the way."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from ptc_contracts import ServerUnavailableError
from ptc_contracts.progress import IterationNote
from ptc_contracts.run import RunState
from ptc_contracts.verdicts import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ptc_contracts import PTCArtifactResult
    from ptc_contracts.run import RunStatus
    from roma_bridge.client import PlanHandle
    from roma_bridge.local import LocalStack

GLANCE_SECONDS = 0.1
"""How often the record of a run is looked at."""

OVERDUE_SECONDS = 2.0
"""How often a run is looked at that may be over while no worker is there to end it."""

NO_WORKER_SECONDS = 3.0
"""After which time without any step it is asked whether there is a worker."""

FETCH_SECONDS = 30.0
"""How long a result may take that is there."""

NO_WORKER = "no worker answers; start one with: celery -A ptc_worker worker"


def follow(handle: PlanHandle, timeout: float | None, here: LocalStack | None) -> PTCArtifactResult:
    """Wait for the result, with a line for every step on the way."""
    watch = Watch()
    watch.say(submission_line(handle))
    while not handle.from_cache:
        if here:
            here.check()
        over = timeout is not None and watch.seconds >= timeout
        try:
            ended = watch.look(handle, own_worker=here is not None)
        except ServerUnavailableError as error:
            if over:
                raise
            watch.say_once(f"{error}; waiting for it")
            ended = False
        if ended or over:
            break
        time.sleep(GLANCE_SECONDS)
    result = handle.get(timeout=FETCH_SECONDS if handle.from_cache or ended else 0)
    if not result.from_cache:
        watch.tell_history([IterationNote.model_validate(n) for n in result.metadata.get("history", [])])
    return result


class Watch:
    """Prints what is new since the last look, each line with the time since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._last = ""
        self._said = ""
        self._told = 0
        self._looked_after = 0.0
        self._asked_for_workers = False

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._started

    def say(self, line: str) -> None:
        """Print a line on standard error."""
        stamp = click.style(f"[{self.seconds:6.1f} s]", dim=True)
        click.echo(f"{stamp} {line}", err=True)

    def say_once(self, line: str) -> None:
        """Print a line unless it is the last one that was said this way."""
        if line != self._said:
            self.say(line)
        self._said = line

    def look(self, handle: PlanHandle, *, own_worker: bool) -> bool:
        """Look at a run, tell what is new, and return whether it has ended."""
        status = handle.status()
        self._said = ""
        self.tell(status)
        if status.state is RunState.ENDED:
            return True
        if self.seconds - self._looked_after > OVERDUE_SECONDS:
            self._looked_after = self.seconds
            handle.end_if_over()  # where no worker is left to do it
        waits = status.state is RunState.QUEUED and self.seconds > NO_WORKER_SECONDS
        if waits and not own_worker and not self._asked_for_workers:
            self._asked_for_workers = True
            if not handle.ptc.workers_answer():
                self.say(NO_WORKER)
        return False

    def tell(self, status: RunStatus) -> None:
        """Print what is new in a run's status."""
        self.tell_history(status.history)
        line = _status_line(status)
        if line != self._last and status.state is not RunState.ENDED:
            self.say(line)
            self._last = line

    def tell_history(self, history: Sequence[IterationNote]) -> None:
        """Print what became of each iteration that was not told yet."""
        for note in history[self._told :]:
            counts = f": {note.passed} passed, {note.failed} failed" if note.passed or note.failed else ""
            colour = "green" if note.outcome is Outcome.PASSED else "red"
            self.say(f"iteration {note.iteration}: " + click.style(note.outcome.value + counts, fg=colour))
        self._told = max(self._told, len(history))


def submission_line(handle: PlanHandle) -> str:
    """Say what became of a submission."""
    if handle.from_cache:
        return f"plan {handle.key}: the cache answers"
    if handle.ready():
        return (
            f"run {handle.run_id}: ended a short while ago under this execution_id, and its result counts; give the "
            "plan another one for a new run"
        )
    return f"run {handle.run_id}: {'joined, it was under way' if handle.joined else 'submitted'}"


def _status_line(status: RunStatus) -> str:
    doing = {
        (RunState.QUEUED, "generate"): "waits for a model",
        (RunState.RUNNING, "generate"): "a model writes",
        (RunState.QUEUED, "sandbox"): "waits for a sandbox",
        (RunState.RUNNING, "sandbox"): "its tests run",
    }.get((status.state, status.stage.value), "")
    return f"iteration {status.iteration} of {status.max_iterations}: {doing}"
