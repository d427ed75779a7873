"""The files in deploy/ and compose.yml tell the truth about the code they start."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values
from support import make_plan

from ptc_contracts.settings import RedisSettings
from ptc_contracts.stages import Stage
from ptc_worker.settings import WorkerSettings
from roma_bridge import defaults

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
EXAMPLE = dotenv_values(DEPLOY / "env.example")
COMPOSE = yaml.safe_load((ROOT / "compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PACKAGES = [
    file
    for package in ("ptc_contracts", "ptc_worker", "roma_bridge")
    for file in (ROOT / package).rglob("*")
    if file.is_file()
]
SOURCES = [file.read_text() for file in PACKAGES if file.suffix == ".py"]

CONTRACT = [
    "REDIS_URL",
    "REDIS_PORT",
    "REDIS_DB",
    "REDIS_PASSWORD",
    "ANTHROPIC_API_KEY",
    "KIMI_API_KEY",
    "OPENAI_API_KEY",
    "OPENROUTER_API_KEY",
    "LLM_PROVIDER",
    "DAYTONA_API_KEY",
    "DAYTONA_API_URL",
    "DAYTONA_TARGET",
    "PTC_HOST",
    "PTC_PORT",
    "PTC_LOG_LEVEL",
    "DEFAULT_TIMEOUT",
    "DEFAULT_MAX_ITERATIONS",
    "MAX_CONCURRENT_EXECUTIONS",
    "PTC_SERVICE_URL",
    "PTC_TIMEOUT",
    "PTC_MAX_RETRIES",
    "PTC_RETRY_DELAY",
    "PTC_PRIMARY_LLM",
    "PTC_FALLBACK_LLM",
    "PTC_CACHE_ENABLED",
    "PTC_CACHE_TTL",
    "PTC_WORKERS",
]
"""The names that users already have in their `.env`."""


def comments() -> dict[str, str]:
    """Map each variable of env.example to the line above it."""
    lines = (DEPLOY / "env.example").read_text().splitlines()
    return {
        line.partition("=")[0]: above for above, line in pairwise(lines) if re.match(r"[A-Z0-9_]+=", line)
    }


def not_read_yet() -> list[str]:
    """List the variables that env.example says nobody reads."""
    return [name for name, comment in comments().items() if comment.startswith("# Not read yet")]


@pytest.mark.parametrize("variable", [name.upper() for name in WorkerSettings.model_fields])
def test_the_example_names_every_setting_of_the_worker(variable: str) -> None:
    """A setting that nobody can find is not one."""
    assert variable in EXAMPLE


@pytest.mark.parametrize("variable", [variable for variable, _ in defaults._FIELDS])
def test_the_example_names_every_default_for_plans(variable: str) -> None:
    """The variables that fill unset fields of a plan are listed."""
    assert variable in EXAMPLE


@pytest.mark.parametrize("variable", CONTRACT)
def test_the_example_names_every_variable_of_the_contract(variable: str) -> None:
    """What users have in their `.env` is either read or said not to be."""
    assert variable in EXAMPLE


def test_each_variable_has_its_comment() -> None:
    """The line above each variable says what it does."""
    bare = [name for name, comment in comments().items() if not comment.startswith("# ")]

    assert comments().keys() == EXAMPLE.keys()
    assert bare == []


@pytest.mark.parametrize("variable", not_read_yet())
def test_a_variable_that_is_said_to_be_unread_is_unread(variable: str) -> None:
    """Whoever begins to read one changes its line in the example."""
    assert variable.lower() not in WorkerSettings.model_fields
    assert not any(f'"{variable}"' in source for source in SOURCES)


def test_the_example_as_it_stands_changes_no_setting_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its values are the defaults, so that a copy can be edited line by line."""
    for name in EXAMPLE:
        monkeypatch.delenv(name, raising=False)
    untouched = WorkerSettings.read()
    for name, value in EXAMPLE.items():
        monkeypatch.setenv(name, value or "")

    assert WorkerSettings.read() == untouched


