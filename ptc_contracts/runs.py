"""The run record, as its callers use it: look, wait, cancel, finish. It is the truth; a message is a hint.

How plans become runs stands in `submitting.py`, what only workers do in `work.py`. Every change is one Lua script on
the server's clock, so that two processes can never both believe they won. A holder proves itself by its fence, a number that grows with every start: a write with an old one changes
nothing.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self, cast

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from ptc_contracts import scripts
from ptc_contracts.blobs import Blobs
from ptc_contracts.cache import CacheWrite
from ptc_contracts.errors import RunNotFoundError
from ptc_contracts.events import NOTHING, Addition, ended_message
from ptc_contracts.keys import (
    ACTIVE_RUNS,
    DEAD_RUNS,
    attempt_key,
    callers_key,
    checkpoints_key,
    claim_key,
    digest,
    ended_channel,
    exec_key,
    meta_key,
    run_key,
    usage_key,
)
from ptc_contracts.progress import Progress, StopReason, conclude
from ptc_contracts.record import END_FIELDS, RecordForm, Resumption, end_of
from ptc_contracts.result import ExecutionStatus, PTCArtifactResult
from ptc_contracts.run import (
    DeadRun,
    Departure,
    LeaseLostError,
    Run,
    RunState,
    RunStatus,
    Submission,
)
from ptc_contracts.stages import Stage
from ptc_contracts.submitting import Submitting

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from redis.asyncio.client import Pipeline as AsyncPipeline
    from redis.client import Pipeline

    from ptc_contracts.bill import ModelCall
    from ptc_contracts.plan import PTCExecutionPlan
    from ptc_contracts.settings import RedisSettings

RESULT_TTL_SECONDS = 24 * 3600
"""How long a run's record and result outlive its end."""

DEAD_TTL_SECONDS = 7 * 24 * 3600
"""How long a run that was given up can be looked at and sent again."""

EVENTS_TTL_SECONDS = 3600
"""How long what a run told outlives its end: most of it is what models wrote, and the result has that, too."""

RETRY_TTL_SECONDS = 15 * 60
"""How long after its end a run answers a retry: the contract's figure."""

OVERDUE_GRACE_MS = 10_000
"""How far past its deadline a run must be before a waiting client ends it in a worker's stead."""

RESULT_FIELDS = ("digest", "result")
"""The fields of a record that hold its result."""

_CONFIRM_SECONDS = 2.0


