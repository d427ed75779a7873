"""Fixtures of every tier."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from support import make_plan

if TYPE_CHECKING:
    from pathlib import Path

    from ptc_contracts import PTCExecutionPlan


# The same examples in every run: what chance finds elsewhere is no reason for a landing to fail.
settings.register_profile("steady", derandomize=True)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environments of sandboxes: every worker reads them here, and whoever needs one first builds it."""
    own = tmp_path_factory.getbasetemp()
    # Processes that share a session's tests have a folder each, in the session's.
    session = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = session / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def plan() -> PTCExecutionPlan:
    """A plan with defaults."""
    return make_plan()
