"""The short form of the storm over workers whose tests run at a vendor's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from faults.vendors import storm

if TYPE_CHECKING:
    from pathlib import Path


def test_killed_workers_leave_nothing_and_nothing_is_made_twice(tmp_path: Path, cache: Path) -> None:
    """Whenever they die: every run has its result, and the reapers of others find what is left."""
    facts = storm(tmp_path, cache, runs=4, kills=2)

    assert facts["results"] == {"SUCCESS": 4}
    assert (facts["duplicates"], facts["left"]) == (0, 0)
