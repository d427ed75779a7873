"""Every way that models and providers do well and badly, through real SDKs, workers and sandboxes, to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scenarios import SCENARIOS, Scenario
from support import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster import Cluster


@pytest.fixture(autouse=True)
def _priced(cluster: Cluster) -> Iterator[None]:
    """Let answers bear their models' names, and so their prices."""
    cluster.replay.disguised = True
    yield
    cluster.replay.disguised = False


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_plan_ends_as_its_models_and_providers_let_it(cluster: Cluster, scenario: Scenario) -> None:
    """Status, reason, iterations, and each call with who was asked for what and what came of it."""
    plan = cluster.record(scenario.answers, **scenario.plan)
    cluster.replay.faults.script(scenario.faults)
    result = cluster.ptc.submit(plan).get(timeout=PATIENCE_SECONDS)
    calls = [f"{c['provider']} {c['request']} {c['outcome']}" for c in result.metadata["calls"]]
    said = "\n".join([*result.warnings, result.error_message or ""])

    assert calls == scenario.calls
    assert (result.status.value, result.metadata["stop_reason"]) == (scenario.status, scenario.stop)
    assert result.iterations_used == scenario.iterations
    assert scenario.says in said
    assert not any(".." in artifact.file_path for artifact in result.artifacts)
    billed = [call for call in result.metadata["calls"] if call["billed"]]
    assert sum(usage.api_calls for usage in result.llm_usage) == len(billed)
    assert result.total_cost_usd == pytest.approx(sum(call["cost_usd"] for call in billed))
