"""All that `roma_bridge` exports."""

from ptc_contracts import (
    ArtifactType,
    CacheStrategy,
    CodeArtifact,
    ConfigurationError,
    ExecutionStatus,
    InvalidPlanError,
    LLMProvider,
    LLMUsage,
    PayloadTooLargeError,
    PTCArtifactResult,
    PTCCacheManager,
    PTCError,
    PTCExecutionPlan,
    RunNotFinishedError,
    RunNotFoundError,
    ScaffoldingSpec,
    ServerUnavailableError,
    TestResult,
    UnreadableBlobError,
)
from ptc_contracts.events import StreamEventType, StreamMessage
from ptc_contracts.run import Departure, RunPage, RunState, RunStatus, RunSummary
from ptc_contracts.stages import Priority
from roma_bridge.artifacts import ArtifactProcessor, ArtifactProcessorError
from roma_bridge.batch import Batch
from roma_bridge.client import PTC, list_runs, submit_plan, submit_plan_async, submit_plans
from roma_bridge.following import Events
from roma_bridge.handle import PlanHandle

__all__ = [
    "PTC",
    "ArtifactProcessor",
    "ArtifactProcessorError",
    "ArtifactType",
    "Batch",
    "CacheStrategy",
    "CodeArtifact",
    "ConfigurationError",
    "Departure",
    "Events",
    "ExecutionStatus",
    "InvalidPlanError",
    "LLMProvider",
    "LLMUsage",
    "PTCArtifactResult",
    "PTCCacheManager",
    "PTCError",
    "PTCExecutionPlan",
    "PayloadTooLargeError",
    "PlanHandle",
    "Priority",
    "RunNotFinishedError",
    "RunNotFoundError",
    "RunPage",
    "RunState",
    "RunStatus",
    "RunSummary",
    "ScaffoldingSpec",
    "ServerUnavailableError",
    "StreamEventType",
    "StreamMessage",
    "TestResult",
    "UnreadableBlobError",
    "list_runs",
    "submit_plan",
    "submit_plan_async",
    "submit_plans",
]
