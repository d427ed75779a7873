"""The README is true: its generated parts are current and its files are there."""

from __future__ import annotations

import re
from pathlib import Path

from readme import README, rendered

from ptc_contracts import PTCExecutionPlan


def test_generated_parts_are_current() -> None:
    """`make docs` writes them."""
    text = README.read_text("utf-8")

    assert rendered(text) == text


def test_the_smallest_plan_is_a_plan() -> None:
    """A reader can paste it."""
    (example,) = re.findall(r"```json\n(.*?)```", README.read_text("utf-8"), re.DOTALL)

    assert PTCExecutionPlan.model_validate_json(example).execution_id == "my-first"


def test_every_file_it_names_is_there() -> None:
    """Names in backticks that look like paths of the repository are files of it."""
    text = README.read_text("utf-8") + (README.parent / "CONTRIBUTING.md").read_text("utf-8")
    named = set(re.findall(r"`((?:deploy|tests|ptc_\w+|roma_bridge)/[\w/.-]*)`", text))

    assert [name for name in sorted(named) if not (README.parent / Path(name)).exists()] == []
