"""Clusters and sandboxes, ready for use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import stamina
from cluster import cluster_in, installed_programs
from redis import Redis
from sharing import ANSWER, PLAN, Workers
from support import replaying

from ptc_worker.environments import environment
from ptc_worker.halt import Halt
from ptc_worker.llm.patience import ATTEMPTS
from ptc_worker.sandbox.kinds.local import opened as open_sandbox
from roma_bridge.embedded import embedded_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cluster import Cluster

    from ptc_contracts.settings import RedisSettings
    from ptc_worker.llm.replay.server import ReplayServer
    from ptc_worker.sandbox.protocol import Sandbox
    from ptc_worker.settings import WorkerSettings


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Cluster]:
    """A cluster whose worker serves both queues."""
    with cluster_in(tmp_path_factory.mktemp("cluster"), cache) as running:
        running.start_worker()
        yield running


@pytest.fixture(autouse=True)
def _no_grudges(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the next test of a shared cluster find providers that nobody has seen failing."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").forgive()


@pytest.fixture
def empty_cluster(tmp_path: Path, cache: Path) -> Iterator[Cluster]:
    """A cluster of this test alone, without workers."""
    with cluster_in(tmp_path, cache) as running:
        yield running


@pytest.fixture(params=["bubblewrap", "landlock"])
def box(settings: WorkerSettings, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A started sandbox of each tier."""
    tier = settings.model_copy(update={"ptc_sandbox_isolation": request.param})
    with environment(tier, (), 120, Halt()) as folder, open_sandbox(tier, folder) as started:
        yield started


@pytest.fixture(scope="module", params=sorted(installed_programs()))
def redis_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisSettings]:
    """One of the two servers."""
    folder = tmp_path_factory.mktemp(request.param)
    with embedded_server(folder, program=installed_programs()[request.param]) as settings:
        yield settings


@pytest.fixture
def workers(redis_server: RedisSettings) -> Iterator[Workers]:
    """Workers that know nothing yet."""
    with Redis.from_url(redis_server.url) as redis:
        redis.flushall()
        yield Workers(redis_server, redis)


@pytest.fixture
def primary() -> Iterator[ReplayServer]:
    """The first provider's server."""
    with replaying((PLAN, [ANSWER, ANSWER]), chunk_chars=200) as running:
        yield running


@pytest.fixture
def fallback() -> Iterator[ReplayServer]:
    """The other one's."""
    with replaying((PLAN, [ANSWER, ANSWER])) as running:
        yield running


@pytest.fixture
def _no_waiting() -> Iterator[None]:
    """Keep every decision about retries, and leave out the sleep between two."""
    with stamina.set_testing(testing=True, attempts=ATTEMPTS, cap=True):
        yield
