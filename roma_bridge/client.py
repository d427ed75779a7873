"""`submit_plan`: the plan goes in, a handle on its run comes back."""

from __future__ import annotations

import codecs
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from math import inf
from typing import TYPE_CHECKING, Any

from celery import Celery
from kombu.exceptions import OperationalError
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ptc_contracts import (
    ExecutionStatus,
    InvalidPlanError,
    PTCArtifactResult,
    PTCError,
    PTCExecutionPlan,
    RunNotFinishedError,
    ServerUnavailableError,
)
from ptc_contracts.blobs import Blobs
from ptc_contracts.keys import cache_key, digest
from ptc_contracts.run import DeadRun, Departure, RunState, RunStatus, Submission
from ptc_contracts.runs import RunStore
from ptc_contracts.settings import RedisSettings
from ptc_contracts.stages import CELERY_SETTINGS, Stage, Unsent
from roma_bridge.defaults import default_expires, read_expires, with_defaults

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SLICE_SECONDS = 2.0
"""How long `get` listens before it looks at the record: an announcement can be lost, the record cannot."""

_RETRY_PAUSE = 0.5
_PATIENCE = (2.0, 1.0, 0.5, 0.25)
"""Seconds that a server may take to answer: callers have timeouts of their own to keep."""

_AWAY = (RedisConnectionError, RedisTimeoutError, OperationalError, OSError)


@dataclass(frozen=True)
class PTC:
    """One PTC installation: the Redis database that its workers serve."""

    settings: RedisSettings = field(default_factory=RedisSettings.from_environment)
    blobs: Blobs = field(default_factory=Blobs.from_environment, repr=False)

    def submit(
        self, plan: PTCExecutionPlan | Mapping[str, Any] | str, *, expires: float | None = None
    ) -> PlanHandle:
        """Submit a plan: a model, a dict or JSON.

        A cached result answers at once, an equal plan that is running is joined, and otherwise a new run is
        made and its message sent.

        Args:
            plan: What to build.
            expires: Seconds that the run may wait for its first start before it ends as TIMEOUT; `PTC_EXPIRES`
                unless given, for ever where neither is. Of several callers the most patient one decides.

        Raises:
            InvalidPlanError: the plan breaks the contract; every field that does is named.
            PayloadTooLargeError: the plan is larger than `PTC_MAX_PAYLOAD_MB`.
            ConfigurationError: a default from the environment does not fit the plan, or `expires` is no number of
                seconds.
            ServerUnavailableError: Redis cannot be reached; nothing was submitted, or the next submission of
                the same plan finds what was.
        """
        checked = read_plan(plan)
        patience = default_expires() if expires is None else read_expires("expires", expires)
        with self._reaching():
            submission = self.store.submit(checked, expires=patience)
        return self._following(checked, submission)

    def cancel(
        self, run_id: str, execution_id: str | None = None, *, force: bool = False
    ) -> tuple[Departure, int]:
        """Take a caller away from a run, and stop it if nobody else waits; return how many others do.

        A run that stops ends as FAILURE, "cancelled", within a second or two; its claim is free at once.

        Args:
            run_id: The run.
            execution_id: Which caller leaves; where only one waits, it need not be named.
            force: Stop the run even if others wait for it; all of them get its end.

        Raises:
            RunNotFoundError: there is no such run, or no longer.
            ServerUnavailableError: Redis cannot be reached.
        """
        with self._reaching():
            return self.store.cancel(run_id, execution_id, force=force)

    def workers_answer(self, seconds: float = 1.0) -> bool:
        """Ask all workers, and tell whether one answers within so many seconds.

        Raises:
            ServerUnavailableError: Redis cannot be reached.
        """
        with self._reaching():
            return bool(self.app.control.ping(timeout=seconds))

    def dead(self) -> list[DeadRun]:
        """List the runs that were given up because their workers died or fell silent again and again.

        Raises:
            ServerUnavailableError: Redis cannot be reached.
        """
        with self._reaching():
            return self.store.dead()

    def revive(self, run_id: str) -> PlanHandle:
        """Submit the plan of a run that was given up again; what was paid for is not paid for again.

        Raises:
            RunNotFoundError: it is not in the list of the dead.
            ServerUnavailableError: Redis cannot be reached.
        """
        with self._reaching():
            plan, submission = self.store.revive(run_id)
        return self._following(plan, submission)

    @property
    def store(self) -> RunStore:
        """The run records."""
        return self.store_within(_PATIENCE[0])

    def store_within(self, seconds: float) -> RunStore:
        """The run records, from a server that has at most about so many seconds to answer."""
        patience = next((p for p in _PATIENCE if p <= seconds), _PATIENCE[-1])
        return _store(self.settings, self.blobs, patience)

    @property
    def app(self) -> Celery:
        """A Celery application that sends tasks, by name."""
        return _app(self.settings)

    def _following(self, plan: PTCExecutionPlan, submission: Submission) -> PlanHandle:
        if submission.unsent:
            self._publish(submission.unsent)
        return PlanHandle(
            ptc=self, plan=plan, run_id=submission.run_id, joined=submission.joined, _hit=submission.hit
        )

    def _publish(self, owed: Unsent) -> None:
        """Send a message; where it cannot be sent, the workers' recovery sends it, and the caller need not know."""
        with suppress(Exception):  # kombu raises anything while it loses a connection, even AttributeError
            self.app.send_task(**owed.as_task())
            self.store.mark_published(owed)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, *_AWAY) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> ServerUnavailableError:
        if isinstance(error, AuthenticationError):
            return ServerUnavailableError(
                f"Redis at {self.settings.shown} wants another password ({error}): set REDIS_PASSWORD, or REDIS_URL"
            )
        if isinstance(error, ResponseError):
            return ServerUnavailableError(f"Redis at {self.settings.shown} refuses: {error}")
        return ServerUnavailableError(
            f"Redis at {self.settings.shown} cannot be reached ({type(error).__name__}): start it, or set REDIS_URL"
        )


