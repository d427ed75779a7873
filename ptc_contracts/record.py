"""The form of a run record: how its parts are written and read, and what its fields say of its end."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from ptc_contracts.bill import ModelCall
from ptc_contracts.blobs import Blobs
from ptc_contracts.errors import PayloadTooLargeError, UnreadableBlobError
from ptc_contracts.keys import cache_key, digest
from ptc_contracts.plan import PTCExecutionPlan
from ptc_contracts.progress import IterationNote, Progress, StopReason
from ptc_contracts.result import ExecutionStatus, PTCArtifactResult
from ptc_contracts.run import Run
from ptc_contracts.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

_HISTORY = TypeAdapter(list[IterationNote])

EXPIRED = "no worker began it within the time that it may wait in a queue"
"""What the result of a run says that waited too long for its first start."""

CANCELLED = "cancelled"
"""What the result of a run says that nobody wanted any more."""


SCHEMA_VERSION = 3
"""Newest form of the run record; raised when a reader of the old form could misread the new one.

1: the first. 2: plans with tests and a budget of their own, progress with frozen tests: a worker that knows nothing of
them would run other tests, and pay more. 3: plans with files to start from, which such a worker would write anew; a plan
without them is written as 2, so that older workers take it.
"""
_WITHOUT_INITIAL_FILES = 2

_COPIES = 3
"""How often a run's progress may hold a plan's initial files: as draft, as best draft, and as frozen tests."""


_SHOWN_CHARS = 200


def shown(name: str) -> str:
    """Cut a caller's name for something to what lists of runs show of it, and find it by."""
    return name[:_SHOWN_CHARS]


class Resumption(NamedTuple):
    """Where a new run starts that goes on from another one."""

    stage: Stage
    progress: Progress
    checkpoints: dict[str, Any]
    """What the other one paid for: name to JSON."""


