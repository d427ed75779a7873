"""`submit_plan`: the plan goes in, a handle on its run comes back."""

from __future__ import annotations

import codecs
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from celery import Celery
from kombu.exceptions import OperationalError
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
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
from ptc_contracts.keys import cache_key
from ptc_contracts.run import RunState, RunStatus
from ptc_contracts.runs import RunStore
from ptc_contracts.settings import RedisSettings
from ptc_contracts.stages import CELERY_SETTINGS, Stage, stage_message
from roma_bridge.defaults import with_defaults

if TYPE_CHECKING:
    from collections.abc import Mapping

SLICE_SECONDS = 2.0
"""How long `get` listens before it looks at the record: an announcement can be lost, the record cannot."""

_RETRY_PAUSE = 0.5
_AWAY = (RedisConnectionError, RedisTimeoutError, OperationalError, OSError)


@dataclass(frozen=True)
class PTC:
    """One PTC installation: the Redis database that its workers serve."""

    settings: RedisSettings = field(default_factory=RedisSettings.from_environment)

    def submit(self, plan: PTCExecutionPlan | Mapping[str, Any] | str) -> PlanHandle:
        """Submit a plan: a model, a dict or JSON.

        A cached result answers at once, an equal plan that is running is joined, and otherwise a new run is
        made and its message sent.

        Raises:
            InvalidPlanError: the plan breaks the contract; every field that does is named.
            ConfigurationError: a default from the environment does not fit the plan.
            ServerUnavailableError: Redis cannot be reached; nothing was submitted, or the next submission of
                the same plan finds what was.
        """
        checked = read_plan(plan)
        try:
            submission = self.store.submit(checked)
        except (RedisError, *_AWAY) as error:
            raise self._unavailable(error) from error
        if submission.unpublished:
            # A run without its message is published by the workers' recovery; the caller need not know.
            with suppress(RedisError, *_AWAY):
                self._publish(submission.run_id, cache_key(checked))
        return PlanHandle(
            ptc=self, plan=checked, run_id=submission.run_id, joined=submission.joined, _hit=submission.hit
        )

    @property
    def store(self) -> RunStore:
        """The run records."""
        return _store(self.settings)

    @property
    def app(self) -> Celery:
        """A Celery application that sends tasks, by name."""
        return _app(self.settings)

    def _publish(self, run_id: str, key: str) -> None:
        self.app.send_task(**stage_message(Stage.GENERATE, run_id, key, iteration=1))
        self.store.mark_published(run_id, Stage.GENERATE, 1)

    def _unavailable(self, error: Exception) -> ServerUnavailableError:
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
        try:
            return self.ptc.store.status(self.run_id)
        except _AWAY as error:
            raise self.ptc._unavailable(error) from error  # noqa: SLF001 one room

    def get(self, timeout: float | None = None) -> PTCArtifactResult:
        """Wait for the result, at most `timeout` seconds.

        A plan that failed is returned, not raised. The wait survives an outage of Redis; a run that is past
        its deadline while no worker is there is ended from here.

        Raises:
            RunNotFinishedError: the time is over; the run goes on.
            RunNotFoundError: the run's record has expired.
            ServerUnavailableError: the time is over, and Redis cannot be reached.
        """
        if self._hit is not None:
            return self._hit
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return self._as_ours(self._follow(deadline))
            except PTCError:
                raise
            except _AWAY as error:
                if deadline is not None and time.monotonic() + _RETRY_PAUSE >= deadline:
                    raise self.ptc._unavailable(error) from error  # noqa: SLF001 one room
                time.sleep(_RETRY_PAUSE)

    def _follow(self, deadline: float | None) -> PTCArtifactResult:
        """Listen for the run's end; whatever is heard or missed, the record decides."""
        store = self.ptc.store
        with store.announcements(self.run_id) as wait:
            while True:
                if result := store.result(self.run_id) or store.end_if_overdue(self.run_id):
                    return result
                left = SLICE_SECONDS if deadline is None else min(SLICE_SECONDS, deadline - time.monotonic())
                if left <= 0:
                    raise RunNotFinishedError(
                        f"run {self.run_id} has not ended in the time given; it goes on"
                    )
                wait(left)

    def _as_ours(self, result: PTCArtifactResult) -> PTCArtifactResult:
        """Give the run's result to this caller: who joined pays nothing, so that sums count nothing twice."""
        update: dict[str, Any] = {"execution_id": self.plan.execution_id}
        if self.joined:
            update |= {"llm_usage": [], "metadata": {**result.metadata, "joined_run": self.run_id}}
        return result.model_copy(update=update)


def submit_plan(plan: PTCExecutionPlan | Mapping[str, Any] | str) -> PlanHandle:
    """Submit a plan to the installation that the environment names (`REDIS_URL`).

    Raises:
        InvalidPlanError: the plan breaks the contract.
        ServerUnavailableError: Redis cannot be reached.
        ConfigurationError: `REDIS_URL` or one of its companions cannot be understood.
    """
    return PTC().submit(plan)


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


@cache
def _store(settings: RedisSettings) -> RunStore:
    return RunStore.connect(settings, patience=2.0)  # callers have timeouts of their own to keep


@cache
def _app(settings: RedisSettings) -> Celery:
    # No result backend: Celery's would subscribe to each task it sends and keep that for ever.
    app = Celery("ptc-client", broker=settings.celery_url, set_as_current=False)
    app.conf.update(CELERY_SETTINGS)
    return app
