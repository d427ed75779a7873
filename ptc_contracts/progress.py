"""How far a run has come, and what result that makes when it ends."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from ptc_contracts.result import CodeArtifact, ExecutionStatus, LLMUsage, PTCArtifactResult, TestResult

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ptc_contracts.plan import PTCExecutionPlan


class Outcome(str, Enum):
    """What became of one draft; everything but PASSED is red."""

    PASSED = "passed"
    FAILED = "failed"
    COLLECTION_ERROR = "collection_error"
    NO_TESTS = "no_tests"
    """None was collected, or none passed."""
    USAGE_ERROR = "usage_error"
    """pytest refused its configuration."""
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    """The run never came to its end."""
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_LIMIT = "output_limit"
    TAMPERED = "tampered"
    """What the run reports cannot be believed."""
    MISSING_DEPENDENCY = "missing_dependency"
    GATE = "gate"
    """The static gate refused it; no sandbox was spent."""
    UNREADABLE = "unreadable"
    """The model's answer held no file."""


class Verdict(BaseModel):
    """What is known of a draft once it was examined."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    outcome: Outcome
    """What became of it."""
    test_results: TestResult | None = None
    """The run of its tests, if they ran."""
    feedback: str = ""
    """What the model is told, in prose."""
    tests: list[dict[str, Any]] = Field(default_factory=list)
    """Tests one by one: `id`, `outcome`, `seconds`; of very many, those that did not pass come first."""
    counts: dict[str, int] = Field(default_factory=dict)
    """How many tests there were of each outcome: passed, failed, error, skipped, xfailed, xpassed, notrun, hidden."""

    @property
    def score(self) -> tuple[int, int, int]:
        """Order verdicts from worst to best: tests ran and can be believed, tests passed, fewest failures."""
        if self.test_results is None or self.outcome is Outcome.TAMPERED:
            return (-1 if self.outcome is Outcome.UNREADABLE else 0, 0, 0)
        return (1, self.test_results.tests_passed, -self.test_results.tests_failed)


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


class ModelCall(BaseModel):
    """One call of a model that was, or may have been, billed."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    call_id: str
    """Unique to the call: a usage that is reported twice counts once."""
    iteration: int
    """The iteration that made it."""
    provider: str
    """The provider's name."""
    model: str
    """The model that answered."""
    prompt_tokens: int = 0
    """Tokens read, cached ones included."""
    cached_tokens: int = 0
    """Of these, tokens read from the provider's prompt cache."""
    completion_tokens: int = 0
    """Tokens written, reasoning included."""
    cost_usd: float | None = None
    """US dollars; null when the price is unknown."""
    seconds: float = 0.0
    """Wall time of the call."""
    outcome: str = "ok"
    """`ok`, or the kind of error that ended it."""
    estimated: bool = False
    """Whether the tokens are counted from the text, because the provider's own count never came."""


class Progress(BaseModel):
    """What a run hands from stage to stage."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    iteration: int = 1
    """The iteration under way, from 1."""
    draft: list[CodeArtifact] | None = None
    """The files that wait for their verdict."""
    best: Attempt | None = None
    """The best examined draft so far; the next iteration starts from it."""
    history: list[IterationNote] = Field(default_factory=list)
    """What became of each iteration so far."""
    warnings: list[str] = Field(default_factory=list)
    """What the result's reader should know."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """What goes into the result's metadata."""

    def examined(self, verdict: Verdict, files: list[CodeArtifact]) -> Progress:
        """Note a verdict; of two equally good drafts the newer one is kept."""
        attempt = Attempt(iteration=self.iteration, files=files, verdict=verdict)
        better = self.best is None or verdict.score >= self.best.verdict.score
        tests = verdict.test_results
        note = IterationNote(
            iteration=self.iteration,
            outcome=verdict.outcome,
            passed=tests.tests_passed if tests else 0,
            failed=tests.tests_failed if tests else 0,
        )
        return self.model_copy(
            update={
                "draft": None,
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


def usage_of(calls: Iterable[ModelCall]) -> list[LLMUsage]:
    """Sum calls up, one entry per provider and model; one unknown price makes the sum unknown."""
    sums: dict[tuple[str, str], LLMUsage] = {}
    for call in calls:
        usage = sums.setdefault(
            (call.provider, call.model),
            LLMUsage(provider=call.provider, model=call.model, api_calls=0, cost_usd=0.0),
        )
        usage.prompt_tokens += call.prompt_tokens
        usage.completion_tokens += call.completion_tokens
        usage.total_tokens += call.prompt_tokens + call.completion_tokens
        usage.api_calls += 1
        known = usage.cost_usd is not None and call.cost_usd is not None
        usage.cost_usd = (usage.cost_usd or 0.0) + (call.cost_usd or 0.0) if known else None
    return list(sums.values())


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
) -> PTCArtifactResult:
    """Make the result of a run that ends with this status."""
    completed_at = max(datetime.now(UTC), started_at)
    verdict = progress.best_verdict
    calls = list(calls)
    examined = verdict.model_dump(mode="json", include={"outcome", "counts", "tests"}) if verdict else {}
    estimated = sum(call.estimated for call in calls)
    return PTCArtifactResult(
        execution_id=plan.execution_id,
        status=status,
        artifacts=progress.best_files,
        test_results=verdict.test_results if verdict else None,
        iterations_used=progress.iteration,
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
            "history": [note.model_dump(mode="json") for note in progress.history],
            **examined,
            **({"calls_with_estimated_tokens": estimated} if estimated else {}),
        },
    )