@dataclass(frozen=True)
class RecordForm:
    """Seals the parts of a record, each for its own place in it, and opens them again.

    Sealing raises PayloadTooLargeError, opening UnreadableBlobError.
    """

    blobs: Blobs = field(default_factory=Blobs)

    def new(self, run_id: str, plan: PTCExecutionPlan, start: Resumption) -> dict[str, Any]:
        """Give the fields of a new run's record, beside those that depend on the server's clock."""
        return {
            "schema_version": SCHEMA_VERSION if plan.initial_files else _WITHOUT_INITIAL_FILES,
            "run_id": run_id,
            "key": cache_key(plan),
            "digest": digest(plan),
            "plan": self.plan(run_id, plan),
            "stage": start.stage.value,
            "progress": self.progress(run_id, start.stage, start.progress),
            "iteration": start.progress.iteration,
            "history": self.history(start.progress),
            "execution_id": shown(plan.execution_id),
            "project": shown(plan.project_name or ""),
            "timeout_ms": plan.timeout_seconds * 1000,
            "max_iterations": plan.max_iterations,
        }

    def plan(self, run_id: str, plan: PTCExecutionPlan) -> bytes:
        """Seal a plan."""
        return self.blobs.seal(self.small(plan), run_id, "plan")

    def small(self, plan: PTCExecutionPlan) -> str:
        """Write a plan as a record keeps it; one whose files could not be handed from stage to stage is refused, too.

        Raises:
            PayloadTooLargeError: it is too large; the message begins with `plan:`, or with the field.
        """
        files = sum(len(content.encode()) for content in plan.initial_files.values())
        if _COPIES * files > self.blobs.limit:
            raise PayloadTooLargeError(
                f"initial_files: they have {files:,} bytes, and PTC_MAX_PAYLOAD_MB allows {self.blobs.limit // _COPIES:,} "
                "(a run holds them up to three times): leave files out, or raise the setting"
            )
        text = plan.model_dump_json()
        if (size := len(text.encode())) > self.blobs.limit:
            raise PayloadTooLargeError(
                f"plan: it has {size:,} bytes, and PTC_MAX_PAYLOAD_MB allows {self.blobs.limit:,}: make it smaller, or "
                "raise the setting"
            )
        return text

    def read_plan(self, run_id: str, blob: bytes) -> PTCExecutionPlan:
        """Open it again."""
        try:
            return PTCExecutionPlan.model_validate_json(self.blobs.open(blob, run_id, "plan"))
        except ValidationError:
            raise UnreadableBlobError(f"{run_id} plan is damaged, or of another version") from None

    def progress(self, run_id: str, stage: Stage, progress: Progress) -> bytes:
        """Seal how far a run has come, for the stage that goes on from there."""
        return self.blobs.seal(
            progress.model_dump_json(), run_id, "progress", stage.value, progress.iteration
        )

    def history(self, progress: Progress) -> bytes:
        """Write what became of each iteration, for whoever watches: open to all, and short."""
        return _HISTORY.dump_json(progress.history)

    def read_history(self, notes: str | None) -> tuple[IterationNote, ...]:
        """Read it again."""
        return tuple(_HISTORY.validate_json(notes or "[]"))

    def checkpoint(self, run_id: str, name: str, value: object) -> bytes:
        """Seal what a stage produced; the name holds stage and iteration."""
        return self.blobs.seal(json.dumps(value), run_id, "checkpoint", name)

    def read_checkpoint(self, run_id: str, name: str, blob: bytes) -> Any:  # noqa: ANN401 whatever JSON was kept
        """Open it again."""
        return json.loads(self.blobs.open(blob, run_id, "checkpoint", name))

    def call(self, run_id: str, call: ModelCall) -> bytes:
        """Seal one entry of the bill."""
        return self.blobs.seal(call.model_dump_json(), run_id, "usage", call.call_id)

    def read_call(self, run_id: str, call_id: str, blob: bytes) -> ModelCall:
        """Open it again."""
        return ModelCall.model_validate_json(self.blobs.open(blob, run_id, "usage", call_id))

    def result(
        self, run_id: str, plan_digest: str, result: PTCArtifactResult
    ) -> tuple[PTCArtifactResult, bytes]:
        """Seal a result for its plan; one that is too large becomes a failure without its files, which says so."""
        try:
            return result, self._sealed(run_id, plan_digest, result)
        except PayloadTooLargeError as error:
            bare = result.model_copy(
                update={
                    "status": ExecutionStatus.FAILURE,
                    "artifacts": [],
                    "test_results": None,
                    "error_message": str(error),
                    "metadata": {"run_id": run_id},
                }
            )
            return bare, self._sealed(run_id, plan_digest, bare)

    def _sealed(self, run_id: str, plan_digest: str, result: PTCArtifactResult) -> bytes:
        return self.blobs.seal(result.model_dump_json(), run_id, "result", plan_digest)

    def read_result(self, run_id: str, plan_digest: str, blob: bytes) -> PTCArtifactResult:
        """Open it again."""
        text = self.blobs.open(blob, run_id, "result", plan_digest)
        try:
            return PTCArtifactResult.model_validate_json(text)
        except ValidationError:
            raise UnreadableBlobError(f"the result of run {run_id} has another form") from None

    def read_run(self, record: Mapping[str, bytes], now_ms: int) -> Run:
        """Read a record as it was at this server time.

        Raises:
            UnreadableBlobError: a part of it is damaged, or not signed with this process's key.
            ValueError, KeyError: it has another form.
        """
        run_id, stage = record["run_id"].decode(), Stage(record["stage"].decode())
        place = (run_id, "progress", stage.value, int(record["iteration"]))
        started_ms = int(record.get("started_at", record["submitted_at"]))
        return Run(
            run_id=run_id,
            key=record["key"].decode(),
            digest=record["digest"].decode(),
            plan=PTCExecutionPlan.model_validate_json(self.blobs.open(record["plan"], run_id, "plan")),
            stage=stage,
            fence=int(record["fence"]),
            progress=Progress.model_validate_json(self.blobs.open(record["progress"], *place)),
            started_at=datetime.fromtimestamp(started_ms / 1000, UTC),
            deadline=time.monotonic() + (int(record.get("deadline_at", now_ms)) - now_ms) / 1000,
            starts=int(record["starts"]),
            waited_for=record.get("waited_for", b"").decode(),
            cancelled="cancelled" in record,
            expired="expired" in record,
        )


END_FIELDS = (
    *("state", "started_at", "deadline_at", "timeout_ms", "lease_until", "cancelled", "expires_at"),
    "waited_for",
)
"""The fields of a record that tell whether it is over."""


class Over(NamedTuple):
    """How a run ends that nobody works on any more."""

    status: ExecutionStatus
    message: str
    reason: StopReason


def end_of(record: Mapping[str, bytes], now_ms: int, grace_ms: int) -> Over | None:
    """Tell how a run ends that is over by these fields, and why; None if it goes on, or its worker will end it.

    The worker that holds a run has the grace to see that its time is over.
    """
    if record.get("state", b"ended") == b"ended":
        return None
    started = "started_at" in record
    if started and int(record["deadline_at"]) + grace_ms <= now_ms:
        seconds = int(record["timeout_ms"]) / 1000
        waited_for = record.get("waited_for", b"").decode()
        why = f"it waited: {waited_for}" if waited_for else "no worker was free"
        message = f"timeout_seconds={seconds:g} ran out while {why}"
        return Over(ExecutionStatus.TIMEOUT, message, StopReason.TIMEOUT)
    if record["state"] == b"running" and int(record["lease_until"]) > now_ms:
        return None
    if "cancelled" in record:
        return Over(ExecutionStatus.FAILURE, CANCELLED, StopReason.CANCELLED)
    if not started and int(record.get("expires_at", now_ms)) < now_ms:
        return Over(ExecutionStatus.TIMEOUT, EXPIRED, StopReason.TIMEOUT)
    return None
