"""The short form of the storm: what must hold after any faults, whichever queues a worker serves."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from faults.storm import SHAPES, Kind, Options, raise_storm

if TYPE_CHECKING:
    from pathlib import Path

SEED = int(os.environ.get("PTC_STORM_SEED", "1"))
"""Draws plans and faults; another one throws others."""


@pytest.mark.parametrize("shape", SHAPES)
def test_every_plan_has_one_result_and_no_call_is_paid_twice(shape: str, tmp_path: Path, cache: Path) -> None:
    """Whatever is killed, frozen or cut off: no plan is lost or done twice, nothing is left, calls are accounted for."""
    options = Options(
        plans=15,
        submitters=3,
        workers=2,
        faults=len(Kind),
        seed=SEED,
        shape=shape,
        patience=60,
        pace=(0.4, 1.4),
    )

    report = raise_storm(options, tmp_path, cache)

    assert report["broken"] == [], f"PTC_STORM_SEED={SEED}: {json.dumps(report, indent=2)}"
