"""The run record: submit-or-join, lease, checkpoint, hand-over, finish. It is the truth; a message is a hint.

Every change is one Lua script on the server's clock, so that two processes can never both believe they won.
A holder proves itself by its fence, a number that grows with every start: a write with an old one changes
nothing.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from pydantic import TypeAdapter
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from ptc_contracts import scripts
from ptc_contracts.cache import CacheEntry, CacheWrite
from ptc_contracts.errors import RunNotFoundError
from ptc_contracts.keys import (
    ACTIVE_RUNS,
    CACHE_STATS,
    SWEEPS,
    attempt_key,
    cache_key,
    cache_names,
    callers_key,
    checkpoints_key,
    claim_key,
    digest,
    ended_channel,
    exec_key,
    meta_key,
    new_run_id,
    run_key,
    usage_key,
)
from ptc_contracts.plan import CacheStrategy, PTCExecutionPlan
from ptc_contracts.progress import IterationNote, ModelCall, Progress, conclude
from ptc_contracts.result import ExecutionStatus, PTCArtifactResult
from ptc_contracts.run import LeaseLostError, NotOurs, Run, RunState, RunStatus, Submission, Unsent
from ptc_contracts.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ptc_contracts.settings import RedisSettings

SCHEMA_VERSION = 1
"""Form of the run record; raised when a reader of the old form could misread the new one."""

LEASE_MS = 8_000
"""How long a worker may be silent before its run may move elsewhere."""

SWEEP_MS = 2_000
"""How often each worker looks for runs that need a message."""

UNSENT_GRACE_MS = 1_000
"""How long the process that owes a run its message may take to send it."""

RESULT_TTL_SECONDS = 24 * 3600
"""How long a run's record and result outlive its end."""

RETRY_TTL_SECONDS = 15 * 60
"""How long after its end a run answers a retry: the contract's figure."""

OVERDUE_GRACE_MS = 10_000
"""How far past its deadline a run must be before a waiting client ends it in a worker's stead."""

_CONFIRM_SECONDS = 2.0

_HISTORY = TypeAdapter(list[IterationNote])


