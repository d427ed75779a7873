"""Follows one submitted plan to its result."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from ptc_contracts import ExecutionStatus, PTCArtifactResult, PTCError, PTCExecutionPlan, RunNotFinishedError
from ptc_contracts.keys import cache_key, digest, run_key
from ptc_contracts.run import Departure, RunState, RunStatus
from ptc_contracts.runs import RESULT_FIELDS, ask_whether_settled, is_payer, read_settled
from ptc_contracts.stages import Stage
from roma_bridge.arguments import require_run_id, require_timeout
from roma_bridge.following import Events
from roma_bridge.listening import SLICE_SECONDS, listening
from roma_bridge.reaching import (
    AWAY,
    RETRY_PAUSE,
    cancellable,
    deadline_after,
    left_until,
    patience_within,
    reaching,
    unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Generator

    from redis.asyncio import Redis as AsyncRedis

    from ptc_contracts.runs import RunStore
    from roma_bridge.client import PTC


@dataclass(frozen=True, eq=False)
class PlanHandle:
    """Follows one submitted plan to its result; `await` gives it, too."""

    ptc: PTC = field(repr=False)
    plan: PTCExecutionPlan = field(repr=False)
    run_id: str
    """The run that works on the plan; empty when the cache answered."""
    joined: bool = False
    """Whether the run was started by somebody else's submission."""
    _hit: PTCArtifactResult | None = field(default=None, repr=False)
    _onlooker: bool = field(default=False, repr=False)
    """Whether whoever holds this submitted nothing: the result is the run's own."""
    _repeats: bool = field(default=False, repr=False)
    """Whether the same caller has another handle for the run, which counts its cost."""

    @classmethod
    def of(cls, run_id: str, ptc: PTC | None = None) -> PlanHandle:
        """Follow a run that was submitted elsewhere, by its id.

        Its plan is the record's, and its result is the run's own, with what it cost: sums over the handles of
        those who submitted it already hold that.

        Args:
            run_id: The run.
            ptc: Where it is; the installation that the environment names unless given.

        Raises:
            RunNotFoundError: there is no such run, or no longer.
            UnreadableBlobError: the plan is damaged, or not signed with this process's `PTC_SIGNING_KEY`.
            ServerUnavailableError: Redis cannot be reached.
        """
        if ptc is None:
            from roma_bridge.client import PTC

            ptc = PTC()
        require_run_id(run_id)
        with reaching(ptc.settings):
            plan = ptc.store.plan(run_id)
        return cls(ptc=ptc, plan=plan, run_id=run_id, _onlooker=True)

    @property
    def key(self) -> str:
        """The plan's cache key."""
        return cache_key(self.plan)

    def as_repeated(self) -> PlanHandle:
        """Give the handle of a caller who submitted the plan a second time: its result counts no cost again."""
        return replace(self, joined=True, _repeats=True)

    @property
    def onlooker(self) -> bool:
        """Whether whoever holds this only follows a run that was submitted elsewhere."""
        return self._onlooker

    @property
    def from_cache(self) -> bool:
        """Whether the cache answered, so that there is no run."""
        return self._hit is not None

    def ready(self) -> bool:
        """Tell whether the result is there.

        Raises:
            RunNotFoundError: the run's record has expired.
            ServerUnavailableError: Redis cannot be reached.
        """
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
        with reaching(self.ptc.settings):
            return self.ptc.store.status(self.run_id)

    def end_if_over(self) -> None:
        """End the run where it is cancelled or out of time and no worker is there to do it.

        Raises:
            ServerUnavailableError: Redis cannot be reached.
        """
        with reaching(self.ptc.settings):
            self.ptc.store.end_if_over(self.run_id)

    def events(self, after: str | None = None, timeout: float | None = None) -> Events:
        """Follow what the run tells, with `for` or `async for`, from its start to its end; what is returned is for one.

        Args:
            after: The id of the last message that the caller has: what came later is told.
            timeout: Seconds after which the iteration ends with RunNotFinishedError; never unless given.

        Raises:
            ConfigurationError: `timeout` is no number of seconds.
        """
        require_timeout(timeout)
        return Events(self, after, timeout)

    def cancel(self, *, force: bool = False) -> Departure:
        """Leave the run, and stop it if nobody else waits for it, or by force; `get` then returns its end.

        A handle made with `of` is no caller's: it stops a run for which one caller waits.

        Raises:
            RunNotFoundError: its record has expired.
            ServerUnavailableError: Redis cannot be reached.
        """
        if self._hit is not None:
            return Departure.ENDED
        caller = None if self._onlooker else self.plan.execution_id
        return self.ptc.cancel(self.run_id, caller, force=force)[0]

    def get(self, timeout: float | None = None) -> PTCArtifactResult:
        """Wait for the result, at most `timeout` seconds.

        A plan that failed is returned, not raised. The wait survives an outage of Redis; a run that is past
        its deadline while no worker is there is ended from here.

        Raises:
            RunNotFinishedError: the time is over; the run goes on.
            RunNotFoundError: the run's record has expired.
            UnreadableBlobError: the result is damaged, or not signed with this process's `PTC_SIGNING_KEY`.
            ServerUnavailableError: the time is over, and Redis cannot be reached.
            ConfigurationError: `timeout` is no number of seconds.
        """
        if self._hit is not None:
            return self._hit
        deadline = deadline_after(timeout)
        while True:
            try:
                return self._follow(deadline)
            except PTCError:
                raise
            except AWAY as error:
                if left_until(deadline) <= RETRY_PAUSE:
                    raise unavailable(self.ptc.settings, error) from error
                time.sleep(RETRY_PAUSE)

    async def get_async(self, timeout: float | None = None) -> PTCArtifactResult:  # noqa: ASYNC109 as `get` has it
        """Wait for the result as `get` does, and let the event loop go on meanwhile.

        However many wait on one loop, they share a connection that listens and a few that look; both are
        closed when the last one leaves.

        Raises:
            RunNotFinishedError: the time is over; the run goes on.
            RunNotFoundError: the run's record has expired.
            UnreadableBlobError: the result is damaged, or not signed with this process's `PTC_SIGNING_KEY`.
            ServerUnavailableError: the time is over, and Redis cannot be reached.
            ConfigurationError: `timeout` is no number of seconds.
        """
        if self._hit is not None:
            return self._hit
        deadline = deadline_after(timeout)
        while True:
            try:
                return await self._follow_async(deadline)
            except PTCError:
                raise
            except AWAY as error:
                if left_until(deadline) <= RETRY_PAUSE:
                    raise unavailable(self.ptc.settings, error) from error
                await asyncio.sleep(RETRY_PAUSE)

    def __await__(self) -> Generator[Any, None, PTCArtifactResult]:
        """Wait for the result, without end."""
        return self.get_async().__await__()

    def _follow(self, deadline: float) -> PTCArtifactResult:
        """Listen for the run's end; whatever is heard or missed, the record decides."""
        store = self.ptc.store_within(left_until(deadline))
        with store.announcements(self.run_id) as wait:
            while True:
                if (result := self.result_in(store)) is not None:
                    return result
                wait(min(SLICE_SECONDS, self._time_left(deadline)))

    async def _follow_async(self, deadline: float) -> PTCArtifactResult:
        """Do the same on an event loop, whose listener looks at the record for all who wait."""
        settings = self.ptc.settings
        async with listening(settings) as listener, listener.announcements(self.run_id) as wait:
            while True:
                async with asyncio.timeout(patience_within(left_until(deadline))):
                    result = await self._result_on(listener.redis)
                if result is not None:
                    return result
                await wait(self._time_left(deadline))

    def _time_left(self, deadline: float) -> float:
        """Tell how many seconds are left.

        Raises:
            RunNotFinishedError: the time is over.
        """
        if (left := left_until(deadline)) <= 0:
            raise RunNotFinishedError(f"run {self.run_id} has not ended in the time given; it goes on")
        return left

    def result_in(self, store: RunStore) -> PTCArtifactResult | None:
        """Read the result that this caller gets; None while the run goes on."""
        result = store.result(self.run_id, digest(self.plan)) or store.end_if_over(self.run_id)
        return result and self._as_ours(result, pays=store.pays(self.run_id, self.plan))

    async def _result_on(self, redis: AsyncRedis) -> PTCArtifactResult | None:
        """Do the same on an event loop; ending a run that is over is rare, and left to a thread."""
        kept = cast(
            "list[bytes | None]",
            await cancellable(redis.hmget(run_key(self.run_id), (*RESULT_FIELDS, "attempt"))),
        )
        *fields, attempt = kept
        result = self.ptc.store.read_result(self.run_id, fields, digest(self.plan))
        if result is not None:
            return self._as_ours(result, pays=is_payer(self.plan, attempt))
        pipe = redis.pipeline(transaction=False)
        ask_whether_settled(pipe, [self.run_id])
        over = read_settled([self.run_id], await cancellable(pipe.execute()))
        return await asyncio.to_thread(self.result_in, self.ptc.store) if over else None

    def _as_ours(self, result: PTCArtifactResult, *, pays: bool) -> PTCArtifactResult:
        """Give the run's result to this caller: one of several pays, so that sums count nothing twice."""
        if self._onlooker:
            return result
        update: dict[str, Any] = {"execution_id": self.plan.execution_id}
        if self._repeats or not pays:
            update |= {"llm_usage": [], "metadata": {**result.metadata, "joined_run": self.run_id}}
        return result.model_copy(update=update)
