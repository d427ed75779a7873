"""Sandboxes of every kind, a host worth attacking, and the count of what was tried and what held."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from daytona_server import DaytonaServer
from e2b_server import serving as serving_e2b
from sandbox.host import Host
from sandbox.ways import DISK_MB, MEMORY_MB, WAYS, Way
from support import until

from ptc_worker.environments import environment as build_environment
from ptc_worker.halt import Halt
from ptc_worker.sandbox.protocol import IsolationRefusedError
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ptc_worker.sandbox.protocol import Sandbox

TRIED: Counter[tuple[str, str, str]] = Counter()
"""Cases by suite, way and class."""
HELD: Counter[tuple[str, str, str]] = Counter()
NOT_RUN: dict[str, str] = {}
"""Ways that this machine does not have, and why."""


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for environments, of these tests alone."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def environment(cache_dir: Path) -> Iterator[Path]:
    """The environment that a project without dependencies gets."""
    with build_environment(WorkerSettings(ptc_cache_dir=cache_dir), (), 120, Halt()) as folder:
        yield folder


@pytest.fixture(scope="session")
def python(environment: Path) -> str:
    """The interpreter in it."""
    return str(environment / "bin" / "python")


@pytest.fixture(scope="session")
def host(cache_dir: Path, environment: Path) -> Iterator[Host]:
    """Secrets, servers and files to be kept from attackers."""
    with Host(cache_dir, environment) as target:
        yield target


@pytest.fixture(scope="session")
def daytona(cache_dir: Path, environment: Path) -> Iterator[Mapping[str, Any]]:
    """The settings that lead to a Daytona on this machine."""
    settings = WorkerSettings(
        ptc_cache_dir=cache_dir, ptc_sandbox_memory_mb=MEMORY_MB, ptc_sandbox_disk_mb=DISK_MB
    )
    with DaytonaServer(settings, environment) as server:
        yield {"daytona_api_url": server.url, "daytona_api_key": server.key}
        until(lambda: not server.left())


@pytest.fixture(scope="session")
def e2b(cache_dir: Path, environment: Path) -> Iterator[Mapping[str, Any]]:
    """The settings that lead to an E2B on this machine."""
    settings = WorkerSettings(
        ptc_cache_dir=cache_dir, ptc_sandbox_memory_mb=MEMORY_MB, ptc_sandbox_disk_mb=DISK_MB
    )
    with serving_e2b(settings, environment) as server:
        yield server.chosen


@pytest.fixture(scope="session", params=WAYS, ids=str)
def way(request: pytest.FixtureRequest, cache_dir: Path) -> Way:
    """A way to have a sandbox; one that this machine refuses fails in CI and is reported as not run elsewhere."""
    chosen: Way = request.param
    if chosen.served_by:
        chosen = chosen.at(**request.getfixturevalue(chosen.served_by))
    try:
        with chosen.open(cache_dir) as box:
            assert box.isolation == chosen.isolation
    except IsolationRefusedError as error:
        NOT_RUN[str(chosen)] = str(error)
        if os.environ.get("CI") and not chosen.optional:
            raise
        pytest.skip(f"{chosen} is not to be had here: {error}")
    return chosen


@pytest.fixture
def marker() -> str:
    """What all processes of this attack carry."""
    return f"attack-{secrets.token_hex(8)}"


@pytest.fixture
def box(way: Way, cache_dir: Path) -> Iterator[Sandbox]:
    """A sandbox of each kind."""
    with way.open(cache_dir) as opened:
        yield opened


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count a case once it was tried."""
    match dict(report.user_properties).get("case"), report.when:
        case (str(suite), str(way), str(kind)), "call":
            TRIED[suite, way, kind] += 1
            HELD[suite, way, kind] += report.passed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was tried and what held, and what was not even tried."""
    if TRIED or NOT_RUN:
        terminalreporter.section("sandboxes")
    for suite in sorted({suite for suite, _, _ in TRIED}):
        for name in dict.fromkeys(map(str, WAYS)):
            classes = sorted(kind for its, of, kind in TRIED if (its, of) == (suite, name))
            if not classes:
                continue
            tried = sum(TRIED[suite, name, kind] for kind in classes)
            held = sum(HELD[suite, name, kind] for kind in classes)
            by_class = ", ".join(
                f"{kind} {HELD[suite, name, kind]}/{TRIED[suite, name, kind]}" for kind in classes
            )
            terminalreporter.line(
                f"sandbox {suite}, {name}: {tried} tried, {held} held"
                + (f" ({by_class})" if len(classes) > 1 else "")
            )
    for name, reason in NOT_RUN.items():
        terminalreporter.line(f"sandbox {name}: NOT RUN, nothing is known of it here: {reason}", red=True)