def test_the_example_as_it_stands_changes_no_plan_and_no_address() -> None:
    """What it fills into a plan is what the plan has anyway."""
    environ = {name: value or "" for name, value in EXAMPLE.items()}
    plan = make_plan()

    assert defaults.with_defaults(plan, environ).model_dump() == plan.model_dump()
    assert RedisSettings.from_environment(environ) == RedisSettings.from_environment({})


@pytest.mark.parametrize(
    "variable", sorted(set(re.findall(r"\$\{(\w+)", (ROOT / "compose.yml").read_text())))
)
def test_the_example_names_every_variable_that_compose_interpolates(variable: str) -> None:
    """A copy of the example is all that compose.yml needs."""
    assert variable in EXAMPLE


@pytest.mark.parametrize("variable", [name.upper() for name in WorkerSettings.model_fields])
def test_compose_hands_every_setting_to_a_worker(variable: str) -> None:
    """A value in `.env` has an effect; the place of the cache is the image's."""
    given = (
        SERVICES["worker-generate"]["environment"].keys() | SERVICES["worker-sandbox"]["environment"].keys()
    )

    assert variable in given | {"PTC_CACHE_DIR"}


def test_the_workers_serve_each_queue_once() -> None:
    """No plan waits in a queue that nobody reads."""
    commands = [service["command"] for service in SERVICES.values() if "-Q" in service["command"]]

    assert sorted(command[command.index("-Q") + 1] for command in commands) == [
        stage.value for stage in Stage
    ]


@pytest.mark.parametrize(
    ("keys", "holder"),
    [
        ({"ANTHROPIC_API_KEY", "KIMI_API_KEY", "OPENAI_API_KEY", "OPENROUTER_API_KEY"}, "worker-generate"),
        ({"DAYTONA_API_KEY", "E2B_API_KEY"}, "worker-sandbox"),
    ],
)
def test_only_one_worker_has_each_key(keys: set[str], holder: str) -> None:
    """What models write runs where no model's key is; and only who makes sandboxes has the keys for them."""
    held = {
        name: {key for key in service.get("environment", ()) if key.endswith("_API_KEY")}
        for name, service in SERVICES.items()
    }

    assert held.pop(holder) == keys
    assert not any(keys & others for others in held.values())


@pytest.mark.parametrize(
    ("service", "variable"),
    [("redis", "REDIS_PASSWORD"), ("worker-generate", "REDIS_PASSWORD"), ("flower", "FLOWER_BASIC_AUTH")],
)
def test_compose_refuses_to_start_without_a_password(service: str, variable: str) -> None:
    """There is no default password, and the error names the variable."""
    assert SERVICES[service]["environment"][variable].startswith(f"${{{variable}:?set {variable}")


def test_only_flower_is_published_and_only_on_this_host() -> None:
    """Nothing is reachable from the network."""
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert ports == {"flower": ["127.0.0.1:5555:5555"]}


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_runs_as_root_or_keeps_a_capability(service: str) -> None:
    """A program that breaks out of its process finds no privilege."""
    facts = SERVICES[service]

    assert facts["user"].partition(":")[0] not in {"", "0", "root"}
    assert (facts["cap_drop"], "privileged" in facts) == (["ALL"], False)
    assert "no-new-privileges:true" in facts["security_opt"]


def test_the_sandbox_may_make_its_namespaces() -> None:
    """Without these options, and with `init`, tests run without isolation (measured with dockerd 20.10)."""
    service = SERVICES["worker-sandbox"]

    assert {"seccomp=unconfined", "systempaths=unconfined"} <= set(service["security_opt"])
    assert "init" not in service


def test_the_replay_server_shares_the_loopback_of_the_generating_worker() -> None:
    """It listens on loopback only, and only the demo has it."""
    service = SERVICES["replay"]

    assert (service["network_mode"], service["profiles"]) == ("service:worker-generate", ["demo"])


