"""`submit_plan` and its kin: plans go in, handles on their runs come back."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from math import inf
from typing import TYPE_CHECKING, Any

from ptc_contracts import ConfigurationError, ExecutionStatus, PayloadTooLargeError, ServerUnavailableError
from ptc_contracts.blobs import Blobs
from ptc_contracts.listing import list_runs as list_runs_of
from ptc_contracts.run import RunState
from ptc_contracts.runs import RunStore
from ptc_contracts.settings import RedisSettings
from ptc_contracts.stages import CELERY_SETTINGS, Priority, Unsent
from ptc_contracts.submitting import Offer
from roma_bridge.arguments import require_run_id, require_timeout
from roma_bridge.batch import Batch
from roma_bridge.defaults import default_expires, read_expires
from roma_bridge.handle import PlanHandle
from roma_bridge.plans import numbered, read_plan, read_plans
from roma_bridge.reaching import patience_within, reaching, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from celery import Celery
    from kombu import Producer

    from ptc_contracts import PTCExecutionPlan
    from ptc_contracts.run import DeadRun, Departure, RunPage, Submission

    PlanLike = PTCExecutionPlan | Mapping[str, Any] | str

_AT_ONCE = 50
"""Plans that are submitted in one round trip: the server serves nobody else for 5 ms then."""


@dataclass(frozen=True)
class PTC:
    """One PTC installation: the Redis database that its workers serve."""

    settings: RedisSettings = field(default_factory=RedisSettings.from_environment)
    blobs: Blobs = field(default_factory=Blobs.from_environment, repr=False)

    def submit(
        self, plan: PlanLike, *, priority: Priority | str | None = None, expires: float | None = None
    ) -> PlanHandle:
        """Submit a plan: a model, a dict or JSON.

        A cached result answers at once, an equal plan that is running is joined, and otherwise a new run is
        made and its message sent.

        Args:
            plan: What to build.
            priority: `high`, `normal` (unless given) or `low`: which place the run takes among those that nobody
                has begun. Of several callers the one in the greatest hurry decides. A run that was begun goes
                before all of them.
            expires: Seconds that the run may wait for its first start before it ends as TIMEOUT; `PTC_EXPIRES`
                unless given, for ever where neither is. Of several callers the most patient one decides.

        Raises:
            InvalidPlanError: the plan breaks the contract; every field that does is named.
            PayloadTooLargeError: the plan is larger than `PTC_MAX_PAYLOAD_MB`.
            ConfigurationError: a default from the environment does not fit the plan, `expires` is no number of
                seconds, or `priority` none of the three.
            ServerUnavailableError: Redis cannot be reached; nothing was submitted, or the next submission of
                the same plan finds what was.
        """
        offer = self._offer(read_plan(plan), priority, expires)
        with reaching(self.settings):
            ((_, submission),) = self.store.submit_all([offer])
        return self._following(offer.plan, submission)

    async def submit_async(
        self, plan: PlanLike, *, priority: Priority | str | None = None, expires: float | None = None
    ) -> PlanHandle:
        """Submit a plan as `submit` does, in a thread: it takes milliseconds, and as long as Redis in an outage.

        A task that is cancelled meanwhile may have submitted its plan.
        """
        return await asyncio.to_thread(self.submit, plan, priority=priority, expires=expires)

    def submit_many(
        self,
        plans: Iterable[PlanLike],
        *,
        priority: Priority | str | None = None,
        expires: float | None = None,
    ) -> list[PlanHandle]:
        """Submit many plans in a few round trips; every plan is read before the first one is submitted.

        Raises:
            InvalidPlanError: with a line for every field of every plan that breaks the contract, such as
                `plans[3].max_iterations: …`.
            PayloadTooLargeError, ConfigurationError: as `submit` does; nothing was submitted.
            ServerUnavailableError: Redis cannot be reached any more. What was submitted goes on, and whoever
                submits the same plans again finds it.
        """
        batch = self.submit_plans(plans, priority=priority, expires=expires)
        if batch.interrupted:
            raise batch.interrupted
        return batch.handles

    def submit_plans(
        self,
        plans: Iterable[PlanLike],
        *,
        priority: Priority | str | None = None,
        expires: float | None = None,
        timeout: float | None = None,
    ) -> Batch:
        """Submit many plans as `submit_many` does, to iterate over their results as they come.

        An outage that comes half-way is raised by the iteration, after the results of what was submitted.

        Raises:
            InvalidPlanError, PayloadTooLargeError, ConfigurationError: as `submit_many` does.
            ServerUnavailableError: Redis cannot be reached, and nothing was submitted.
        """
        require_timeout(timeout)
        read = read_plans(plans)
        offers = [self._offer(plan, priority, expires) for plan in read]
        self._require_small(read)
        batch = Batch(timeout=timeout)
        try:
            with reaching(self.settings):
                for start in range(0, len(offers), _AT_ONCE):
                    self._submit_together(offers[start : start + _AT_ONCE], batch.handles)
        except ServerUnavailableError as error:
            if not batch.handles:
                raise
            batch.interrupted = ServerUnavailableError(
                f"{len(offers) - len(batch.handles)} of {len(offers)} plans may not have been submitted: {error}"
            )
        batch.handles[:] = _each_cost_once(batch.handles)
        return batch

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
        require_run_id(run_id)
        with reaching(self.settings):
            return self.store.cancel(run_id, execution_id, force=force)

    def list_runs(
        self,
        *,
        state: RunState | str | None = None,
        key: str | None = None,
        status: ExecutionStatus | str | None = None,
        project: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> RunPage:
        """List runs, the newest first; those whose record has expired are not known any more.

        Args:
            state: Only those that are `queued` (the next stage has not begun), `running`, or `ended`.
            key: Only those of plans with this cache key.
            status: Only those that ended so, such as `SUCCESS`.
            project: Only those whose plan has this `project_name`.
            limit: The most runs of the page, 1000 at most.
            cursor: Where the list goes on: the cursor of the page before.

        Raises:
            ValueError: an argument cannot be understood.
            ServerUnavailableError: Redis cannot be reached.
        """
        with reaching(self.settings):
            return list_runs_of(
                self.store.redis,
                state=None if state is None else RunState(state),
                key=key,
                status=None if status is None else ExecutionStatus(status),
                project=project,
                limit=limit,
                cursor=cursor,
            )

    def served(self, seconds: float = 1.0) -> set[str]:
        """Ask all workers, and name the queues that those serve which answer within so many seconds.

        Raises:
            ServerUnavailableError: Redis cannot be reached.
        """
        from kombu.exceptions import OperationalError

        try:
            with reaching(self.settings):
                answers = self.app.control.inspect(timeout=seconds).active_queues() or {}
        except OperationalError as error:
            raise unavailable(self.settings, error) from error
        lists = (queues for queues in answers.values() if isinstance(queues, list))  # else an error
        return {queue["name"] for queues in lists for queue in queues}

    def ping(self) -> None:
        """Make sure that the server answers.

        Raises:
            ServerUnavailableError: it does not.
        """
        with reaching(self.settings):
            self.store.redis.ping()

    def dead(self) -> list[DeadRun]:
        """List the runs that were given up because their workers died or fell silent again and again.

        Raises:
            ServerUnavailableError: Redis cannot be reached.
        """
        with reaching(self.settings):
            return self.store.dead()

    def revive(self, run_id: str) -> PlanHandle:
        """Submit the plan of a run that was given up again; what was paid for is not paid for again.

        Raises:
            RunNotFoundError: it is not in the list of the dead.
            ServerUnavailableError: Redis cannot be reached.
        """
        require_run_id(run_id)
        with reaching(self.settings):
            plan, submission = self.store.revive(run_id)
        return self._following(plan, submission)

    @property
    def store(self) -> RunStore:
        """The run records."""
        return self.store_within(inf)

    def store_within(self, seconds: float) -> RunStore:
        """The run records, from a server that has at most about so many seconds to answer."""
        return _store(self.settings, self.blobs, patience_within(seconds))

    @property
    def app(self) -> Celery:
        """A Celery application that sends tasks, by name."""
        return _app(self.settings)

    def _offer(self, plan: PTCExecutionPlan, priority: Priority | str | None, expires: float | None) -> Offer:
        patience = default_expires() if expires is None else read_expires("expires", expires)
        return Offer(plan, patience, _read_priority(priority))

    def _require_small(self, plans: list[PTCExecutionPlan]) -> None:
        for number, plan in enumerate(plans):
            try:
                self.store.form.small(plan)
            except PayloadTooLargeError as error:
                raise PayloadTooLargeError(numbered(number, str(error))) from None

    def _submit_together(self, offers: list[Offer], handles: list[PlanHandle]) -> None:
        """Submit a few plans at once, send their messages, and add their handles."""
        became: dict[int, Submission] = {}
        try:
            for offer, submission in self.store.submit_all(offers):
                became[id(offer)] = submission
        finally:
            self._publish([submission.unsent for submission in became.values() if submission.unsent])
            handles += [self._handle(o.plan, became[id(o)]) for o in offers if id(o) in became]

    def _following(self, plan: PTCExecutionPlan, submission: Submission) -> PlanHandle:
        if submission.unsent:
            self._publish([submission.unsent])
        return self._handle(plan, submission)

    def _handle(self, plan: PTCExecutionPlan, submission: Submission) -> PlanHandle:
        return PlanHandle(
            ptc=self, plan=plan, run_id=submission.run_id, joined=submission.joined, _hit=submission.hit
        )

    def _publish(self, owed: list[Unsent]) -> None:
        """Send messages; where they cannot be sent, the workers' recovery sends them, and the caller need not know."""
        if not owed:
            return
        with suppress(Exception):  # kombu raises anything while it loses a connection, even AttributeError
            with self._one_round_trip(len(owed)) as producer:
                for unsent in owed:
                    self.app.send_task(**unsent.as_task(), producer=producer)
            self.store.mark_published(*owed)

    @contextmanager
    def _one_round_trip(self, messages: int) -> Iterator[Producer]:
        with self.app.producer_or_acquire() as producer:
            if messages == 1:  # a batch costs as much as three messages
                yield producer
                return
            with producer.batch(messages):
                yield producer


