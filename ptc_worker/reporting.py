"""What a run tells while this process works on it: gathered at once, sent a moment later, and never waited for."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from ptc_contracts.events import Addition, StreamEventType, StreamMessage
from ptc_contracts.run import share_done

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ptc_contracts.run import Run
    from ptc_contracts.work import WorkStore
    from ptc_worker.redaction import Redactor

log = structlog.get_logger(__name__)

GATHER_SECONDS = 0.05
"""How long messages wait for others that go with them: people do not see it, and the server is asked less often."""

MOST_WAITING = 2_000
"""Messages of one run that wait for the server; what comes on top, while it is away, is lost."""

_RETRY_SECONDS = 1.0


class _Telling:
    """Messages that are sent together; they are written once, however often they are sent."""

    def __init__(self, name: str, messages: Sequence[StreamMessage], redactor: Redactor) -> None:
        self.name = name
        self._messages = messages
        self._redactor = redactor

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The messages as they are sent, without secrets; what cannot be written is left out."""
        return tuple(text for message in self._messages if (text := self._written(message)))

    def _written(self, message: StreamMessage) -> str:
        try:
            clean = {
                name: self._redactor.value(getattr(message, name)) for name in ("message", "data", "error")
            }
            told = {**message.model_dump(mode="json", exclude=set(clean)), **clean}
            text = json.dumps(
                {name: value for name, value in told.items() if value is not None}, ensure_ascii=False
            )
        except (TypeError, ValueError) as error:
            log.warning("event_left_out", kind=message.event_type.value, error=type(error).__name__)
            return ""
        return text.encode(errors="replace").decode()


class Reporter:
    """Gathers what one run tells for the time that this process holds it."""

    def __init__(self, run: Run, redactor: Redactor, wake: threading.Event, *, output: bool = True) -> None:
        self.run = run
        self.redactor = redactor
        self.output = output
        """Whether what models write is told, and not only how much it is."""
        self._wake = wake
        self._lock = threading.Lock()  # held for moments, never while anything is sent
        self._waiting: list[StreamMessage] = []
        self._sending: _Telling | None = None
        self._lost = 0
        self._tellings = 0
        self._progress = share_done(run.stage, run.progress.iteration, run.plan.max_iterations)

    def tell(
        self, kind: StreamEventType, message: str | None = None, *, error: str | None = None, **data: object
    ) -> None:
        """Tell something; this takes microseconds, and nothing can go wrong that the caller would have to know."""
        told = self.worded(kind, message, error=error, **data)
        with self._lock:
            if len(self._waiting) >= MOST_WAITING:
                self._lost += 1
                return
            self._waiting.append(told)
        self._wake.set()

    def worded(
        self, kind: StreamEventType, message: str | None = None, *, error: str | None = None, **data: object
    ) -> StreamMessage:
        """Make a message of this run and its stage."""
        return StreamMessage(
            event_type=kind,
            execution_id=self.run.plan.execution_id,
            stage=self.run.stage.value,
            progress=self._progress,
            message=message,
            data=data or None,
            error=error,
        )

    def drained(self) -> Addition:
        """Take what is not known to have arrived: it goes with what moves the run on, and before it."""
        with self._lock:
            doubtful, rest = self._sending, _Telling("", self._taken(), self.redactor)
        return self._told(doubtful, rest.texts)

    def send(self, store: WorkStore) -> bool:
        """Send what waits; return whether all of it has been dealt with. One thread does this.

        What may have arrived is sent again as it was, until it is known to have. Messages of a run that is somebody
        else's by now are dropped.
        """
        with self._lock:
            if self._sending is None and self._waiting:
                self._tellings += 1
                name = f"{self.run.fence}:{self._tellings}"
                self._sending = _Telling(name, self._taken(), self.redactor)
            sending = self._sending
        if sending is None:
            return True
        try:
            store.tell(self.run, self._told(sending))
        except (RedisError, OSError) as error:
            log.debug("events_not_sent", run=self.run.run_id, error=type(error).__name__)
            return False
        with self._lock:
            self._sending = None
            return not self._waiting

    def _told(self, telling: _Telling | None, more: tuple[str, ...] = ()) -> Addition:
        opening = "".join(_Telling("", [self._opening()], self.redactor).texts)
        if telling is None:
            return Addition(opening=opening, messages=more)
        return Addition(
            opening=opening,
            telling=telling.name,
            doubtful=len(telling.texts),
            messages=(*telling.texts, *more),
        )

    def _taken(self) -> list[StreamMessage]:
        taken, self._waiting = self._waiting, []
        if self._lost:
            words = f"{self._lost} messages were lost while Redis was away"
            taken.append(self.worded(StreamEventType.WARNING, words, lost=self._lost))
            self._lost = 0
        return taken

    def _opening(self) -> StreamMessage:
        run = self.run
        return self.worded(
            StreamEventType.EXECUTION_STARTED,
            "a worker has begun",
            run_id=run.run_id,
            key=run.key,
            max_iterations=run.plan.max_iterations,
        )


class Publisher:
    """Sends what all runs of this process tell, from one thread."""

    def __init__(self, store: WorkStore, redactor: Redactor, *, output: bool) -> None:
        self._store = store
        self._redactor = redactor
        self._output = output
        self._reporters: set[Reporter] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        threading.Thread(target=self._work, name="ptc-events", daemon=True).start()

    @contextmanager
    def reporting(self, run: Run) -> Iterator[Reporter]:
        """Let a run tell for the time of the block; what was not drained or sent by then is lost."""
        reporter = Reporter(run, self._redactor, self._wake, output=self._output)
        with self._lock:
            self._reporters.add(reporter)
        try:
            yield reporter
        finally:
            with self._lock:
                self._reporters.discard(reporter)

    def _work(self) -> None:
        pause = threading.Event()
        while True:
            self._wake.wait()
            pause.wait(GATHER_SECONDS)
            self._wake.clear()
            with self._lock:
                reporters = list(self._reporters)
            try:
                if [reporter for reporter in reporters if not reporter.send(self._store)]:
                    pause.wait(_RETRY_SECONDS)
                    self._wake.set()
            except Exception:
                log.exception("events_failed")  # a thread that ended here would be missed by nobody
