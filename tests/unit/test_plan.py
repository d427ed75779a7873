"""The plan: defaults, bounds and messages are the contract's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support import make_plan

from ptc_contracts import CacheStrategy, LLMProvider, PTCExecutionPlan, ScaffoldingSpec


def test_a_minimal_plan_has_the_contracts_defaults() -> None:
    """Only execution_id and a description are required."""
    plan = PTCExecutionPlan(execution_id="x", scaffolding=ScaffoldingSpec(task_description="Build API"))

    assert plan.created_at.tzinfo is UTC
    assert plan.model_dump(exclude={"created_at"}) == {
        "execution_id": "x",
        "scaffolding": {
            "task_description": "Build API",
            "requirements": [],
            "architecture": None,
            "dependencies": [],
            "file_structure": None,
            "context": None,
        },
        "primary_llm": LLMProvider.CLAUDE,
        "fallback_llm": LLMProvider.KIMI,
        "max_iterations": 3,
        "timeout_seconds": 300,
        "enable_testing": True,
        "cache_strategy": CacheStrategy.SMART,
        "cache_ttl": 3600,
        "max_cost_usd": None,
        "test_files": {},
        "initial_files": {},
        "project_name": None,
        "roma_task_id": None,
        "metadata": {},
    }


@pytest.mark.parametrize("name", [" x ", "x\n"])
def test_the_execution_id_is_stored_stripped(name: str) -> None:
    """White space around the id does not count."""
    assert make_plan(execution_id=name).execution_id == "x"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"execution_id": " "}, "execution_id cannot be empty"),
        ({"description": "\t\n"}, "scaffolding.task_description cannot be empty"),
        ({"max_iterations": 0}, "greater than or equal to 1"),
        ({"max_iterations": 11}, "less than or equal to 10"),
        ({"timeout_seconds": 29}, "greater than or equal to 30"),
        ({"timeout_seconds": 3601}, "less than or equal to 3600"),
        ({"cache_ttl": -1}, "greater than or equal to 0"),
        ({"primary_llm": "gpt"}, "'claude', 'kimi', 'openai' or 'openrouter'"),
        (
            {"architecture": {"when": datetime(2026, 1, 1, tzinfo=UTC)}},
            "scaffolding.architecture.when is not JSON",
        ),
        ({"architecture": {"x": float("nan")}}, "scaffolding.architecture.x is not JSON"),
        (
            {"architecture": {"x": [{1: 2}]}},
            "scaffolding.architecture.x[0] is not JSON: the name 1 is not a string",
        ),
        ({"architecture": {"x": "\ud800"}}, "not valid Unicode"),
        ({"architecture": {"x": {1, 2}}}, "set has no JSON form"),
        ({"max_cost_usd": -0.01}, "greater than or equal to 0"),
        ({"max_cost_usd": float("nan")}, "a finite number"),
        ({"max_cost_usd": float("inf")}, "a finite number"),
        ({"test_files": {"../x.py": ""}}, "'../x.py' is not allowed: it holds a '..' segment"),
        ({"test_files": {"/x.py": ""}}, "'/x.py' is not allowed: it is absolute"),
        ({"test_files": {"a.py": "\0"}}, "the content of 'a.py' is not text"),
        ({"test_files": {"a.py": "\ud800"}}, "the content of 'a.py' is not text"),
        ({"test_files": {"tests/a.py": "", "tests/A.py": ""}}, "'tests/A.py' clashes with another path"),
        ({"test_files": {"tests": "", "tests/a.py": ""}}, "'tests' clashes with another path"),
        ({"test_files": {f"test_{n}.py": "" for n in range(101)}}, "more than 100 files"),
        ({"initial_files": {"../x.py": ""}}, "'../x.py' is not allowed: it holds a '..' segment"),
        ({"initial_files": {".git/config": ""}}, "'.git/config' is not allowed: it lies in git's own folder"),
        ({"initial_files": {"a.py": "\0"}}, "the content of 'a.py' is not text"),
        ({"initial_files": {"a": "", "a/b.py": ""}}, "'a' clashes with another path"),
        ({"initial_files": {f"{n}.py": "" for n in range(1001)}}, "more than 1000 files"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_message(fields: dict[str, Any], message: str) -> None:
    """Existing callers match on these texts."""
    with pytest.raises(ValidationError) as caught:
        make_plan(**fields)

    assert message in str(caught.value)


def test_an_architecture_nested_without_end_is_refused() -> None:
    """A plan that cannot be serialised is refused when it is made, not when it is hashed."""
    architecture: dict[str, Any] = {}
    architecture["self"] = architecture

    with pytest.raises(ValidationError, match="nested more than"):
        make_plan(architecture=architecture)


def test_unknown_fields_of_newer_peers_are_ignored() -> None:
    """Older and newer peers talk to each other."""
    text = make_plan().model_dump_json().replace("{", '{"later": 1, ', 1)

    assert "later" not in PTCExecutionPlan.model_validate_json(text).model_dump()


def test_a_naive_creation_time_is_accepted() -> None:
    """Older peers write no zone."""
    assert make_plan(created_at="2026-01-01T00:00:00").created_at.tzinfo is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.builds(
        make_plan,
        st.text(min_size=1).filter(str.strip),
        requirements=st.lists(st.text()),
        architecture=st.none() | st.dictionaries(st.text(), json_values, max_size=4),
        context=st.none() | st.text(),
        primary_llm=st.sampled_from(LLMProvider),
        max_iterations=st.integers(1, 10),
    )
)
def test_a_plan_survives_its_wire_form(plan: PTCExecutionPlan) -> None:
    """What ROMA sends is what a worker reads."""
    assert PTCExecutionPlan.model_validate_json(plan.model_dump_json()) == plan