@pytest.mark.parametrize("service", SERVICES)
def test_every_file_that_compose_mounts_is_there(service: str) -> None:
    """Docker makes an empty directory of a file that is missing."""
    mounted = [entry.partition(":") for entry in SERVICES[service].get("volumes", [])]
    files = [(source, mode) for source, _, mode in mounted if source.startswith("./")]

    assert all((ROOT / source).exists() and mode.endswith(":ro") for source, mode in files)


def test_every_volume_is_a_folder_that_its_user_may_write() -> None:
    """Docker gives a new volume the owner of the image's folder that it is mounted on; without one it is root's."""
    mounts = [
        entry.partition(":")
        for service in ("worker-generate", "worker-sandbox")
        for entry in SERVICES[service]["volumes"]
    ]
    owned = re.findall(r"install -d -o ptc -g ptc (.+?)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)

    assert {name for name, _, _ in mounts} <= COMPOSE["volumes"].keys()
    assert {folder for _, _, folder in mounts} == set(owned[0].split())


def test_the_image_can_run_tests_of_every_language_and_at_daytona() -> None:
    """Its base has no Node; and production runs tests at Daytona."""
    (extras,) = re.findall(r"ARG EXTRAS=(.+)", (DEPLOY / "Dockerfile").read_text())

    assert {"worker", "node", "daytona"} <= set(extras.split(","))


def test_every_service_has_time_to_stop() -> None:
    """Docker's own ten seconds are too short for a model's answer."""
    assert [name for name, service in SERVICES.items() if "stop_grace_period" not in service] == []


def test_compose_uses_no_key_that_its_older_version_refuses() -> None:
    """docker-compose 1.29 reads the file as well."""
    assert COMPOSE.keys() == {"x-worker", "x-redis-client", "services", "volumes"}
    assert not any("develop" in service for service in SERVICES.values())


@pytest.mark.parametrize(
    "line",
    [
        "maxmemory-policy noeviction",
        "appendonly yes",
        "appendfsync always",
        "protected-mode yes",
        "bind * -::*",
    ],
)
def test_redis_keeps_what_it_was_given(line: str) -> None:
    """Queues and run records survive full memory and a power cut."""
    assert line in (DEPLOY / "redis.conf").read_text().splitlines()


def test_the_password_stands_in_no_file_and_in_no_command() -> None:
    """It comes from the environment and goes to the server through standard input."""
    assert "requirepass" not in (DEPLOY / "redis.conf").read_text()
    assert not any("PASSWORD" in str(service["command"]) for service in SERVICES.values())


def test_the_image_takes_what_the_package_is_made_of() -> None:
    """Every source that the Dockerfile copies exists and passes .dockerignore."""
    copied = re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    sources = [source for line in copied for source in line.split()]
    passed = (ROOT / ".dockerignore").read_text().splitlines()

    assert all((ROOT / source).exists() and f"!{source}" in passed for source in sources)
    packages = {"ptc_contracts", "ptc_worker", "roma_bridge", "celeryconfig.py"}
    assert packages | {"constraints.txt"} <= set(sources)


def test_the_image_is_not_roots_and_needs_no_buildkit() -> None:
    """The older builder works as well."""
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()

    assert "USER ptc" in lines
    assert not any("--mount" in line or "<<" in line or line.startswith("# syntax") for line in lines)


def test_what_is_no_python_is_packaged_too() -> None:
    """What the code reads beside itself is in the wheel, and so in the image."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {
        file
        for package, globs in patterns.items()
        for pattern in globs
        for folder in (
            [ROOT / package.replace(".", "/")] if package != "*" else [file.parent for file in PACKAGES]
        )
        for file in folder.glob(pattern)
    }
    others = {file for file in PACKAGES if file.suffix not in {".py", ".pyc"}}

    assert others <= packaged
