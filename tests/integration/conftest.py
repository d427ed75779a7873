"""Clusters and sandboxes, ready for use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cluster import cluster_in

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


@pytest.fixture
def empty_cluster(tmp_path: Path, cache: Path) -> Iterator[Cluster]:
    """A cluster of this test alone, without workers."""
    with cluster_in(tmp_path, cache) as running:
        yield running


@pytest.fixture(params=["namespaces", "process"])
def box(settings: WorkerSettings, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A started sandbox: the best that this system offers, and what is left where it refuses namespaces."""
    with open_sandbox(settings, read_only=[]) as started:
        if request.param == "process":
            started.isolation = "process"
        elif started.isolation != "namespaces":
            pytest.skip("this system refuses namespaces, and results say so")
        yield started
