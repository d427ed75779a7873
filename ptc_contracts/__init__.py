"""Everything that crosses a process boundary; needs Pydantic and redis-py, nothing else."""

from ptc_contracts.cache import PTCCacheManager
from ptc_contracts.errors import (
    ConfigurationError,
    InvalidPlanError,
    PayloadTooLargeError,
    PTCError,
    RunNotFinishedError,
    RunNotFoundError,
    ServerUnavailableError,
)
from ptc_contracts.plan import CacheStrategy, LLMProvider, PTCExecutionPlan, ScaffoldingSpec
from ptc_contracts.result import (
    ArtifactType,
    CodeArtifact,
    ExecutionStatus,
    LLMUsage,
    PTCArtifactResult,
    TestResult,
)

__all__ = [
    "ArtifactType",
    "CacheStrategy",
    "CodeArtifact",
    "ConfigurationError",
    "ExecutionStatus",
    "InvalidPlanError",
    "LLMProvider",
    "LLMUsage",
    "PTCArtifactResult",
    "PTCCacheManager",
    "PTCError",
    "PTCExecutionPlan",
    "PayloadTooLargeError",
    "RunNotFinishedError",
    "RunNotFoundError",
    "ScaffoldingSpec",
    "ServerUnavailableError",
    "TestResult",
]
