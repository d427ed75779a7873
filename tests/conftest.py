"""Fixtures of every tier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from support import make_plan

if TYPE_CHECKING:
    from ptc_contracts import PTCExecutionPlan


# The same examples in every run: what chance finds elsewhere is no reason for a landing to fail.
settings.register_profile("steady", derandomize=True)
settings.load_profile("steady")


@pytest.fixture
def plan() -> PTCExecutionPlan:
    """A plan with defaults."""
    return make_plan()
