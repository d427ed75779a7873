"""The public surface is a list."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import PATIENCE_SECONDS

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

BRIDGE = [
    "ArtifactProcessor",
    "ArtifactProcessorError",
    *(
        "Batch",
        "Departure",
        "PTC",
        "PlanHandle",
        "Priority",
        "RunPage",
        "RunState",
        "RunStatus",
        "RunSummary",
        "Events",
        "StreamEventType",
        "StreamMessage",
    ),
    *("list_runs", "submit_plan", "submit_plan_async", "submit_plans"),
]


def test_the_contracts_export_these_names() -> None:
    """Adding one is a decision."""
    assert sorted(ptc_contracts.__all__) == CONTRACTS


def test_the_bridge_exports_the_contracts_and_its_own() -> None:
    """Code that plans needs one import."""
    assert sorted(roma_bridge.__all__) == sorted([*CONTRACTS, *BRIDGE])


def test_the_worker_exports_its_application() -> None:
    """`celery -A ptc_worker` finds it."""
    assert ptc_worker.__all__ == ["app"]


def test_the_bridge_imports_without_the_workers_packages() -> None:
    """A client installs without the vendors' SDKs, and importing it loads none."""
    script = (
        "import sys, roma_bridge.client, roma_bridge.cli.main;"
        "print([m for m in ('anthropic', 'openai', 'structlog', 'ptc_worker', 'pydantic_settings', 'celery', 'kombu')"
        " if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_help_and_completion_import_nothing_slow() -> None:
    """They are asked for while somebody waits: what takes long is imported by what needs it."""
    script = (
        "import sys, roma_bridge.cli.main;"
        "print([m for m in ('asyncio', 'celery', 'dotenv', 'ptc_contracts', 'pydantic', 'redis', 'rich') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


ENQUEUE = "from roma_bridge.cli.main import main; sys.argv[1:] = {}; main()"
DEMO = "deploy/demo"


@pytest.mark.parametrize(
    ("program", "extras"),
    [
        ("from roma_bridge import programs; sys.exit(programs.replay())", "worker,local"),
        ("from roma_bridge import programs; sys.exit(programs.daytona_snapshot())", "worker,daytona"),
        (
            "from celery.__main__ import main; sys.argv[1:] = ['-A', 'ptc_worker', 'worker']; main()",
            "worker,local",
        ),
        (ENQUEUE.format(["--local", f"{DEMO}/plan.json"]), "worker,local"),
        (ENQUEUE.format(["--local", "--replay", DEMO, f"{DEMO}/plan.json"]), "worker,local"),
    ],
    ids=["replay", "snapshot", "celery", "local", "local replay"],
)
def test_whoever_lacks_the_workers_packages_is_told_what_to_install(
    tmp_path: Path, program: str, extras: str
) -> None:
    """Each program's last line names the extra."""
    (tmp_path / "structlog.py").write_text("raise ModuleNotFoundError(name='structlog')")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {program}"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )

    told = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2
    assert told.endswith(f"there is no package structlog: pip install 'ptc-worker[{extras}]'")
