"""Clusters and sandboxes, ready for use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cluster import cluster_in

from ptc_worker.environments import environment
from ptc_worker.halt import Halt
from ptc_worker.sandbox import open_sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cluster import Cluster

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
