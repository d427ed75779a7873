"""The result: validation, properties and the wire form are the contract's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ptc_contracts import ArtifactType, CodeArtifact, ExecutionStatus, LLMUsage, PTCArtifactResult, TestResult


def make_result(**fields: Any) -> PTCArtifactResult:
    """Make a result; only what a test is about need be given."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    defaults = {
        "execution_id": "x",
        "status": "SUCCESS",
        "started_at": moment,
        "completed_at": moment,
        "duration_seconds": 0,
    }
    return PTCArtifactResult(**{**defaults, **fields})


@pytest.mark.parametrize("status", list(ExecutionStatus))
def test_success_means_usable_files(status: ExecutionStatus) -> None:
    """SUCCESS and CACHE_HIT are successes, nothing else is."""
    assert make_result(status=status).success == (status.value in {"SUCCESS", "CACHE_HIT"})


def test_totals_sum_tokens_and_the_known_costs() -> None:
    """An unknown price adds nothing to the cost, and its tokens count."""
    usage = [
        LLMUsage(provider="claude", model="a", total_tokens=10, cost_usd=0.5),
        LLMUsage(provider="kimi", model="b", total_tokens=5),
    ]

    result = make_result(llm_usage=usage)

    assert (result.total_tokens_used, result.total_cost_usd) == (15, 0.5)


@pytest.mark.parametrize(("exit_code", "failed", "success"), [(0, 0, True), (0, 1, False), (1, 0, False)])
def test_a_test_run_succeeds_with_exit_code_zero_and_no_failure(
    exit_code: int, failed: int, success: bool
) -> None:
    """Both have to say so."""
    run = TestResult(test_command="pytest", exit_code=exit_code, tests_failed=failed, duration_seconds=1)

    assert run.success is success


def test_nested_values_can_be_edited_in_place() -> None:
    """Callers do this; models are not frozen."""
    result = make_result(test_results={"test_command": "x", "exit_code": 0, "duration_seconds": 0})
    assert result.test_results is not None

    result.test_results.tests_failed = 1

    assert not result.test_results.success


def test_naive_and_aware_times_are_accepted_side_by_side() -> None:
    """Older peers write naive ones; the two are never compared."""
    result = make_result(started_at="2026-01-01T00:00:00", completed_at="2026-01-01T00:00:01Z")

    assert (result.started_at.tzinfo is None, result.completed_at.tzinfo is None) == (True, False)


def test_a_leading_slash_is_stripped_from_a_path() -> None:
    """An absolute path is taken as one below the project."""
    assert CodeArtifact(file_path="/absolute/path/file.py", content="").file_path == "absolute/path/file.py"


@pytest.mark.parametrize("path", ["", "  "])
def test_a_blank_path_is_refused_with_the_contracts_message(path: str) -> None:
    """The text is the original's."""
    with pytest.raises(ValidationError, match="file_path cannot be empty"):
        CodeArtifact(file_path=path, content="")


@pytest.mark.parametrize(
    "path", ["/", "///", "../x", "a/../../x", "a/..", "C:/x", "c:x", "a\\b", "a\0b", "a\nb", "\x7f"]
)
def test_a_dangerous_path_is_refused_with_a_message_that_quotes_it(path: str) -> None:
    """Whoever reads the message sees which path it was."""
    with pytest.raises(ValidationError) as caught:
        CodeArtifact(file_path=path, content="")

    assert repr(path) in str(caught.value)


def test_two_artifacts_may_share_a_path() -> None:
    """It is a warning for readers, no error."""
    artifacts = [CodeArtifact(file_path="a.py", content=text) for text in "12"]

    assert len(make_result(artifacts=artifacts).artifacts) == 2


@given(
    st.builds(
        make_result,
        status=st.sampled_from(ExecutionStatus),
        artifacts=st.lists(
            st.builds(
                CodeArtifact,
                file_path=st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,3}\.py", fullmatch=True),
                content=st.text(),
                artifact_type=st.sampled_from(ArtifactType),
            ),
            max_size=3,
        ),
        started_at=st.datetimes() | st.datetimes(timezones=st.just(UTC)),
        completed_at=st.datetimes() | st.datetimes(timezones=st.just(UTC)),
        duration_seconds=st.floats(0, 1e6),
        error_message=st.none() | st.text(),
        warnings=st.lists(st.text(), max_size=3),
    )
)
def test_a_result_survives_its_wire_form(result: PTCArtifactResult) -> None:
    """Queue, backend, cache and HTTP all carry `model_dump_json()`."""
    assert PTCArtifactResult.model_validate_json(result.model_dump_json()) == result