def _each_cost_once(handles: Iterable[PlanHandle]) -> Iterator[PlanHandle]:
    """Let a caller who gave a plan twice count what its run costs once."""
    callers = set()
    for handle in handles:
        caller = (handle.run_id, handle.plan.execution_id)
        yield handle.as_repeated() if handle.run_id and caller in callers else handle
        callers.add(caller)


def submit_plan(
    plan: PlanLike, *, priority: Priority | str | None = None, expires: float | None = None
) -> PlanHandle:
    """Submit a plan to the installation that the environment names (`REDIS_URL`); see `PTC.submit`.

    Raises:
        InvalidPlanError: the plan breaks the contract.
        PayloadTooLargeError: the plan is larger than `PTC_MAX_PAYLOAD_MB`.
        ServerUnavailableError: Redis cannot be reached.
        ConfigurationError: `REDIS_URL` or one of its companions cannot be understood, or an argument.
    """
    return PTC().submit(plan, priority=priority, expires=expires)


async def submit_plan_async(
    plan: PlanLike, *, priority: Priority | str | None = None, expires: float | None = None
) -> PlanHandle:
    """Submit a plan as `submit_plan` does, and let the event loop go on meanwhile; see `PTC.submit_async`."""
    return await PTC().submit_async(plan, priority=priority, expires=expires)


