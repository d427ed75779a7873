"""What the bridge does before it reaches Redis: reading plans, defaults and addresses."""

from __future__ import annotations

from typing import Any

import pytest
from support import make_plan

from ptc_contracts import ConfigurationError, InvalidPlanError
from ptc_contracts.settings import RedisSettings
from roma_bridge import PTC
from roma_bridge.defaults import default_expires, read_expires, with_defaults
from roma_bridge.plans import read_plan, read_plans


def test_a_plan_may_be_a_model_a_dict_or_json() -> None:
    """All three mean the same; a byte order mark does not count."""
    plan = make_plan()

    forms: list[Any] = [plan, plan.model_dump(), plan.model_dump_json(), "\ufeff" + plan.model_dump_json()]
    assert [read_plan(form) for form in forms] == [plan] * 4


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("project", "project must not be empty: leave it out for all runs"),
        ("key", "key must not be empty: leave it out for all runs"),
        ("state", "'' is not a valid RunState"),
        ("status", "'' is not a valid ExecutionStatus"),
    ],
)
def test_runs_are_not_chosen_by_what_is_empty(name: str, told: str) -> None:
    """All runs would be listed, as if nothing had been asked for."""
    nothing: dict[str, Any] = {name: ""}

    with pytest.raises(ValueError, match=told):
        PTC(RedisSettings(url="redis://127.0.0.1:1")).list_runs(**nothing)


@pytest.mark.parametrize(
    "given", [make_plan(), make_plan().model_dump(), make_plan().model_dump_json(), b"[]", None, 7]
)
def test_what_is_no_list_of_plans_is_refused_as_a_whole(given: Any) -> None:
    """One plan has a door of its own."""
    with pytest.raises(InvalidPlanError, match=r"^plans: give a list of plans; submit_plan takes one$"):
        read_plans(given)


def test_a_model_that_was_copied_without_validation_is_validated() -> None:
    """`model_copy` and assignments check nothing; a worker would choke on it."""
    with pytest.raises(InvalidPlanError, match="max_iterations: Input should be less than or equal to 10"):
        read_plan(make_plan().model_copy(update={"max_iterations": 20}))


def test_a_change_in_place_is_not_lost() -> None:
    """Callers fill lists after they made the plan."""
    plan = make_plan()
    plan.scaffolding.requirements.append("more")
    plan.metadata["from"] = "here"

    assert (read_plan(plan).scaffolding.requirements, read_plan(plan).metadata) == (
        ["more"],
        {"from": "here"},
    )


@pytest.mark.parametrize(
    "fields", [{"metadata": {"x": object()}}, {"metadata": {"x": "\ud800"}}, {"metadata": {"x": b"\xff"}}]
)
def test_what_cannot_be_written_as_json_is_an_invalid_plan(fields: dict[str, Any]) -> None:
    """Told before anything is sent."""
    with pytest.raises(InvalidPlanError, match="cannot be written as JSON"):
        read_plan(make_plan(**fields))


def test_every_error_is_told_with_its_field() -> None:
    """Blank texts and bounds at once."""
    with pytest.raises(InvalidPlanError) as caught:
        read_plan({"execution_id": " ", "scaffolding": {"task_description": ""}, "max_iterations": 0})

    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "execution_id",
        "scaffolding",
        "max_iterations",
    ]


def test_a_field_adds_no_line_of_its_own() -> None:
    """Whatever its name is."""
    with pytest.raises(InvalidPlanError) as caught:
        read_plan({**make_plan().model_dump(mode="json"), "test_files": {"a\nplan: all is well": 1}})

    assert str(caught.value).splitlines() == [str(caught.value)]


