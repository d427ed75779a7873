"""The result: files, what the tests said, and what it cost."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ptc_contracts.paths import unsafe_reason


class ExecutionStatus(str, Enum):
    """How an execution ended."""

    SUCCESS = "SUCCESS"
    """Generated, and its tests passed when testing is enabled."""
    PARTIAL_SUCCESS = "PARTIAL_SUCCESS"
    """Generated, but its tests failed, could not be collected or did not run although testing is enabled."""
    FAILURE = "FAILURE"
    """No usable code."""
    TIMEOUT = "TIMEOUT"
    """The plan's time ran out; the best files so far are in the result."""
    CACHE_HIT = "CACHE_HIT"
    """Served from the cache."""


class ArtifactType(str, Enum):
    """What a file is for."""

    SOURCE_CODE = "source_code"
    CONFIG = "config"
    DOCUMENTATION = "documentation"
    TEST = "test"
    DATA = "data"


class CodeArtifact(BaseModel):
    """One generated file."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    file_path: str
    """Path below the project's directory, with forward slashes."""
    content: str
    """The whole text of the file."""
    artifact_type: ArtifactType = ArtifactType.SOURCE_CODE
    """What the file is for."""
    language: str | None = None
    """Its language, in lower case, where known."""
    description: str | None = None
    """What its author says about it."""

    @field_validator("file_path")
    @classmethod
    def _inside(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("file_path cannot be empty")
        path = value.lstrip("/")
        if reason := unsafe_reason(path):
            raise ValueError(f"file_path {value!r} is not allowed: {reason}")
        return path


class TestResult(BaseModel):
    """One run of the tests."""

    __test__ = False  # pytest collects by name
    model_config = ConfigDict(use_attribute_docstrings=True)

    test_command: str
    """The command line that ran the tests."""
    exit_code: int
    """Its exit code; negative for the signal that ended it."""
    stdout: str = ""
    """Its standard output, trimmed in the middle when long."""
    stderr: str = ""
    """Its standard error, trimmed in the middle when long."""
    tests_passed: int = Field(default=0, ge=0)
    """Tests that passed."""
    tests_failed: int = Field(default=0, ge=0)
    """Tests that failed, raised an error or never finished."""
    duration_seconds: float = Field(ge=0, allow_inf_nan=False)
    """Wall time of the command."""

    @property
    def success(self) -> bool:
        """Whether the command ended with 0 and no test failed."""
        return self.exit_code == 0 and self.tests_failed == 0


class LLMUsage(BaseModel):
    """What one provider's model was asked for, failed and abandoned calls that were billed included."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    provider: str
    """The provider's name."""
    model: str
    """The model that answered."""
    prompt_tokens: int = Field(default=0, ge=0)
    """Tokens read, cached ones included."""
    completion_tokens: int = Field(default=0, ge=0)
    """Tokens written, reasoning included."""
    total_tokens: int = Field(default=0, ge=0)
    """Both together."""
    api_calls: int = Field(default=1, ge=0)
    """Calls that were billed."""
    cost_usd: float | None = Field(default=None, ge=0)
    """US dollars; null when the price is unknown, never 0 for unknown."""


class PTCArtifactResult(BaseModel):
    """What ROMA gets back."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    execution_id: str
    """The caller's name for the execution."""
    status: ExecutionStatus
    """How it ended."""
    artifacts: list[CodeArtifact] = Field(default_factory=list)
    """The files."""
    test_results: TestResult | None = None
    """What the tests said about these files; null when none ran."""
    iterations_used: int = Field(default=1, ge=0)
    """Drafts that were written."""
    error_message: str | None = None
    """What went wrong, for people."""
    warnings: list[str] = Field(default_factory=list)
    """What a careful reader should know."""
    llm_usage: list[LLMUsage] = Field(default_factory=list)
    """One entry per provider and model used by this call."""
    started_at: datetime
    """When the first stage began."""
    completed_at: datetime
    """When the last stage ended."""
    duration_seconds: float = Field(ge=0, allow_inf_nan=False)
    """Seconds between the two."""
    from_cache: bool = False
    """Whether the result was served from the cache."""
    cache_key: str | None = None
    """The plan's cache key."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Facts about the run: run id, isolation, tests one by one …"""

    @field_validator("execution_id")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("execution_id cannot be empty")
        return value.strip()

    @property
    def success(self) -> bool:
        """Whether the files can be used as they are."""
        return self.status in {ExecutionStatus.SUCCESS, ExecutionStatus.CACHE_HIT}

    @property
    def total_tokens_used(self) -> int:
        """Tokens of all entries of `llm_usage`."""
        return sum(usage.total_tokens for usage in self.llm_usage)

    @property
    def total_cost_usd(self) -> float:
        """US dollars of all entries of `llm_usage` whose price is known."""
        return sum(usage.cost_usd for usage in self.llm_usage if usage.cost_usd is not None)