def submit_plans(
    plans: Iterable[PlanLike],
    *,
    priority: Priority | str | None = None,
    expires: float | None = None,
    timeout: float | None = None,
) -> Batch:
    """Submit many plans at once, to iterate over their results as they come; see `PTC.submit_plans`.

    Raises:
        InvalidPlanError: a plan breaks the contract; none was submitted.
        PayloadTooLargeError: a plan is larger than `PTC_MAX_PAYLOAD_MB`; none was submitted.
        ServerUnavailableError: Redis cannot be reached.
        ConfigurationError: `REDIS_URL` or one of its companions cannot be understood, or an argument.
    """
    return PTC().submit_plans(plans, priority=priority, expires=expires, timeout=timeout)


def list_runs(
    *,
    state: RunState | str | None = None,
    key: str | None = None,
    status: ExecutionStatus | str | None = None,
    project: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> RunPage:
    """List the runs of the installation that the environment names, the newest first; see `PTC.list_runs`.

    Raises:
        ValueError: an argument cannot be understood.
        ServerUnavailableError: Redis cannot be reached.
        ConfigurationError: `REDIS_URL` or one of its companions cannot be understood.
    """
    return PTC().list_runs(state=state, key=key, status=status, project=project, limit=limit, cursor=cursor)


def _read_priority(value: Priority | str | None) -> Priority:
    try:
        return Priority.NORMAL if value is None else Priority(value)
    except ValueError:
        names = ", ".join(priority.value for priority in Priority)
        raise ConfigurationError(f"priority={value!r} is none of {names}") from None


@cache
def _store(settings: RedisSettings, blobs: Blobs, patience: float) -> RunStore:
    return RunStore.connect(settings, blobs, patience=patience)


@cache
def _app(settings: RedisSettings) -> Celery:
    from celery import Celery  # slow, and only whoever submits needs it

    # No result backend: Celery's would subscribe to each task it sends and keep that for ever.
    app = Celery("ptc-client", broker=settings.celery_url, set_as_current=False)
    app.conf.update(CELERY_SETTINGS)
    app.conf.task_publish_retry = False  # what cannot be sent now, the workers' recovery sends
    return app
