"""What is known of a draft once it was examined."""

from __future__ import annotations

from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ptc_contracts.result import TestResult


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


class Severity(str, Enum):
    """What an issue means for a draft."""

    ERROR = "error"
    """It is not run before this is mended."""
    WARNING = "warning"
    """It is run; the issue is told with what its tests say."""


class GateStage(str, Enum):
    """Where in the look at a draft an issue was found."""

    SYNTACTIC = "syntactic"
    """In one file, by its grammar."""
    SEMANTIC = "semantic"
    """In one file, by what its words mean."""
    INTEGRATION = "integration"
    """Between files, or between the draft and its plan."""


class GateIssue(BaseModel):
    """One thing that is wrong with a draft and can be seen without running it."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True)

    file: str
    """The file, or the path that is missing."""
    line: int | None = None
    """From 1; null where no line is at fault."""
    code: str
    """A stable name: `syntax`, `F821`, `unresolved-import`, `missing-file`, `no-tests` …"""
    message: str
    """What is wrong, for the model and for people."""
    severity: Severity = Severity.ERROR
    """What it means for the draft."""
    stage: GateStage = GateStage.SYNTACTIC
    """Where it was found."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message}"


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
    signature: str = ""
    """Equal for equal failures, whatever addresses, times and temporary paths they name; empty for green."""
    issues: list[GateIssue] = Field(default_factory=list)
    """What the gate found, the first ones of very many."""

    @property
    def score(self) -> tuple[int, int, int]:
        """Order verdicts from worst to best: tests ran and can be believed, tests passed, fewest failures."""
        if self.test_results is None or self.outcome is Outcome.TAMPERED:
            return (-1 if self.outcome is Outcome.UNREADABLE else 0, 0, 0)
        return (1, self.test_results.tests_passed, -self.test_results.tests_failed)
