"""The plan: what ROMA wants built, and within which bounds."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from math import isfinite
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from ptc_contracts.paths import clashes_among, untidy_reason

DEFAULT_CACHE_TTL = 3600
"""Seconds a result stays in the cache when neither caller nor plan says."""

_MAX_ARCHITECTURE_DEPTH = 100
_MAX_INTEGER_BITS = 1024
_MOST_FILES = {"test_files": 100, "initial_files": 1000}


class LLMProvider(str, Enum):
    """Who writes the code."""

    CLAUDE = "claude"
    KIMI = "kimi"
    OPENAI = "openai"
    OPENROUTER = "openrouter"


class CacheStrategy(str, Enum):
    """When an earlier result may stand in for a new run."""

    ALWAYS = "always"
    NEVER = "never"
    SMART = "smart"


class ScaffoldingSpec(BaseModel):
    """What to build."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    task_description: str
    """What the project is to do, in prose."""
    requirements: list[str] = Field(default_factory=list)
    """What must hold of the project, one sentence each."""
    architecture: dict[str, Any] | None = None
    """How it is to be built: any JSON object."""
    dependencies: list[str] = Field(default_factory=list)
    """Packages it may use, as requirement specifiers (`fastapi`, `pydantic>=2`)."""
    file_structure: dict[str, str] | None = None
    """The files it should have: path to description."""
    context: str | None = None
    """Anything else the author should know."""


class PTCExecutionPlan(BaseModel):
    """A plan as ROMA sends it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    execution_id: str
    """The caller's name for this execution; the same plan sent again under it is a retry."""
    scaffolding: ScaffoldingSpec
    """What to build."""
    primary_llm: LLMProvider = LLMProvider.CLAUDE
    """The provider that is asked first."""
    fallback_llm: LLMProvider | None = LLMProvider.KIMI
    """The provider that is asked when the first one cannot answer; none when null."""
    max_iterations: int = Field(default=3, ge=1, le=10)
    """Most drafts that are written before the best one is returned."""
    timeout_seconds: int = Field(default=300, ge=30, le=3600)
    """Seconds for the whole execution, from its first start on a worker, waits between stages included."""
    enable_testing: bool = True
    """Whether the generated tests are run."""
    cache_strategy: CacheStrategy = CacheStrategy.SMART
    """When an earlier result may be returned."""
    cache_ttl: int | None = Field(default=DEFAULT_CACHE_TTL, ge=0)
    """Seconds this plan's result is kept and the oldest it accepts; 0 stores nothing, null is the default."""
    max_cost_usd: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """US dollars that the models may cost; the installation's own limit holds too."""
    test_files: dict[str, str] = Field(default_factory=dict)
    """Tests that the project must pass, path to content; no model can change them."""
    initial_files: dict[str, str] = Field(default_factory=dict)
    """Files to start from, path to content: the first draft changes them; where `test_files` have the same path, those
    count."""
    project_name: str | None = None
    """A name for people."""
    roma_task_id: str | None = None
    """The ROMA task this plan belongs to."""
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    """When the plan was made."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Whatever the caller wants to find again; it never changes the code."""

    @field_validator("execution_id")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("execution_id cannot be empty")
        return value.strip()

    @field_validator("scaffolding")
    @classmethod
    def _buildable(cls, value: ScaffoldingSpec) -> ScaffoldingSpec:
        if not value.task_description.strip():
            raise ValueError("scaffolding.task_description cannot be empty")
        if value.architecture is not None:
            _require_json(value.architecture, "scaffolding.architecture")
        return value

    @field_validator("test_files", "initial_files")
    @classmethod
    def _writable(cls, value: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        if len(value) > (most := _MOST_FILES[str(info.field_name)]):
            raise ValueError(f"more than {most} files")
        for path, content in value.items():
            if reason := untidy_reason(path):
                raise ValueError(f"{path!r} is not allowed: {reason}")
            if "\0" in content or not _is_utf8(content):
                raise ValueError(f"the content of {path!r} is not text")
        if clashes := clashes_among(value):
            raise ValueError(f"{clashes[0]!r} clashes with another path")
        return value


def _require_json(value: object, where: str, depth: int = 0) -> None:
    """Refuse what would not survive JSON unchanged, for the cache key is computed on both sides of it."""
    if depth > _MAX_ARCHITECTURE_DEPTH:
        raise ValueError(f"{where} is not JSON: nested more than {_MAX_ARCHITECTURE_DEPTH} deep")
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ValueError(f"{where} is not JSON: the name {name!r} is not a string")  # noqa: TRY004 Pydantic turns ValueError alone into a validation error
            _require_json(name, where, depth + 1)
            _require_json(item, f"{where}.{name}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _require_json(item, f"{where}[{index}]", depth + 1)
    elif reason := _not_json(value):
        raise ValueError(f"{where} is not JSON: {reason}")


def _not_json(value: object) -> str | None:
    match value:
        case str() if not _is_utf8(value):
            return f"{value!r} is not valid Unicode"
        case int() if value.bit_length() > _MAX_INTEGER_BITS:
            return "a number is too large"
        case float() if not isfinite(value):
            return f"{value} is not a JSON number"
        case None | str() | float() | int():
            return None
    return f"{type(value).__name__} has no JSON form"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
