"""The public surface is a list."""

from __future__ import annotations

import subprocess
import sys

import ptc_contracts
import ptc_worker
import roma_bridge

CONTRACTS = [
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
    "UnreadableBlobError",
]


def test_the_contracts_export_these_names() -> None:
    """Adding one is a decision."""
    assert sorted(ptc_contracts.__all__) == CONTRACTS


def test_the_bridge_exports_the_contracts_and_its_own() -> None:
    """Code that plans needs one import."""
    assert sorted(roma_bridge.__all__) == sorted(
        [*CONTRACTS, "Departure", "PTC", "PlanHandle", "submit_plan"]
    )


def test_the_worker_exports_its_application() -> None:
    """`celery -A ptc_worker` finds it."""
    assert ptc_worker.__all__ == ["app"]


def test_the_bridge_imports_without_the_workers_packages() -> None:
    """A client installs without the vendors' SDKs, and importing it loads none."""
    script = (
        "import sys, roma_bridge, roma_bridge.cli;"
        "print([m for m in ('anthropic', 'openai', 'structlog', 'ptc_worker', 'pydantic_settings') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
