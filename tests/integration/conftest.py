"""One cluster with one worker for all tests that do not kill it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cluster import cluster_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cluster import Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose worker serves both queues."""
    with cluster_in(tmp_path_factory.mktemp("cluster")) as running:
        running.start_worker()
        yield running


@pytest.fixture
def empty_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of this test alone, without workers."""
    with cluster_in(tmp_path) as running:
        yield running