@dataclass
class RunStore(Submitting):
    """Reads and changes run records in one Redis database."""

    def __post_init__(self) -> None:
        super().__post_init__()
        register = self.redis.register_script
        self._cancel, self._finish = register(scripts.CANCEL), register(scripts.FINISH)
        self._forget = register(scripts.FORGET)

    @classmethod
    def connect(cls, settings: RedisSettings, blobs: Blobs | None = None, *, patience: float = 10.0) -> Self:
        """Open a store; nothing is sent before it is first used.

        An answer may take `patience` seconds; a broken connection is opened again, three times.
        """
        return cls(
            Redis.from_url(
                settings.url,
                socket_timeout=patience,
                socket_connect_timeout=min(patience, 3.0),
                health_check_interval=30,
                retry=Retry(
                    ExponentialBackoff(cap=0.5, base=0.05), 3, supported_errors=(RedisConnectionError,)
                ),
                **({} if settings.url.startswith("unix:") else {"socket_keepalive": True}),
            ),
            RecordForm(blobs or Blobs()),
        )

    def status(self, run_id: str) -> RunStatus:
        """Tell where a run is.

        Raises:
            RunNotFoundError: there is no such run, or no longer.
        """
        fields = ("state", "stage", "iteration", "max_iterations", "status", "history")
        kept = _optional_texts(self.redis.hmget(run_key(run_id), fields))
        state, stage, iteration, most, status, history = kept
        if state is None:
            raise _not_found(run_id)
        return RunStatus(
            run_id=run_id,
            state=RunState(state),
            stage=Stage(stage),
            iteration=int(iteration or 1),
            max_iterations=int(most or 1),
            status=ExecutionStatus(status) if status else None,
            history=self.form.read_history(history),
        )

    def result(self, run_id: str, plan_digest: str | None = None) -> PTCArtifactResult | None:
        """Return the result of a run that has ended, None while it goes on.

        Whoever knows the plan gives its digest, so that no other plan's result is taken for an answer to it.

        Raises:
            RunNotFoundError: there is no such run, or no longer.
            UnreadableBlobError: the result is damaged, or not signed with this process's key.
        """
        fields = cast("list[bytes | None]", self.redis.hmget(run_key(run_id), RESULT_FIELDS))
        return self.read_result(run_id, fields, plan_digest)

    def read_result(
        self, run_id: str, fields: Sequence[bytes | None], plan_digest: str | None = None
    ) -> PTCArtifactResult | None:
        """Read the result in the fields of a record, as `result` returns it."""
        mark, result = fields
        if mark is None:
            raise _not_found(run_id)
        return None if result is None else self.form.read_result(run_id, plan_digest or mark.decode(), result)

    def plan(self, run_id: str) -> PTCExecutionPlan:
        """Return the plan of a run.

        Raises:
            RunNotFoundError: there is no such run, or no longer.
            UnreadableBlobError: the plan is damaged, or not signed with this process's key.
        """
        sealed = cast("bytes | None", self.redis.hget(run_key(run_id), "plan"))
        if sealed is None:
            raise _not_found(run_id)
        return self.form.read_plan(run_id, sealed)

    def pays(self, run_id: str, plan: PTCExecutionPlan) -> bool:
        """Tell whether this plan's caller counts what the run cost: one of them does, so that sums count it once."""
        return is_payer(plan, cast("bytes | None", self.redis.hget(run_key(run_id), "attempt")))

    def settled(self, run_ids: Collection[str]) -> set[str]:
        """Tell which of these runs need not be waited for: they have ended, are over, or have no record any more."""
        pipe = self.redis.pipeline(transaction=False)
        ask_whether_settled(pipe, run_ids)
        return read_settled(run_ids, pipe.execute())

    @contextmanager
    def announcements(self, *run_ids: str) -> Iterator[Callable[[float], str | None]]:
        """Listen for the ends of runs: the block gets a function that waits for the next one, at most so many seconds.

        What ended before the block began is not announced again; the record tells.
        """
        runs = {ended_channel(run_id).encode(): run_id for run_id in run_ids}
        with self.redis.pubsub() as listener:  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
            listener.subscribe(*runs)
            for _ in runs:
                if listener.get_message(timeout=_CONFIRM_SECONDS) is None:
                    raise RedisTimeoutError("the server did not confirm a subscription")

            def wait(seconds: float) -> str | None:
                heard = listener.get_message(timeout=seconds)
                return runs[heard["channel"]] if heard and heard["type"] == "message" else None

            yield wait

    def cancel(
        self, run_id: str, execution_id: str | None = None, *, force: bool = False
    ) -> tuple[Departure, int]:
        """Take a caller away from a run, and stop it if nobody else waits; return how many others do.

        Args:
            run_id: The run.
            execution_id: Which caller leaves; where only one waits, it need not be named.
            force: Stop the run even if others wait for it; all of them get its end.

        Raises:
            RunNotFoundError: there is no such run, or no longer.
        """
        key, mark = _optional_texts(self.redis.hmget(run_key(run_id), ("key", "digest")))
        if key is None or mark is None:
            raise _not_found(run_id)
        how, others = self._cancel(
            keys=[run_key(run_id), callers_key(run_id), claim_key(key, mark), ACTIVE_RUNS],
            args=[
                run_id,
                "" if execution_id is None else attempt_key(mark, execution_id.strip()),
                int(force),
            ],
        )
        match how.decode():
            case "gone":
                raise _not_found(run_id)
            case "free":
                self.end_if_over(run_id)
                return Departure.STOPPED, others
            case "stopping":
                return Departure.STOPPED, others
            case other:
                return Departure(other), others

    def end_if_over(self, run_id: str, *, grace_ms: int = OVERDUE_GRACE_MS) -> PTCArtifactResult | None:
        """End a run that is cancelled or out of time and that no worker ends; None if it is not, or goes on.

        A worker that holds a run is given the grace to end it itself.
        """
        now = self._now()
        glance = cast("list[bytes | None]", self.redis.hmget(run_key(run_id), END_FIELDS))
        if (end := end_of(dict(_present(END_FIELDS, glance)), now, grace_ms)) is None:
            return None
        record = self._record(run_id)
        try:
            run = self.form.read_run(record, now)
        except (ValueError, KeyError) as error:
            return self._without(record, str(error))
        progress = (
            run.progress if "started_at" in record else run.progress.model_copy(update={"iteration": 0})
        )
        with suppress(LeaseLostError):
            return self.finish(
                run, end.status, progress=progress, error_message=end.message, stop_reason=end.reason
            )
        return None

    def dead(self) -> list[DeadRun]:
        """List the runs that were given up, the latest first."""
        found = cast("list[tuple[bytes, float]]", self.redis.zrevrange(DEAD_RUNS, 0, -1, withscores=True))
        listed = []
        for run_id, died_ms in ((name.decode(), score) for name, score in found):
            (reason,) = _optional_texts(self.redis.hmget(run_key(run_id), ["given_up"]))
            if reason is not None:
                died_at = datetime.fromtimestamp(died_ms / 1000, UTC)
                listed.append(DeadRun(run_id=run_id, died_at=died_at, reason=reason))
        return listed

    def revive(self, run_id: str) -> tuple[PTCExecutionPlan, Submission]:
        """Submit the plan of a run that was given up again: a new run goes on from what the old one paid for.

        Raises:
            RunNotFoundError: it is not in the list of the dead.
        """
        if self.redis.zscore(DEAD_RUNS, run_id) is None:
            raise RunNotFoundError(f"run {run_id!r} is not in the list of the dead")
        run = self.form.read_run(self._record(run_id), self._now())
        paid = cast("dict[bytes, bytes]", self.redis.hgetall(checkpoints_key(run_id)))
        checkpoints = {
            name.decode(): self.form.read_checkpoint(run_id, name.decode(), value)
            for name, value in paid.items()
        }
        self._forget(keys=[attempt_key(run.digest, run.plan.execution_id)], args=[run_id])
        submission = self.submit(run.plan, resume=Resumption(run.stage, run.progress, checkpoints))
        self.redis.zrem(DEAD_RUNS, run_id)
        return run.plan, submission

    # ── for both ──

    def finish(
        self,
        run: Run,
        status: ExecutionStatus,
        *,
        progress: Progress | None = None,
        error_message: str | None = None,
        stop_reason: StopReason,
        given_up: bool = False,
        told: Addition = NOTHING,
    ) -> PTCArtifactResult:
        """End the run: record, cache and claim change in one step. Return its result: the first one stays.

        `told` comes before the message that tells of the end.

        A run that is given up is kept in the list of the dead, with all it takes to send it again.

        Raises:
            LeaseLostError: the run is somebody else's now.
            RunNotFoundError: the record is gone.
        """
        progress = progress or run.progress
        result = conclude(
            run.plan,
            progress,
            status,
            run_id=run.run_id,
            cache_key=run.key,
            started_at=run.started_at,
            calls=self._calls(run.run_id),
            error_message=error_message,
            stop_reason=stop_reason,
        )
        left = progress if given_up else progress.model_copy(update={"draft": None, "best": None})
        return self._end(
            run_id=run.run_id,
            key=run.key,
            mark=run.digest,
            fence=run.fence,
            result=result,
            progress=self.form.progress(run.run_id, run.stage, left),
            write=CacheWrite.of(run.plan, result),
            given_up=given_up,
            told=told,
        )

    def _without(self, record: dict[str, bytes], reason: str) -> PTCArtifactResult:
        """End a run from the little that can be read of its record."""
        texts = {name: record[name].decode() for name in ("run_id", "key", "digest", "fence")}
        now = datetime.now(UTC)
        result = PTCArtifactResult(
            execution_id=texts["run_id"],
            status=ExecutionStatus.FAILURE,
            error_message=f"the run's record cannot be read: {reason}",
            iterations_used=0,
            started_at=now,
            completed_at=now,
            duration_seconds=0,
            cache_key=texts["key"],
            metadata={"run_id": texts["run_id"]},
        )
        return self._end(
            run_id=texts["run_id"],
            key=texts["key"],
            mark=texts["digest"],
            fence=int(texts["fence"]),
            result=result,
            progress=b"",
            write=None,
            given_up=False,
            told=NOTHING,
        )

    def _end(
        self,
        *,
        run_id: str,
        key: str,
        mark: str,
        fence: int,
        result: PTCArtifactResult,
        progress: bytes,
        write: CacheWrite | None,
        given_up: bool,
        told: Addition,
    ) -> PTCArtifactResult:
        names = write.names if write else []
        result, sealed = self.form.result(run_id, mark, result)
        how, kept = self._finish(
            keys=[
                run_key(run_id),
                checkpoints_key(run_id),
                usage_key(run_id),
                callers_key(run_id),
                claim_key(key, mark),
                ACTIVE_RUNS,
                DEAD_RUNS,
                *(cached for name in names for cached in (exec_key(name), meta_key(name))),
            ],
            args=[
                *(run_id, fence, result.status.value, sealed, progress),
                *(DEAD_TTL_SECONDS if given_up else RESULT_TTL_SECONDS, RETRY_TTL_SECONDS),
                *((write.ttl, write.result, write.meta) if write else (0, "", "")),
                *(ended_channel(run_id), (result.error_message or "unknown") if given_up else ""),
                EVENTS_TTL_SECONDS,
                *told.args,
                ended_message(result).model_dump_json(),
            ],
        )
        match how.decode():
            case "ok":
                return result
            case "ended":
                return self.form.read_result(run_id, mark, kept)
            case "gone":
                raise _not_found(run_id)
            case _:
                raise LeaseLostError(run_id)

    def _calls(self, run_id: str) -> list[ModelCall]:
        """Read the bill; what somebody else wrote into it does not count."""
        kept = cast("dict[bytes, bytes]", self.redis.hgetall(usage_key(run_id)))
        calls = []
        for call_id, call in kept.items():
            with suppress(ValueError):
                calls.append(self.form.read_call(run_id, call_id.decode(), call))
        return calls

    def _record(self, run_id: str) -> dict[str, bytes]:
        kept = cast("dict[bytes, bytes]", self.redis.hgetall(run_key(run_id)))
        if not kept:
            raise _not_found(run_id)
        return {name.decode(): value for name, value in kept.items()}

    def _now(self) -> int:
        seconds, microseconds = self.redis.time()
        return int(seconds * 1000 + microseconds // 1000)


def is_payer(plan: PTCExecutionPlan, attempt: bytes | None) -> bool:
    """Tell whether this plan's caller is the one that a record names as the one who counts the cost."""
    return attempt is None or attempt.decode() == attempt_key(digest(plan), plan.execution_id)


def ask_whether_settled(pipe: Pipeline | AsyncPipeline, run_ids: Iterable[str]) -> None:
    """Ask what `read_settled` reads."""
    pipe.time()
    for run_id in run_ids:
        pipe.hmget(run_key(run_id), END_FIELDS)


def read_settled(run_ids: Iterable[str], answers: list[Any]) -> set[str]:
    """Name the runs that need not be waited for."""
    (seconds, microseconds), *records = answers
    now = int(seconds * 1000 + microseconds // 1000)
    seen = (dict(_present(END_FIELDS, record)) for record in records)
    return {
        run_id
        for run_id, record in zip(run_ids, seen, strict=True)
        if record.get("state", b"ended") == b"ended" or end_of(record, now, OVERDUE_GRACE_MS)
    }


def _present(names: Iterable[str], values: Iterable[bytes | None]) -> Iterator[tuple[str, bytes]]:
    return ((name, value) for name, value in zip(names, values, strict=True) if value is not None)


def texts(values: Any) -> list[str]:  # noqa: ANN401 redis-py does not type what scripts return
    """Read what a script returned."""
    return [value.decode() for value in values]


def _optional_texts(values: Any) -> list[str | None]:  # noqa: ANN401 redis-py types it as sync or async
    return [None if value is None else value.decode() for value in values]


def _not_found(run_id: str) -> RunNotFoundError:
    return RunNotFoundError(f"run {run_id!r} is not known: it expired, or its id is wrong")
