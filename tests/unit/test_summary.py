"""What `ptc-enqueue` tells people of a result."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from io import BytesIO, TextIOWrapper
from typing import Any

import click
import pytest

from ptc_contracts import ExecutionStatus, LLMUsage, PTCArtifactResult
from ptc_contracts.bill import ModelCall, accounts_of
from ptc_contracts.progress import StopReason
from roma_bridge.show.summary import summary

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def told(status: str, **fields: Any) -> list[str]:
    """Word a result, without colours, line by line."""
    result = PTCArtifactResult(
        execution_id="x",
        status=ExecutionStatus(status),
        started_at=NOW,
        completed_at=NOW,
        duration_seconds=0,
        **fields,
    )
    return [line.strip() for line in click.unstyle(summary(result, None)).splitlines()]


def call(**fields: Any) -> ModelCall:
    """Make a call of Claude's."""
    return ModelCall(**{"call_id": "c", "iteration": 1, "provider": "claude", "model": "m", **fields})


@pytest.mark.parametrize("reason", sorted(set(StopReason) - {StopReason.GREEN, StopReason.NOT_TESTED}))
def test_a_run_that_is_not_green_tells_why_it_stopped(reason: StopReason) -> None:
    """Every reason has its words."""
    lines = told("FAILURE", metadata={"stop_reason": reason.value})

    assert [line for line in lines if line.startswith("stopped ")] != []


def test_a_budget_is_told_with_its_figures() -> None:
    """The reason, then what was spent and what the limit is."""
    figures = "spent $0.40, the next call costs up to $0.20, PTC_MAX_COST_USD is $0.50"

    lines = told("PARTIAL_SUCCESS", error_message=figures, metadata={"stop_reason": "budget"})

    assert lines[1:3] == [
        "stopped   budget: the next call could have cost more than is left to spend",
        f"error     {figures}",
    ]


@pytest.mark.parametrize("metadata", [{}, {"stop_reason": "green"}, {"stop_reason": ["odd"]}])
def test_a_green_run_and_an_older_peers_tell_no_reason(metadata: dict[str, Any]) -> None:
    """There is nothing to explain, or nothing known."""
    assert told("SUCCESS", metadata=metadata) == ["SUCCESS in 0.0 s, 1 iteration"]
    assert told("FAILURE", metadata=metadata) == ["FAILURE in 0.0 s, 1 iteration"]


def test_calls_are_told_by_model() -> None:
    """How many answered, what they cost, and how many did not answer, and why."""
    calls = [call(), call(outcome="overloaded", billed=False), call(outcome="overloaded", billed=False)]
    calls += [call(outcome="truncated"), call(provider="kimi", outcome="quota", billed=False)]
    usage = [LLMUsage(provider="claude", model="m", total_tokens=1200, api_calls=2, cost_usd=0.5)]

    lines = told("SUCCESS", llm_usage=usage, metadata=accounts_of(calls))

    assert lines[1:] == [
        "model     claude m: 1,200 tokens in 2 calls, $0.5000",
        "no answer claude m: 2 overloaded",
        "no answer kimi m: 1 quota",
    ]


def test_what_the_response_cache_saved_is_told() -> None:
    """With how many answers it gave; a result from the cache tells what the whole run cost."""
    kept = [call(from_cache=True, billed=False, saved_tokens=1500, saved_cost_usd=0.25)]

    own = told("SUCCESS", metadata=accounts_of(kept))
    hit = told("CACHE_HIT", from_cache=True, metadata={"saved_tokens": 20, "saved_cost_usd": 0.5})

    assert own[1:] == ["saved     1,500 tokens, $0.2500 (1 answer kept from before)"]
    assert hit[1:] == ["saved     20 tokens, $0.5000"]


@pytest.mark.parametrize("odd", ["12", None, ["12"], {"usd": 12}])
def test_what_a_stranger_says_was_saved_is_no_reason_to_fail(odd: Any) -> None:
    """A result from the cache may be anybody's; what is no number counts as none."""
    metadata = dict.fromkeys(("saved_tokens", "saved_cost_usd", "response_cache_hits"), odd)

    assert told("CACHE_HIT", from_cache=True, metadata=metadata)[1:] == ["saved     0 tokens, $0.0000"]
    assert told("SUCCESS", metadata=metadata)[1:] == []


@pytest.mark.parametrize(
    ("encoding", "signs"), [("UTF-8", "✓✗"), ("ascii", "+x"), ("iso-8859-1", "+x"), (None, "✓✗")]
)
def test_marks_are_those_that_standard_output_has(
    monkeypatch: pytest.MonkeyPatch, encoding: str | None, signs: str
) -> None:
    """As the live view's; where it is closed, nobody reads them."""
    monkeypatch.setattr(sys, "stdout", encoding and TextIOWrapper(BytesIO(), encoding))
    tests = [{"id": "a", "outcome": "passed"}, {"id": "b", "outcome": "failed"}]
    ran = {"test_command": "pytest", "exit_code": 1, "duration_seconds": 1}

    lines = told("PARTIAL_SUCCESS", test_results=ran, metadata={"tests": tests})

    assert lines[2:] == [f"{signs[0]} a", f"{signs[1]} b (failed)"]


def test_what_others_wrote_does_nothing_to_a_terminal() -> None:
    """Errors keep their lines, under their own column; whatever else is a name stays on its line."""
    evil = "a\x1b]0;title\x07\nSUCCESS\x1b[2J\u202e"
    tests = [{"id": evil, "outcome": "failed"}, {"id": 1, "outcome": evil}]
    ran = {"test_command": "pytest", "exit_code": 1, "duration_seconds": 1}
    calls = accounts_of([call(provider=evil, outcome="quota", billed=False)])

    lines = told(
        "FAILURE",
        error_message=evil,
        warnings=[evil],
        test_results=ran,
        llm_usage=[LLMUsage(provider=evil, model="m")],
        metadata={**calls, "tests": tests, "isolation": evil},
    )

    assert lines == [
        "FAILURE in 0.0 s, 1 iteration",
        "error     a",
        "SUCCESS",
        "warning   a",
        "SUCCESS",
        "tests     0 passed, 0 failed (isolation: a SUCCESS)",
        "✗ a SUCCESS (failed)",
        "✗ 1 (a SUCCESS)",
        "model     a SUCCESS m: 0 tokens in 1 calls, price unknown",
        "no answer a SUCCESS m: 1 quota",
    ]