@dataclass(frozen=True)
class PlanHandle:
    """Follows one submitted plan to its result."""

    ptc: PTC = field(repr=False)
    plan: PTCExecutionPlan = field(repr=False)
    run_id: str
    """The run that works on the plan; empty when the cache answered."""
    joined: bool = False
    """Whether the run was started by somebody else's submission."""
    _hit: PTCArtifactResult | None = field(default=None, repr=False)

    @property
    def key(self) -> str:
        """The plan's cache key."""
        return cache_key(self.plan)

    @property
    def from_cache(self) -> bool:
        """Whether the cache answered, so that there is no run."""
        return self._hit is not None

    def ready(self) -> bool:
        """Tell whether the result is there."""
        return self._hit is not None or self.status().state is RunState.ENDED

    def status(self) -> RunStatus:
        """Tell where the run is.

        Raises:
            RunNotFoundError: its record has expired.
            ServerUnavailableError: Redis cannot be reached.
        """
        if self._hit is not None:
            return RunStatus(
                run_id="",
                state=RunState.ENDED,
                stage=Stage.GENERATE,
                iteration=0,
                max_iterations=self.plan.max_iterations,
                status=ExecutionStatus.CACHE_HIT,
            )
        with self.ptc._reaching():  # noqa: SLF001 one room
            return self.ptc.store.status(self.run_id)

    def end_if_over(self) -> None:
        """End the run where it is cancelled or out of time and no worker is there to do it.

        Raises:
            ServerUnavailableError: Redis cannot be reached.
        """
        with self.ptc._reaching():  # noqa: SLF001 one room
            self.ptc.store.end_if_over(self.run_id)

    def cancel(self, *, force: bool = False) -> Departure:
        """Leave the run, and stop it if nobody else waits for it, or by force; `get` then returns its end.

        Raises:
            RunNotFoundError: its record has expired.
            ServerUnavailableError: Redis cannot be reached.
        """
        if self._hit is not None:
            return Departure.ENDED
        return self.ptc.cancel(self.run_id, self.plan.execution_id, force=force)[0]

    def get(self, timeout: float | None = None) -> PTCArtifactResult:
        """Wait for the result, at most `timeout` seconds.

        A plan that failed is returned, not raised. The wait survives an outage of Redis; a run that is past
        its deadline while no worker is there is ended from here.

        Raises:
            RunNotFinishedError: the time is over; the run goes on.
            RunNotFoundError: the run's record has expired.
            UnreadableBlobError: the result is damaged, or not signed with this process's `PTC_SIGNING_KEY`.
            ServerUnavailableError: the time is over, and Redis cannot be reached.
        """
        if self._hit is not None:
            return self._hit
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return self._follow(deadline)
            except PTCError:
                raise
            except _AWAY as error:
                if _left(deadline) <= _RETRY_PAUSE:
                    raise self.ptc._unavailable(error) from error  # noqa: SLF001 one room
                time.sleep(_RETRY_PAUSE)

    def _follow(self, deadline: float | None) -> PTCArtifactResult:
        """Listen for the run's end; whatever is heard or missed, the record decides."""
        store = self.ptc.store_within(_left(deadline))
        with store.announcements(self.run_id) as wait:
            while True:
                result = store.result(self.run_id, digest(self.plan)) or store.end_if_over(self.run_id)
                if result is not None:
                    return self._as_ours(result, pays=store.pays(self.run_id, self.plan))
                if (left := min(SLICE_SECONDS, _left(deadline))) <= 0:
                    raise RunNotFinishedError(
                        f"run {self.run_id} has not ended in the time given; it goes on"
                    )
                wait(left)

    def _as_ours(self, result: PTCArtifactResult, *, pays: bool) -> PTCArtifactResult:
        """Give the run's result to this caller: one of several pays, so that sums count nothing twice."""
        update: dict[str, Any] = {"execution_id": self.plan.execution_id}
        if not pays:
            update |= {"llm_usage": [], "metadata": {**result.metadata, "joined_run": self.run_id}}
        return result.model_copy(update=update)


