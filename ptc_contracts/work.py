"""A worker's side of the run record: begin a stage, hold the run, keep what was paid for, move it on."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast
from uuid import uuid4

from ptc_contracts import scripts
from ptc_contracts.errors import UnreadableBlobError
from ptc_contracts.events import NOTHING
from ptc_contracts.keys import (
    ACTIVE_RUNS,
    DEAD_RUNS,
    INSTALLATION,
    LANE_PREFIX,
    SWEEPS,
    WAITING_PREFIX,
    checkpoints_key,
    events_key,
    run_key,
    usage_key,
    worker_key,
)
from ptc_contracts.record import SCHEMA_VERSION
from ptc_contracts.run import LeaseLostError, NotOurs, Run
from ptc_contracts.runs import (
    DEAD_TTL_SECONDS,
    OVERDUE_GRACE_MS,
    RunStore,
    texts,
)
from ptc_contracts.stages import LANES, Stage, Unsent
from ptc_contracts.submitting import GRACE_MS, flat

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from ptc_contracts.bill import ModelCall
    from ptc_contracts.events import Addition
    from ptc_contracts.progress import Progress

LEASE_MS = 8_000
"""How long a worker may be silent before its run may move elsewhere."""

WORKER_MS = 10_000
"""How long a worker may be silent before what it has left elsewhere may be removed: longer than its runs are held."""

SWEEP_MS = 1_000
"""How often each worker looks for runs that need a message; the first to look does it for all."""

_LONGEST_PAUSE_MS = 3 * SWEEP_MS
"""Beyond, sweeps were not steady: silence says nothing of a worker."""

PATIENCE_MS = 4_000
"""How long a message that has left its queue may take to begin its run; it is given up between one and two of them
later."""

_TRIES_TO_OPEN = 20
"""Times a record may turn out to be closed to a worker, whose own key may be the wrong one, before its run ends."""


class Sweep(NamedTuple):
    """What a look at all runs has found."""

    owed: list[Unsent]
    """Messages that whoever reads this owes."""
    over: list[str]
    """Runs that are over and that nobody holds: cancelled, or out of time."""


@dataclass
class WorkStore(RunStore):
    """What a worker can do with run records, beside what everybody can."""

    def __post_init__(self) -> None:
        super().__post_init__()
        register = self.redis.register_script
        self._begin, self._renew = register(scripts.BEGIN), register(scripts.RENEW)
        self._keep, self._sweep = register(scripts.KEEP), register(scripts.SWEEP)
        self._hand_over, self._hand_back = register(scripts.HAND_OVER), register(scripts.HAND_BACK)
        self._count_start, self._living = register(scripts.COUNT_START), register(scripts.LIVING)
        self._tell = register(scripts.TELL)

    def begin(self, run_id: str, stage: Stage, sending: int, holder: str = "") -> Run | NotOurs:
        """Take a run to work on one of its stages, as its message of this number asks.

        A holder who missed the answer gets it again under the same name, which nobody else may have.
        Its first start sets the deadline. A record that cannot be read ends as FAILURE, but one of a newer
        form is left to newer workers, and one that cannot be opened to workers that may have the right key.
        """
        asked_at = time.monotonic()
        answer = self._begin(
            keys=[run_key(run_id), ACTIVE_RUNS],
            args=[run_id, stage.value, sending, LEASE_MS, holder or uuid4().hex, SCHEMA_VERSION],
        )
        how = answer[0].decode()
        if how == "ok":
            record = dict(zip(texts(answer[2][::2]), answer[2][1::2], strict=True))
            try:
                return replace(self.form.read_run(record, int(answer[1])), renewed_at=asked_at)
            except UnreadableBlobError as error:
                return self._closed(record, error)
            except (ValueError, KeyError):
                return NotOurs(reason="ended", result=self._without(record, "written by another version?"))
        try:
            ended = self.form.read_result(run_id, answer[1].decode(), answer[2]) if how == "ended" else None
        except UnreadableBlobError as error:
            return NotOurs(reason=f"unreadable: {error}")
        return NotOurs(reason=how, result=ended)

    def renew(self, held: dict[str, int]) -> list[tuple[str, Literal["lost", "cancelled"]]]:
        """Extend the leases of these runs (id to fence) in one script; return those whose work must stop."""
        answer = self._renew(keys=[ACTIVE_RUNS], args=[LEASE_MS, OVERDUE_GRACE_MS, *flat(held)])
        return [cast("Any", tuple(texts(stop))) for stop in answer]

    def sweep(self, most: int = 500) -> Sweep:
        """Find the runs that need a message, or their end; at most so many of each kind.

        Their worker fell silent, whoever owed them a message never sent it, or it was sent and lost.
        """
        lanes = [
            key
            for lane in LANES
            for key in (LANE_PREFIX + lane.name, WAITING_PREFIX + lane.name, lane.list_key)
        ]
        owed, over = self._sweep(
            keys=[ACTIVE_RUNS, SWEEPS, DEAD_RUNS, *lanes],
            args=[
                *(GRACE_MS, most, SWEEP_MS // 2, _LONGEST_PAUSE_MS, LEASE_MS, PATIENCE_MS),
                DEAD_TTL_SECONDS * 1000,
            ],
        )
        known = {stage.value.encode() for stage in Stage}  # a newer peer may know more
        return Sweep([Unsent.read(message) for message in owed if message[1] in known], texts(over))

    def installation(self) -> str:
        """Return the name of all that share this server; the first to ask gives it."""
        self.redis.set(INSTALLATION, uuid4().hex[:12], nx=True)
        return cast("bytes", self.redis.get(INSTALLATION)).decode()

    def beat(self, worker: str) -> None:
        """Say that a worker process lives; that holds for `WORKER_MS`."""
        self.redis.set(worker_key(worker), "alive", px=WORKER_MS)

    def living(self, workers: Collection[str]) -> set[str]:
        """Tell which of some worker processes live: all of them while their silence says nothing."""
        names = list(workers)
        places = self._living(keys=[SWEEPS, *map(worker_key, names)], args=[WORKER_MS, _LONGEST_PAUSE_MS])
        return {names[place - 1] for place in places}

    def checkpoint(self, run: Run, name: str) -> Any:  # noqa: ANN401 whatever JSON was kept
        """Return what was kept under this name, None if nothing was."""
        kept = cast("bytes | None", self.redis.hget(checkpoints_key(run.run_id), name))
        return None if kept is None else self.form.read_checkpoint(run.run_id, name, kept)

    def keep(self, run: Run, name: str, value: object, calls: Iterable[ModelCall] = ()) -> Any:  # noqa: ANN401
        """Keep what a stage produced and what it cost; return what is kept: the first writer's.

        Raises:
            LeaseLostError: value and cost are kept, but the run is somebody else's now.
            PayloadTooLargeError: the value is larger than PTC_MAX_PAYLOAD_MB.
        """
        sealed = self.form.checkpoint(run.run_id, name, value)
        ours, kept = self._keep(
            keys=[run_key(run.run_id), checkpoints_key(run.run_id), usage_key(run.run_id)],
            args=[run.fence, name, sealed, *self._sealed(run, calls)],
        )
        if not ours:
            raise LeaseLostError(run.run_id)
        return self.form.read_checkpoint(run.run_id, name, kept) if kept else value

    def keep_usage(self, run: Run, calls: Iterable[ModelCall]) -> None:
        """Keep what calls cost that brought nothing else."""
        self._keep(
            keys=[run_key(run.run_id), checkpoints_key(run.run_id), usage_key(run.run_id)],
            args=[run.fence, "", "", *self._sealed(run, calls)],
        )

    def calls(self, run: Run) -> list[ModelCall]:
        """Return what the run has asked of models so far."""
        return self._calls(run.run_id)

    def count_start(self, run: Run, number: int) -> None:
        """Add to the times this stage was begun without progress; a start may turn out not to be one yet."""
        self._count_start(keys=[run_key(run.run_id)], args=[run.fence, number])

    def tell(self, run: Run, told: Addition) -> bool:
        """Add to what a run tells; return whether it is still ours to tell of. Repeated, a telling counts once."""
        answer = self._tell(
            keys=[run_key(run.run_id), events_key(run.run_id)], args=[run.run_id, run.fence, *told.args]
        )
        return bool(answer)

    def hand_over(self, run: Run, stage: Stage, progress: Progress, told: Addition = NOTHING) -> Unsent:
        """Put the run into the next stage, held by nobody; return the message that is owed now.

        Raises:
            LeaseLostError: the run is somebody else's now.
            PayloadTooLargeError: the progress is larger than PTC_MAX_PAYLOAD_MB.
        """
        return _owed(
            run,
            self._hand_over(
                keys=[run_key(run.run_id), ACTIVE_RUNS],
                args=[
                    *(run.run_id, run.fence, GRACE_MS, stage.value),
                    self.form.progress(run.run_id, stage, progress),
                    progress.iteration,
                    self.form.history(progress),
                    *told.args,
                ],
            ),
        )

    def hand_back(self, run: Run, told: Addition = NOTHING) -> Unsent:
        """Give the run up where it is, for another worker to begin this stage; return the message owed now.

        Raises:
            LeaseLostError: the run is somebody else's now.
        """
        answer = self._hand_back(
            keys=[run_key(run.run_id), ACTIVE_RUNS], args=[run.run_id, run.fence, GRACE_MS, "", *told.args]
        )
        return _owed(run, answer)

    def defer(self, run: Run, seconds: float, why: str, told: Addition = NOTHING) -> None:
        """Give the run up where it is, for any worker to begin this stage after so many seconds, its deadline at most.

        Nobody is owed a message before: the sweep that finds the time over sends it. What it waits for is kept, for
        the result of a run that waits in vain.

        Raises:
            LeaseLostError: the run is somebody else's now.
        """
        milliseconds = round(1000 * max(0.0, min(seconds, run.time_left())))
        answer = self._hand_back(
            keys=[run_key(run.run_id), ACTIVE_RUNS],
            args=[run.run_id, run.fence, milliseconds, why, *told.args],
        )
        _owed(run, answer)

    def _closed(self, record: dict[str, bytes], error: UnreadableBlobError) -> NotOurs:
        """Leave a record that we cannot open to others, for our own key may be the wrong one; but not for ever."""
        run_id, fence = record["run_id"].decode(), int(record["fence"])
        tries = self.redis.hincrby(run_key(run_id), "closed", 1)
        if tries >= _TRIES_TO_OPEN:
            return NotOurs(reason="ended", result=self._without(record, str(error)))
        self._hand_back(
            keys=[run_key(run_id), ACTIVE_RUNS], args=[run_id, fence, GRACE_MS, "", *NOTHING.args]
        )
        return NotOurs(reason=f"unreadable: {error}")

    def _sealed(self, run: Run, calls: Iterable[ModelCall]) -> list[Any]:
        return flat({call.call_id: self.form.call(run.run_id, call) for call in calls})


def _owed(run: Run, answer: list[Any]) -> Unsent:
    if not answer:
        raise LeaseLostError(run.run_id)
    return Unsent.read(answer)
