"""Waits for a run, shows what happens on the way, and looks after it where nobody else does."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from math import inf
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ptc_contracts import ServerUnavailableError
from ptc_contracts.events import ENDS
from ptc_contracts.progress import IterationNote
from ptc_contracts.run import RunState
from roma_bridge.serving import missing_workers
from roma_bridge.show.recorded import told_by_history, told_by_record
from roma_bridge.show.shown import show_run
from roma_bridge.show.view import RunView
from roma_bridge.terminal import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ptc_contracts import PTCArtifactResult
    from ptc_contracts.events import StreamMessage
    from ptc_contracts.stages import Stage
    from roma_bridge.handle import PlanHandle
    from roma_bridge.local import LocalStack
    from roma_bridge.show.shown import ShownRun

GLANCE_SECONDS = 0.1
"""How often it is looked whether a run of many has ended, or whether Redis is back."""

HEARING_SECONDS = 0.5
"""How long a run is listened to before anything else is looked after."""

OVERDUE_SECONDS = 2.0
"""How often a run is looked at that may be over while no worker is there to end it."""

NO_WORKER_SECONDS = 3.0
"""After which time without any step it is asked whether there is a worker."""

FETCH_SECONDS = 30.0
"""How long a result may take that is there."""


def follow(
    handle: PlanHandle, timeout: float | None, here: LocalStack | None, *, quiet: bool = False
) -> PTCArtifactResult:
    """Wait for the result, and show what happens on the way, on standard error.

    Args:
        handle: The run.
        timeout: Seconds; the run goes on after them.
        here: What runs for this command, if anything does.
        quiet: Show only what somebody has to do something about.

    Raises:
        RunNotFinishedError: the time is over.
        ServerUnavailableError: the time is over, and Redis cannot be reached.
        ConfigurationError: the worker that runs for this command has ended.
    """
    view = RunView(datetime.now(UTC), one_line(handle.plan.execution_id), handle.run_id)
    with show_run(view, quiet=quiet) as shown:
        shown.say(submission_line(handle))
        ended = handle.from_cache or Following(handle, view, shown, here).until_end(timeout)
        result = handle.get(timeout=FETCH_SECONDS if ended else 0)
        if not result.from_cache:
            _take_all(shown, told_by_history(_history(result), view))
    return result


def _history(result: PTCArtifactResult) -> Iterator[IterationNote]:
    """Give the iterations that can be read; a newer worker's, or a stranger's, are not worth a result."""
    told = result.metadata.get("history")
    for note in told if isinstance(told, list) else ():
        with suppress(ValidationError):
            yield IterationNote.model_validate(note)


class Following:
    """Follows one run to its end, through outages."""

    def __init__(self, handle: PlanHandle, view: RunView, shown: ShownRun, here: LocalStack | None) -> None:
        self._handle = handle
        self._view = view
        self._shown = shown
        self._here = here
        self._ear = Ear(handle)
        self._started = time.monotonic()
        self._away = False
        self._asked_for_workers = here is not None

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def until_end(self, timeout: float | None) -> bool:
        """Show what comes until the run has ended or the time is over; tell whether it has ended."""
        while True:
            if self._here:
                self._here.check()
            left = max(inf if timeout is None else timeout - self._seconds, 0)
            try:
                if self._hear(left):
                    return True
            except ServerUnavailableError as error:
                if not left:
                    raise
                self._note_outage(error)
            if not left:
                return False

    def _hear(self, left: float) -> bool:
        """Show what comes in a while, or look at the record where nothing does; tell whether the run has ended."""
        end, came = time.monotonic() + left, False
        for message in self._ear.news(min(HEARING_SECONDS, left)):
            came = True
            self._away = False
            self._shown.take(message)
            if time.monotonic() > end:
                break
        return self._ear.over or (not came and self._look())

    def _look(self) -> bool:
        """Look at the record of a run that tells nothing just now; tell whether it has ended."""
        status = self._handle.status()
        self._away = False
        if status.state is RunState.ENDED:
            _take_all(self._shown, self._ear.news(HEARING_SECONDS))
            return True
        if not self._ear.heard:
            _take_all(self._shown, told_by_record(status, self._view))
        if status.state is RunState.QUEUED and self._seconds > NO_WORKER_SECONDS:
            self._ask_for_workers(status.stage)
        return False

    def _ask_for_workers(self, stage: Stage) -> None:
        if not self._asked_for_workers:
            self._asked_for_workers = True
            if missing := missing_workers(self._handle.ptc, [stage]):
                self._shown.warn(missing)

    def _note_outage(self, error: ServerUnavailableError) -> None:
        if not self._away:
            self._away = True
            self._shown.warn(f"{error}; waiting for it")
        time.sleep(GLANCE_SECONDS)


class Ear:
    """Hears a run in a thread of its own, from its start to its end and through outages, and keeps what comes."""

    def __init__(self, handle: PlanHandle) -> None:
        self.over = False
        """Whether the run has told its end."""
        self.heard = False
        """Whether there was ever a message."""
        self._kept: SimpleQueue[StreamMessage | Exception] = SimpleQueue()
        threading.Thread(target=self._listen, args=(handle,), name="ptc-ear", daemon=True).start()

    def news(self, seconds: float) -> Iterator[StreamMessage]:
        """Give what has come, and what comes within so many seconds.

        Raises:
            PTCError: there is nothing to hear, and there will not be.
        """
        end = time.monotonic() + seconds
        with suppress(Empty):
            while not self.over:
                yield self._next(max(end - time.monotonic(), 0))

    def _next(self, seconds: float) -> StreamMessage:
        message = self._kept.get(timeout=seconds)
        if isinstance(message, Exception):
            raise message
        self.heard = True
        self.over = message.event_type in ENDS
        return message

    def _listen(self, handle: PlanHandle) -> None:
        try:
            for message in handle.events():
                self._kept.put(message)
        except Exception as error:  # noqa: BLE001 it is raised where somebody wants the news
            self._kept.put(error)


def _take_all(shown: ShownRun, messages: Iterator[StreamMessage]) -> None:
    for message in messages:
        shown.take(message)


def submission_line(handle: PlanHandle) -> str:
    """Say what became of a submission."""
    if handle.from_cache:
        return f"plan {handle.key}: the cache answers"
    if handle.onlooker:
        return f"run {handle.run_id}: {'had ended before' if handle.ready() else 'watched; nothing of it changes by that'}"
    if handle.ready():
        return (
            f"run {handle.run_id}: ended a short while ago under this execution_id, and its result counts; give the "
            "plan another one for a new run"
        )
    return f"run {handle.run_id}: {'joined, it was under way' if handle.joined else 'submitted'}"