def submit_plan(
    plan: PTCExecutionPlan | Mapping[str, Any] | str, *, expires: float | None = None
) -> PlanHandle:
    """Submit a plan to the installation that the environment names (`REDIS_URL`); see `PTC.submit`.

    Raises:
        InvalidPlanError: the plan breaks the contract.
        PayloadTooLargeError: the plan is larger than `PTC_MAX_PAYLOAD_MB`.
        ServerUnavailableError: Redis cannot be reached.
        ConfigurationError: `REDIS_URL` or one of its companions cannot be understood.
    """
    return PTC().submit(plan, expires=expires)


def read_plan(plan: PTCExecutionPlan | Mapping[str, Any] | str | bytes) -> PTCExecutionPlan:
    """Read a plan, and fill in the installation's defaults where its author left a field unset.

    A model is read again, for it may have been changed or copied without validation since it was made.

    Raises:
        InvalidPlanError: with a line for every field that breaks the contract.
        ConfigurationError: a default from the environment does not fit the plan.
    """
    try:
        if isinstance(plan, str | bytes):
            text = plan.encode() if isinstance(plan, str) else plan
            given = PTCExecutionPlan.model_validate_json(text.removeprefix(codecs.BOM_UTF8))
        else:
            given = PTCExecutionPlan.model_validate(plan)
        return with_defaults(_as_received(given), set_by_author=given.model_fields_set)
    except ValidationError as error:
        lines = [f"{_place(e['loc'])}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
        raise InvalidPlanError("\n".join(lines)) from None
    except (PydanticSerializationError, UnicodeEncodeError) as error:
        raise InvalidPlanError(f"plan: it cannot be written as JSON: {error}") from None


def _as_received(plan: PTCExecutionPlan) -> PTCExecutionPlan:
    """Give the plan as a worker will read it; values that do not fit their fields are refused on the way."""
    return PTCExecutionPlan.model_validate_json(plan.model_dump_json(warnings=False))


def _place(location: tuple[int | str, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".") or "plan"


def _left(deadline: float | None) -> float:
    return inf if deadline is None else deadline - time.monotonic()


@cache
def _store(settings: RedisSettings, blobs: Blobs, patience: float) -> RunStore:
    return RunStore.connect(settings, blobs, patience=patience)


@cache
def _app(settings: RedisSettings) -> Celery:
    # No result backend: Celery's would subscribe to each task it sends and keep that for ever.
    app = Celery("ptc-client", broker=settings.celery_url, set_as_current=False)
    app.conf.update(CELERY_SETTINGS)
    app.conf.task_publish_retry = False  # what cannot be sent now, the workers' recovery sends
    return app
