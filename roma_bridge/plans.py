"""Reads plans, whatever form they come in."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from ptc_contracts import InvalidPlanError, PTCExecutionPlan
from roma_bridge.defaults import with_defaults

MOST_PROBLEMS = 50
"""Lines of a message about plans that are not valid."""


def read_plan(plan: PTCExecutionPlan | Mapping[str, Any] | str | bytes) -> PTCExecutionPlan:
    """Read a plan, and fill in the installation's defaults where its author left a field unset.

    A model is read again, for it may have been changed or copied without validation since it was made.

    Raises:
        InvalidPlanError: with a line for every field that breaks the contract.
        ConfigurationError: a default from the environment does not fit the plan.
    """
    try:
        if isinstance(plan, str | bytes):
            text = plan.encode() if isinstance(plan, str) else plan
            given = PTCExecutionPlan.model_validate_json(text.removeprefix(codecs.BOM_UTF8))
        else:
            given = PTCExecutionPlan.model_validate(plan)
        return with_defaults(_as_received(given), set_by_author=given.model_fields_set)
    except ValidationError as error:
        lines = [f"{_place(e['loc'])}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
        raise InvalidPlanError("\n".join(lines)) from None
    except (PydanticSerializationError, UnicodeEncodeError) as error:
        raise InvalidPlanError(f"plan: it cannot be written as JSON: {error}") from None


def read_plans(
    plans: Iterable[PTCExecutionPlan | Mapping[str, Any] | str | bytes],
) -> list[PTCExecutionPlan]:
    """Read many plans; all of them are right, or none is returned.

    Raises:
        InvalidPlanError: with a line for every field of every plan that breaks the contract, such as
            `plans[3].max_iterations: …`; 50 lines at most. Or what was given is one plan, or none.
        ConfigurationError: a default from the environment does not fit a plan.
    """
    if isinstance(plans, PTCExecutionPlan | Mapping | str | bytes) or not isinstance(plans, Iterable):
        raise InvalidPlanError("plans: give a list of plans; submit_plan takes one")
    read, problems = [], []
    for number, plan in enumerate(plans):
        try:
            read.append(read_plan(plan))
        except InvalidPlanError as error:
            problems += [numbered(number, line) for line in str(error).splitlines()]
    if len(problems) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = [f"… and {len(problems) - MOST_PROBLEMS} more"]
    if problems:
        raise InvalidPlanError("\n".join(problems))
    return read


def numbered(number: int, problem: str) -> str:
    """Say of which of many plans a problem is told."""
    return f"plans[{number}]" + (
        problem.removeprefix("plan") if problem.startswith("plan:") else f".{problem}"
    )


def _as_received(plan: PTCExecutionPlan) -> PTCExecutionPlan:
    """Give the plan as a worker will read it; values that do not fit their fields are refused on the way."""
    return PTCExecutionPlan.model_validate_json(plan.model_dump_json(warnings=False))


def _place(location: tuple[int | str, ...]) -> str:
    names = (part if isinstance(part, int) or part.isprintable() else repr(part) for part in location)
    path = "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names)
    return path.removeprefix(".") or "plan"