@pytest.mark.parametrize(
    ("variable", "value", "field", "filled"),
    [
        ("LLM_PROVIDER", "anthropic", "primary_llm", "claude"),
        ("PTC_PRIMARY_LLM", "OpenAI", "primary_llm", "openai"),
        ("PTC_FALLBACK_LLM", "none", "fallback_llm", None),
        ("PTC_FALLBACK_LLM", "openrouter", "fallback_llm", "openrouter"),
        ("DEFAULT_TIMEOUT", "77", "timeout_seconds", 77),
        ("DEFAULT_MAX_ITERATIONS", "5", "max_iterations", 5),
        ("PTC_CACHE_ENABLED", "false", "cache_strategy", "never"),
        ("PTC_CACHE_TTL", "9", "cache_ttl", 9),
    ],
)
def test_a_variable_fills_the_field_that_was_left_unset(
    variable: str, value: str, field: str, filled: object
) -> None:
    """And leaves it alone where the author wrote something."""
    plan = make_plan()

    assert getattr(with_defaults(plan, set(), {variable: value}), field) == filled
    assert with_defaults(plan, {field}, {variable: value}) == plan


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1", "soon", "1e300"])
def test_a_time_to_wait_that_is_none_names_its_variable(value: str) -> None:
    """Before anything is submitted."""
    with pytest.raises(ConfigurationError, match=rf"PTC_EXPIRES='{value}' is not a number of seconds"):
        default_expires({"PTC_EXPIRES": value})


def test_a_flag_is_no_time_to_wait() -> None:
    """Python takes True for 1, and nobody means a second by it."""
    with pytest.raises(ConfigurationError, match="expires=True is not a number of seconds"):
        read_expires("expires", value=True)


@pytest.mark.parametrize(
    ("environment", "url", "celery_url"),
    [
        ({}, "redis://localhost:6379/0", "redis://localhost:6379/0"),
        ({"REDIS_PORT": "7", "REDIS_DB": "3"}, "redis://localhost:7/3", "redis://localhost:7/3"),
        (
            {"REDIS_PASSWORD": "p@ss/word"},
            "redis://:p%40ss%2Fword@localhost:6379/0",
            "redis://:p%40ss%2Fword@localhost:6379/0",
        ),
        (
            {"REDIS_URL": "redis://:one@host:1/2", "REDIS_PASSWORD": "two"},
            "redis://:one@host:1/2",
            "redis://:one@host:1/2",
        ),
        (
            {"REDIS_URL": "rediss://host:1/2"},
            "rediss://host:1/2",
            "rediss://host:1/2?ssl_cert_reqs=CERT_REQUIRED",
        ),
        (
            {"REDIS_URL": "redis+socket://:p@/a/socket?virtual_host=4"},
            "unix://:p@/a/socket?db=4",
            "redis+socket://:p@/a/socket?virtual_host=4",
        ),
        ({"REDIS_URL": "unix:///a/socket"}, "unix:///a/socket", "redis+socket:///a/socket?virtual_host=0"),
    ],
)
def test_the_address_is_spelt_for_redis_py_and_for_celery(
    environment: dict[str, str], url: str, celery_url: str
) -> None:
    """Either spelling may be given; the variables complete each other."""
    settings = RedisSettings.from_environment(environment)

    assert (settings.url, settings.celery_url) == (url, celery_url)


@pytest.mark.parametrize(
    "environment",
    [
        {"REDIS_URL": "localhost"},
        {"REDIS_URL": "redis://localhost:many/0"},
        {"REDIS_URL": "redis://localhost:99999/0"},
        {"REDIS_URL": "redis://localhost/first"},
        {"REDIS_URL": "redis://user/localhost@host/0"},
        {"REDIS_URL": "redis://:[localhost@host/0"},
        {"REDIS_DB": "-1"},
    ],
)
def test_an_address_that_cannot_be_understood_names_its_variable(environment: dict[str, str]) -> None:
    """Before anything is connected; the value may hold a password."""
    ((variable, value),) = environment.items()

    with pytest.raises(ConfigurationError, match=variable) as caught:
        RedisSettings.from_environment(environment)

    assert [word for word in (value, "localhost") if word in str(caught.value)] == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@host:1/0", "redis://host:1/0"),
        ("redis://host/0?password=secret", "redis://host/0"),
        ("unix:///a/socket?db=3&password=secret", "unix:///a/socket?db=3"),
        ("unix:///a/socket?password=secret&db=secret", "unix:///a/socket"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    """Messages hold it."""
    assert RedisSettings(url=url).shown == shown
