"""What a run tells while it goes on: messages in a Redis stream of its own, which anybody may follow.

| event_type | when | data |
|---|---|---|
| execution_started | its first stage began | run_id, key, max_iterations; from_cache for a cache hit |
| stage_started | generate or sandbox began | iteration, max_iterations, start (from 1: more after a worker died) |
| code_generating | a model is asked | provider, model, request |
| code_generating | it has written more | text (redacted), chars so far |
| code_generated | it has answered | provider, model, request, outcome, seconds, from_cache, usage |
| code_block_ready | a file of the draft is there | path, language, bytes, new |
| validation_started | the gate looks at the draft | files |
| validation_passed, validation_warning, validation_failed | what it found | issues: file, line, code, message, severity |
| test_started | a runner begins with the draft's tests; what it told before, in this iteration, holds no more | runner, collected |
| test_passed, test_failed | a test has ended, by its own report | test, outcome, seconds |
| progress | anything else that moved; a test that was left out | as test_passed, for a test |
| warning | it has to wait, a provider was given up … | |
| stage_completed | a stage is over | iteration; of a verdict outcome, passed, failed, issues; follows |
| execution_completed | SUCCESS, PARTIAL_SUCCESS or CACHE_HIT | status, stop_reason, iterations_used, files, tests_passed, tests_failed, duration_seconds, usage |
| execution_failed | FAILURE or TIMEOUT; `error` says why | the same |

`usage` sums the run up so far: calls, total_tokens, cost_usd (null where a price is unknown). What tests report while they
run is their own word: only the verdict in `stage_completed` counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_OID, uuid4, uuid5

from pydantic import BaseModel, ConfigDict, Field

from ptc_contracts.result import ExecutionStatus

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ptc_contracts.result import LLMUsage, PTCArtifactResult


class StreamEventType(str, Enum):
    """What a message tells of; wire values are the contract's."""

    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    EXECUTION_STARTED = "execution_started"
    EXECUTION_COMPLETED = "execution_completed"
    EXECUTION_FAILED = "execution_failed"
    PROGRESS = "progress"
    STAGE_STARTED = "stage_started"
    STAGE_COMPLETED = "stage_completed"
    VALIDATION_STARTED = "validation_started"
    VALIDATION_PASSED = "validation_passed"
    VALIDATION_FAILED = "validation_failed"
    VALIDATION_WARNING = "validation_warning"
    CODE_GENERATING = "code_generating"
    CODE_GENERATED = "code_generated"
    CODE_BLOCK_READY = "code_block_ready"
    TEST_STARTED = "test_started"
    TEST_PASSED = "test_passed"
    TEST_FAILED = "test_failed"
    ERROR = "error"
    WARNING = "warning"


ENDS = frozenset({StreamEventType.EXECUTION_COMPLETED, StreamEventType.EXECUTION_FAILED})
"""Nothing of a run comes after one of these."""


class StreamMessage(BaseModel):
    """One thing that happened to a run."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str = Field(default_factory=lambda: str(uuid4()))
    """Unique; whoever comes back names the last one that it has."""
    event_type: StreamEventType
    """What happened."""
    timestamp: datetime = Field(default_factory=lambda: datetime.now(UTC))
    """When."""
    execution_id: str | None = None
    """The execution of the plan that it is told to."""
    stage: str | None = None
    """`generate` or `sandbox`."""
    progress: float | None = Field(default=None, ge=0, le=1)
    """Rough share of the work that is done."""
    message: str | None = None
    """The same in words."""
    data: dict[str, Any] | None = None
    """Its facts, by the table of this module."""
    error: str | None = None
    """What went wrong."""


@dataclass(frozen=True, kw_only=True)
class Addition:
    """What is added to what a run tells, as JSON, together with what moves the run on or by itself."""

    opening: str = ""
    """The message that opens a run: told where nothing was told before."""
    telling: str = ""
    """The name of a telling that may have arrived, among those of the run; empty if there is none."""
    doubtful: int = 0
    """How many of the messages, the first ones, it has: they count once, whether it arrived or not."""
    messages: tuple[str, ...] = ()

    @property
    def args(self) -> list[str | int]:
        """Lay it out as the scripts take it."""
        return [self.opening, self.telling, self.doubtful, *self.messages]


NOTHING = Addition()


def ended_message(result: PTCArtifactResult) -> StreamMessage:
    """Tell of a run's end, and of nothing after it; its id is the run's own, whoever tells it and however often."""
    failed = result.status in {ExecutionStatus.FAILURE, ExecutionStatus.TIMEOUT}
    tests = result.test_results
    counts = f", {tests.tests_passed} passed, {tests.tests_failed} failed" if tests else ""
    return StreamMessage(
        id=str(uuid5(NAMESPACE_OID, f"{result.metadata.get('run_id')} ended")),
        event_type=StreamEventType.EXECUTION_FAILED if failed else StreamEventType.EXECUTION_COMPLETED,
        execution_id=result.execution_id,
        progress=1.0,
        message=f"{result.status.value}{counts}",
        data={
            "status": result.status.value,
            "stop_reason": result.metadata.get("stop_reason"),
            "iterations_used": result.iterations_used,
            "files": len(result.artifacts),
            "tests_passed": tests.tests_passed if tests else None,
            "tests_failed": tests.tests_failed if tests else None,
            "duration_seconds": result.duration_seconds,
            "usage": usage_told(result.llm_usage),
        },
        error=result.error_message if failed else None,
    )


def hit_messages(result: PTCArtifactResult) -> tuple[StreamMessage, StreamMessage]:
    """Tell of a plan that the cache answered: there is no run, and so no stream; each time with the same ids."""
    answer = f"{result.cache_key} {result.execution_id}"
    started = StreamMessage(
        id=str(uuid5(NAMESPACE_OID, answer)),
        event_type=StreamEventType.EXECUTION_STARTED,
        execution_id=result.execution_id,
        progress=0.0,
        message="the cache answers",
        data={"run_id": "", "key": result.cache_key, "from_cache": True},
    )
    ended = ended_message(result)
    return started, ended.model_copy(update={"id": str(uuid5(NAMESPACE_OID, f"{answer} ended"))})


def usage_told(usage: Iterable[LLMUsage]) -> dict[str, Any]:
    """Sum usage up for a message; one unknown price makes the cost unknown."""
    entries = list(usage)
    costs = [entry.cost_usd for entry in entries]
    return {
        "calls": sum(entry.api_calls for entry in entries),
        "total_tokens": sum(entry.total_tokens for entry in entries),
        "cost_usd": None if None in costs else sum(cost for cost in costs if cost is not None),
    }
