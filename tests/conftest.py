"""Fixtures of every tier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support import make_plan

if TYPE_CHECKING:
    from ptc_contracts import PTCExecutionPlan


@pytest.fixture
def plan() -> PTCExecutionPlan:
    """A plan with defaults."""
    return make_plan()