@dataclass
class RunStore:
    """Reads and changes run records in one Redis database."""

    redis: Redis = field(repr=False)

    def __post_init__(self) -> None:
        register = self.redis.register_script
        self._submit, self._begin, self._renew = (
            register(scripts.SUBMIT),
            register(scripts.BEGIN),
            register(scripts.RENEW),
        )
        self._keep, self._hand_over, self._finish = (
            register(scripts.KEEP),
            register(scripts.HAND_OVER),
            register(scripts.FINISH),
        )
        self._published, self._reclaim = register(scripts.PUBLISHED), register(scripts.RECLAIM)

    @classmethod
    def connect(cls, settings: RedisSettings, *, patience: float = 10.0) -> RunStore:
        """Open a store; nothing is sent before it is first used. An answer may take `patience` seconds."""
        return cls(
            Redis.from_url(
                settings.url,
                socket_timeout=patience,
                socket_connect_timeout=min(patience, 3.0),
                health_check_interval=30,
                retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 3),
                **({} if settings.url.startswith("unix:") else {"socket_keepalive": True}),
            )
        )

    # ── for clients ──

    def submit(self, plan: PTCExecutionPlan) -> Submission:
        """Answer the plan from the cache, join the run that works on it, or make a new one, atomically.

        The cache is looked at first, and judged here; the script then refuses unless what was judged is
        still what the cache holds, so that a run which ended in between is not started again. A retry finds
        its own run first: whoever missed an answer gets that one, with what it cost.
        """
        key, mark = cache_key(plan), digest(plan)
        run_id = new_run_id(key)
        exclusive = plan.cache_strategy is CacheStrategy.NEVER
        names = [] if exclusive else cache_names(plan)
        attempt = attempt_key(mark, plan.execution_id)
        record = {
            "schema_version": SCHEMA_VERSION,
            "run_id": run_id,
            "key": key,
            "digest": mark,
            "plan": plan.model_dump_json(),
            "stage": Stage.GENERATE.value,
            "progress": Progress().model_dump_json(),
            "iteration": 1,
            "timeout_ms": plan.timeout_seconds * 1000,
            "max_iterations": plan.max_iterations,
        }
        pairs: list[Any] = [item for pair in record.items() for item in pair]
        while True:
            hit, seen = self._look(plan, names, attempt)
            if hit:
                return Submission(hit=hit)
            answer = _texts(
                self._submit(
                    keys=[
                        run_key(run_id),
                        callers_key(run_id),
                        claim_key(key, mark),
                        attempt,
                        ACTIVE_RUNS,
                        CACHE_STATS,
                        *(meta_key(name) for name in names),
                    ],
                    args=[run_id, int(exclusive), len(record), *pairs, *seen],
                )
            )
            if answer[0] != "look":
                how, found, joined = answer
                return Submission(run_id=found, joined=joined == "1", unpublished=how == "new")

    def _look(
        self, plan: PTCExecutionPlan, names: list[str], attempt: str
    ) -> tuple[PTCArtifactResult | None, list[bytes]]:
        """Judge the plan's cache entries; return a hit or None, and the metas that were judged."""
        if not names:
            return None, []
        keys = [key for name in names for key in (exec_key(name), meta_key(name))]
        retried, *texts = cast("list[bytes | None]", self.redis.mget(attempt, *keys))
        if retried is not None:
            return None, [meta or b"" for meta in texts[1::2]]
        entries = (CacheEntry.parse(*texts[i : i + 2]) for i in range(0, len(texts), 2))
        hit = next((entry.hit_for(plan) for entry in entries if entry and entry.serves(plan)), None)
        if hit:
            with suppress(RedisError):  # a server that is full refuses to count and still answers
                self.redis.hincrby(CACHE_STATS, "hits", 1)
        return hit, [meta or b"" for meta in texts[1::2]]

    def mark_published(self, run_id: str, stage: Stage, iteration: int) -> None:
        """Note that the message which asks for this stage of the run was sent."""
        self._published(keys=[run_key(run_id), ACTIVE_RUNS], args=[run_id, stage.value, iteration])

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
            history=tuple(_HISTORY.validate_json(history or "[]")),
        )

    def result(self, run_id: str) -> PTCArtifactResult | None:
        """Return the result of a run that has ended, None while it goes on.

        Raises:
            RunNotFoundError: there is no such run, or no longer.
        """
        state, result = _optional_texts(self.redis.hmget(run_key(run_id), ("state", "result")))
        if state is None:
            raise _not_found(run_id)
        return PTCArtifactResult.model_validate_json(result) if result else None

    @contextmanager
    def announcements(self, run_id: str) -> Iterator[Callable[[float], None]]:
        """Listen for a run's end: the block gets a function that waits for it, at most so many seconds.

        What ended before the block began is not announced again; the record tells.
        """
        with self.redis.pubsub() as listener:  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
            listener.subscribe(ended_channel(run_id))
            if listener.get_message(timeout=_CONFIRM_SECONDS) is None:
                raise RedisTimeoutError("the server did not confirm a subscription")

            def wait(seconds: float) -> None:
                listener.get_message(timeout=seconds)

            yield wait

    def end_if_overdue(self, run_id: str) -> PTCArtifactResult | None:
        """End a run that is past its deadline and that no worker has ended; None if it is not, or goes on."""
        (deadline,) = _optional_texts(self.redis.hmget(run_key(run_id), ["deadline_at"]))
        seconds, microseconds = self.redis.time()
        now = seconds * 1000 + microseconds // 1000
        if deadline is None or now < int(deadline) + OVERDUE_GRACE_MS:
            return None
        run = _run(self._record(run_id), now)
        message = f"timeout_seconds={run.plan.timeout_seconds} ran out while no worker was free"
        try:
            return self.finish(run, ExecutionStatus.TIMEOUT, error_message=message)
        except LeaseLostError:
            return None

    # ── for workers ──

    def begin(self, run_id: str, stage: Stage) -> Run | NotOurs:
        """Take a run to work on one of its stages; its first start sets the deadline.

        A record that cannot be read ends as FAILURE, but one of a newer form is left to newer workers.
        """
        answer = self._begin(keys=[run_key(run_id), ACTIVE_RUNS], args=[run_id, stage.value, LEASE_MS])
        how = answer[0].decode()
        if how == "ok":
            record = _pairs(answer[2])
            try:
                return _run(record, int(answer[1]))
            except (ValueError, KeyError):
                return self._without(record)
        return NotOurs(
            reason=how,
            result=PTCArtifactResult.model_validate_json(answer[1]) if how == "ended" else None,
        )

    def renew(self, held: dict[str, int]) -> list[str]:
        """Extend the leases of these runs (id to fence) in one script; return the ids that are ours no more."""
        args = [item for pair in held.items() for item in pair]
        return _texts(self._renew(keys=[ACTIVE_RUNS], args=[LEASE_MS, *args]))

    def reclaim(self, most: int = 50) -> list[Unsent]:
        """Take the runs that need a message: their worker fell silent, or whoever owed it never sent it."""
        found = self._reclaim(
            keys=[ACTIVE_RUNS, SWEEPS], args=[UNSENT_GRACE_MS, most, 2 * SWEEP_MS, LEASE_MS]
        )
        known = {stage.value for stage in Stage}  # a newer peer may know more
        return [
            Unsent(run_id, Stage(stage), key, int(n))
            for run_id, stage, key, n in map(_texts, found)
            if stage in known
        ]

    def checkpoint(self, run: Run, name: str) -> Any:  # noqa: ANN401 whatever JSON was kept
        """Return what was kept under this name, None if nothing was."""
        kept = cast("bytes | None", self.redis.hget(checkpoints_key(run.run_id), name))
        return None if kept is None else json.loads(kept)

    def keep(self, run: Run, name: str, value: object, calls: Iterable[ModelCall] = ()) -> Any:  # noqa: ANN401
        """Keep what a stage produced and what it cost; return what is kept: the first writer's.

        Raises:
            LeaseLostError: value and cost are kept, but the run is somebody else's now.
        """
        ours, kept = self._keep(
            keys=[run_key(run.run_id), checkpoints_key(run.run_id), usage_key(run.run_id)],
            args=[run.fence, name, json.dumps(value), *_calls_as_pairs(calls)],
        )
        if not ours:
            raise LeaseLostError(run.run_id)
        return json.loads(kept)

    def keep_usage(self, run: Run, calls: Iterable[ModelCall]) -> None:
        """Keep what calls cost that brought nothing else."""
        self._keep(
            keys=[run_key(run.run_id), checkpoints_key(run.run_id), usage_key(run.run_id)],
            args=[run.fence, "", "", *_calls_as_pairs(calls)],
        )

    def hand_over(self, run: Run, stage: Stage, progress: Progress) -> None:
        """Put the run into the next stage, held by nobody; its message has yet to be sent.

        Raises:
            LeaseLostError: the run is somebody else's now.
        """
        done = self._hand_over(
            keys=[run_key(run.run_id), ACTIVE_RUNS],
            args=[
                run.run_id,
                run.fence,
                stage.value,
                progress.model_dump_json(),
                progress.iteration,
                _HISTORY.dump_json(progress.history),
            ],
        )
        if not done:
            raise LeaseLostError(run.run_id)

    def finish(
        self,
        run: Run,
        status: ExecutionStatus,
        *,
        progress: Progress | None = None,
        error_message: str | None = None,
    ) -> PTCArtifactResult:
        """End the run: record, cache and claim change in one step. Return its result: the first one stays.

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
        )
        kept = progress.model_dump_json(exclude={"draft", "best"})
        return self._end(
            run_id=run.run_id,
            key=run.key,
            mark=run.digest,
            fence=run.fence,
            result=result,
            progress=kept,
            write=CacheWrite.of(run.plan, result),
        )

    def _without(self, record: dict[str, str]) -> NotOurs:
        """End a run from the little that can be read of its record."""
        if int(record["schema_version"]) > SCHEMA_VERSION:
            return NotOurs(reason="newer")
        now = datetime.now(UTC)
        result = PTCArtifactResult(
            execution_id=record["run_id"],
            status=ExecutionStatus.FAILURE,
            error_message="the run's record cannot be read: it was damaged, or written by another version",
            iterations_used=0,
            started_at=now,
            completed_at=now,
            duration_seconds=0,
            cache_key=record["key"],
            metadata={"run_id": record["run_id"]},
        )
        ended = self._end(
            run_id=record["run_id"],
            key=record["key"],
            mark=record["digest"],
            fence=int(record["fence"]),
            result=result,
            progress=Progress().model_dump_json(),
            write=None,
        )
        return NotOurs(reason="ended", result=ended)

    def _end(
        self,
        *,
        run_id: str,
        key: str,
        mark: str,
        fence: int,
        result: PTCArtifactResult,
        progress: str,
        write: CacheWrite | None,
    ) -> PTCArtifactResult:
        names = write.names if write else []
        how, kept = self._finish(
            keys=[
                run_key(run_id),
                checkpoints_key(run_id),
                usage_key(run_id),
                callers_key(run_id),
                claim_key(key, mark),
                ACTIVE_RUNS,
                *(cached for name in names for cached in (exec_key(name), meta_key(name))),
            ],
            args=[
                run_id,
                fence,
                result.status.value,
                result.model_dump_json(),
                progress,
                RESULT_TTL_SECONDS,
                RETRY_TTL_SECONDS,
                *((write.ttl, write.result, write.meta) if write else (0, "", "")),
                ended_channel(run_id),
            ],
        )
        match how.decode():
            case "ok":
                return result
            case "ended":
                return PTCArtifactResult.model_validate_json(kept)
            case "gone":
                raise _not_found(run_id)
            case _:
                raise LeaseLostError(run_id)

    def _calls(self, run_id: str) -> list[ModelCall]:
        kept = cast("list[bytes]", self.redis.hvals(usage_key(run_id)))
        return [ModelCall.model_validate_json(call) for call in kept]

    def _record(self, run_id: str) -> dict[str, str]:
        kept = cast("dict[bytes, bytes]", self.redis.hgetall(run_key(run_id)))
        if not kept:
            raise _not_found(run_id)
        return {name.decode(): value.decode() for name, value in kept.items()}


def _run(record: dict[str, str], now_ms: int) -> Run:
    return Run(
        run_id=record["run_id"],
        key=record["key"],
        digest=record["digest"],
        plan=PTCExecutionPlan.model_validate_json(record["plan"]),
        stage=Stage(record["stage"]),
        fence=int(record["fence"]),
        progress=Progress.model_validate_json(record["progress"]),
        started_at=datetime.fromtimestamp(int(record["started_at"]) / 1000, UTC),
        deadline=time.monotonic() + (int(record["deadline_at"]) - now_ms) / 1000,
    )


def _calls_as_pairs(calls: Iterable[ModelCall]) -> list[str]:
    return [item for call in calls for item in (call.call_id, call.model_dump_json())]


def _pairs(flat: list[bytes]) -> dict[str, str]:
    texts = _texts(flat)
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _texts(values: Any) -> list[str]:  # noqa: ANN401 redis-py does not type what scripts return
    return [value.decode() for value in values]


def _optional_texts(values: Any) -> list[str | None]:  # noqa: ANN401 redis-py types it as sync or async
    return [None if value is None else value.decode() for value in values]


def _not_found(run_id: str) -> RunNotFoundError:
    return RunNotFoundError(f"run {run_id!r} is not known: it expired, or its id is wrong")
