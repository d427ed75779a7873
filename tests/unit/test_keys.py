"""Cache key, fingerprint and digest: what they are made of, and what they leave out."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import make_plan

from ptc_contracts import PTCCacheManager, PTCExecutionPlan
from ptc_contracts.keys import cache_key, content_id, digest, fingerprint, new_run_id


@pytest.mark.parametrize(
    ("plan", "key"),
    [
        (make_plan("Build API"), "5f971dd3e75a8d1e"),
        (
            make_plan("Build API", requirements=["Auth", "Logging"], dependencies=["fastapi"]),
            "123d43b599c143ad",
        ),
        (make_plan("Build API", architecture={"pattern": "REST", "layers": ["a", "b"]}), "417a74a902a1ba60"),
        (make_plan("Build API", primary_llm="kimi"), "c7137c8f316577b0"),
        (make_plan("Build API", fallback_llm=None), "8915474a0e405c10"),
        (make_plan("Build API", enable_testing=False), "a8233d7f57b34b17"),
        (make_plan("  Bâtir une API ÉTÉ  "), "eb9a2c406491893f"),
        (make_plan("İstanbul"), "aad7933cfa84d630"),
        (make_plan("Build API", requirements=["Auth", "auth"]), "3ea3fbbefbab2cc8"),
    ],
)
def test_the_key_is_the_one_that_every_installation_computes(plan: PTCExecutionPlan, key: str) -> None:
    """The contract's golden vectors: a change here loses every stored entry."""
    assert PTCCacheManager.compute_cache_key(plan) == key


@pytest.mark.parametrize(
    "fields",
    [
        {"execution_id": "other"},
        {"max_iterations": 9},
        {"timeout_seconds": 60},
        {"cache_strategy": "never"},
        {"cache_ttl": None},
        {"metadata": {"a": 1}},
        {"context": "more"},
        {"file_structure": {"a.py": ""}},
    ],
)
def test_the_key_leaves_these_fields_out(fields: dict[str, Any]) -> None:
    """So it has been everywhere from the start."""
    assert cache_key(make_plan(**fields)) == cache_key(make_plan())


@given(st.lists(st.text()), st.randoms())
def test_the_key_does_not_depend_on_order_case_or_white_space(texts: list[str], random: Any) -> None:
    """Requirements are a set of sentences to the key, but for duplicates."""
    shuffled = [f" {text.lower()} " for text in random.sample(texts, len(texts))]

    assert cache_key(make_plan(requirements=shuffled)) == cache_key(
        make_plan(requirements=[t.lower() for t in texts])
    )


@given(
    st.text(min_size=1).filter(str.strip), st.none() | st.dictionaries(st.text(), st.integers() | st.text())
)
def test_identity_survives_the_wire(description: str, architecture: dict[str, Any] | None) -> None:
    """Client and worker compute the same key, fingerprint and digest from the same plan."""
    plan = make_plan(description, architecture=architecture, context="c")

    received = PTCExecutionPlan.model_validate_json(plan.model_dump_json())

    assert [f(received) for f in (cache_key, fingerprint, digest)] == [
        f(plan) for f in (cache_key, fingerprint, digest)
    ]


def test_the_fingerprint_is_the_one_that_every_version_computes() -> None:
    """Results that were stored before a field came are found after it."""
    told = make_plan(context="c", file_structure={"a.py": ""}, test_files={"tests/test_a.py": ""})

    assert (fingerprint(told), digest(make_plan())) == (
        "2c37ebd9f2a695e1",
        "2fcc908e5048c88c65fc56b55fcd6575",
    )


@pytest.mark.parametrize(
    "fields", [{}, {"context": None}, {"context": "", "file_structure": {}}, {"initial_files": {}}]
)
def test_a_plan_without_further_fields_has_an_empty_fingerprint(fields: dict[str, Any]) -> None:
    """Entries of older peers, which know none, then serve it."""
    assert fingerprint(make_plan(**fields)) == ""


_TOLD: list[dict[str, Any]] = [
    {"context": "a"},
    {"context": "b"},
    {"file_structure": {"a": "b"}},
    {"test_files": {"a": "b"}},
    {"initial_files": {"a": "b"}},
    {"initial_files": {"a": "c"}},
]


def test_fingerprints_tell_plans_apart_that_share_a_key() -> None:
    """Context, file structure, given tests and initial files change the code."""
    marks = {fingerprint(make_plan(**f)) for f in _TOLD}

    assert len(marks) == len(_TOLD)


@pytest.mark.parametrize(
    "fields",
    [
        {"execution_id": "other"},
        {"created_at": "2020-01-01T00:00:00Z"},
        {"project_name": "p"},
        {"roma_task_id": "r"},
        {"metadata": {"a": 1}},
        {"cache_strategy": "never"},
        {"cache_ttl": 5},
    ],
)
def test_the_digest_leaves_out_what_cannot_change_the_outcome(fields: dict[str, Any]) -> None:
    """Plans that differ here alone share a run."""
    assert digest(make_plan(**fields)) == digest(make_plan())


@pytest.mark.parametrize(
    "fields",
    [
        {"max_iterations": 9},
        {"timeout_seconds": 60},
        {"context": "x"},
        {"requirements": ["a"]},
        {"initial_files": {"a.py": ""}},
    ],
)
def test_the_digest_holds_everything_else(fields: dict[str, Any]) -> None:
    """Nobody inherits another's bounds."""
    assert digest(make_plan(**fields)) != digest(make_plan())


def test_the_content_id_depends_on_what_a_model_is_told() -> None:
    """Two plans that differ in their bounds alone have the same recordings."""
    assert (
        content_id(make_plan(timeout_seconds=60))
        == content_id(make_plan())
        != content_id(make_plan(context="x"))
    )


def test_a_run_id_starts_with_the_key_and_is_never_the_same() -> None:
    """Flower finds it by its key; Celery remembers revoked ids."""
    ids = {new_run_id("5f971dd3e75a8d1e") for _ in range(100)}

    assert len(ids) == 100
    assert all(re.fullmatch(r"5f971dd3e75a8d1e-[0-9a-f]{12}", run_id) for run_id in ids)
