"""How far a run has come, and what result that makes when it ends."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from ptc_contracts.bill import ModelCall, accounts_of, usage_of
from ptc_contracts.result import CodeArtifact, ExecutionStatus, PTCArtifactResult
from ptc_contracts.verdicts import GateIssue, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ptc_contracts.plan import PTCExecutionPlan


class StopReason(str, Enum):
    """Why a run stopped."""

    GREEN = "green"
    """Its tests passed."""
    NOT_TESTED = "not_tested"
    """The plan switched testing off."""
    MAX_ITERATIONS = "max_iterations"
    STUCK = "stuck"
    """The same failure came a third time."""
    UNPARSEABLE = "unparseable_output"
    """The model's answers held no file."""
    BUDGET = "budget"
    """The next call could have cost more than is left to spend."""
    NO_ANSWER = "no_answer"
    """No provider answered."""
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    UNSUPPORTED = "unsupported"
    """Nothing here can run this project's tests."""
    NOT_RUN = "not_run"
    """The tests could not be run, through no fault of the draft."""
    CONFIGURATION = "configuration"
    GIVEN_UP = "given_up"
    """Its workers died or fell silent again and again."""
    INTERNAL = "internal_error"


class Attempt(BaseModel):
    """A draft together with its verdict."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    iteration: int
    """Which iteration wrote it, from 1."""
    files: list[CodeArtifact] = Field(default_factory=list)
    """All files of the project as it then stood."""
    verdict: Verdict
    """What became of them."""


class IterationNote(BaseModel):
    """What became of one iteration, for whoever watches."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    iteration: int
    """Which one, from 1."""
    outcome: Outcome
    """What became of its draft."""
    passed: int = 0
    """Tests that passed."""
    failed: int = 0
    """Tests that did not."""
    signature: str = ""
    """The signature of its verdict."""
    issues: int = 0
    """What the gate found wrong with it."""


class TestRepair(BaseModel):
    """The one round in which a model may change tests that were frozen, because it disputes one of them."""

    __test__ = False  # pytest collects by name
    model_config = ConfigDict(use_attribute_docstrings=True)

    iteration: int
    """The iteration that disputed."""
    note: str
    """Which test contradicts which requirement, in the model's words."""
    files: list[str] = Field(default_factory=list)
    """The test files that were changed."""


class Progress(BaseModel):
    """What a run hands from stage to stage."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    iteration: int = 1
    """The iteration under way, from 1."""
    draft: list[CodeArtifact] | None = None
    """The files that wait for their verdict."""
    best: Attempt | None = None
    """The best examined draft so far; the next iteration starts from it, unless it starts afresh."""
    fresh: bool = False
    """Whether the iteration under way starts afresh, because the same failure came twice."""
    lead: str | None = None
    """The provider that is asked first, where it is no longer the plan's primary one."""
    frozen: list[CodeArtifact] | None = None
    """Tests and their configuration as the first draft had them that passed the gate; None before it."""
    noticed: list[GateIssue] = Field(default_factory=list)
    """What the gate only warns of in the draft that waits for its verdict."""
    rejected: list[str] = Field(default_factory=list)
    """Changes of frozen or given tests that the answer under way asked for, and that were discarded: paths."""
    repair: TestRepair | None = None
    """The repair of frozen tests, once a model has disputed one."""
    history: list[IterationNote] = Field(default_factory=list)
    """What became of each iteration so far."""
    warnings: list[str] = Field(default_factory=list)
    """What the result's reader should know."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """What goes into the result's metadata."""

    def examined(self, verdict: Verdict, files: list[CodeArtifact]) -> Progress:
        """Note a verdict; of two equally good drafts the newer one is kept."""
        verdict = verdict.model_copy(update={"issues": [*self.noticed, *verdict.issues]})
        attempt = Attempt(iteration=self.iteration, files=files, verdict=verdict)
        better = self.best is None or verdict.score >= self.best.verdict.score
        tests = verdict.test_results
        note = IterationNote(
            iteration=self.iteration,
            outcome=verdict.outcome,
            passed=tests.tests_passed if tests else 0,
            failed=tests.tests_failed if tests else 0,
            signature=verdict.signature,
            issues=len(verdict.issues),
        )
        return self.model_copy(
            update={
                "draft": None,
                "noticed": [],
                "rejected": [],
                "best": attempt if better else self.best,
                "history": [*self.history, note],
            }
        )

    def noting(self, warnings: Iterable[str] = (), **facts: object) -> Progress:
        """Add warnings, each once, and facts."""
        kept = dict.fromkeys([*self.warnings, *warnings])
        return self.model_copy(update={"warnings": list(kept), "facts": {**self.facts, **facts}})

    @property
    def best_files(self) -> list[CodeArtifact]:
        """The files to return if the run ended now: tested ones before a draft that nobody ran."""
        if self.best and (self.best.verdict.test_results or not self.draft):
            return self.best.files
        return self.draft or []

    @property
    def best_verdict(self) -> Verdict | None:
        """The verdict on `best_files`, if they were examined."""
        return self.best.verdict if self.best and self.best_files is self.best.files else None


def conclude(
    plan: PTCExecutionPlan,
    progress: Progress,
    status: ExecutionStatus,
    *,
    run_id: str,
    cache_key: str,
    started_at: datetime,
    calls: Iterable[ModelCall],
    error_message: str | None = None,
    stop_reason: StopReason,
) -> PTCArtifactResult:
    """Make the result of a run that ends with this status."""
    completed_at = max(datetime.now(UTC), started_at)
    verdict = progress.best_verdict
    calls = list(calls)
    told = {"outcome", "counts", "tests", "issues"}
    examined = verdict.model_dump(mode="json", include=told) if verdict else {}
    return PTCArtifactResult(
        execution_id=plan.execution_id,
        status=status,
        artifacts=progress.best_files,
        test_results=verdict.test_results if verdict else None,
        iterations_used=len(progress.history) + (progress.draft is not None),
        error_message=error_message,
        warnings=progress.warnings,
        llm_usage=usage_of(calls),
        started_at=started_at,
        completed_at=completed_at,
        duration_seconds=(completed_at - started_at).total_seconds(),
        cache_key=cache_key,
        metadata={
            "run_id": run_id,
            **progress.facts,
            "stop_reason": stop_reason.value,
            "history": [note.model_dump(mode="json") for note in progress.history],
            **examined,
            **accounts_of(calls),
            **({"test_repair": progress.repair.model_dump()} if progress.repair else {}),
        },
    )
