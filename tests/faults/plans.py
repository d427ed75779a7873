"""The plans of a storm: small, each unlike any other, with the answers that models give to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from support import answer_with, make_plan

from ptc_contracts.keys import cache_key, content_id

if TYPE_CHECKING:
    import random

    from ptc_contracts import PTCExecutionPlan


@dataclass(frozen=True)
class Task:
    """A plan, and how it has to end."""

    plan: PTCExecutionPlan
    answers: tuple[str, ...]
    status: str
    """How its run ends, whatever happens on the way."""

    @property
    def content(self) -> str:
        """What the replay server knows it by."""
        return content_id(self.plan)

    @property
    def key(self) -> str:
        """What its runs begin with."""
        return cache_key(self.plan)


def make_task(storm: str, number: int, chance: random.Random) -> Task:
    """Make a plan that is mended in its second draft, right in its first, or never."""
    right, wrong = _source(number), _source(-number - 1)
    tests = f"from value import VALUE\n\n\ndef test_it():\n    assert VALUE == {number}\n\n\ndef test_more():\n    pass"
    first_wrong = answer_with(src__value_py=wrong, tests__test_value_py=tests)
    kind = chance.choices(("mended", "right", "spent"), weights=(5, 3, 2))[0]
    answers = {
        "mended": (first_wrong, answer_with(src__value_py=right)),
        "right": (answer_with(src__value_py=right, tests__test_value_py=tests),),
        "spent": (first_wrong, answer_with(src__value_py=_source(-number - 2))),
    }[kind]
    plan = make_plan(
        f"Storm {storm}: give {number} by name",
        execution_id="to be filled in",
        max_iterations=2 if kind == "spent" else 3,
        fallback_llm=None,
    )
    return Task(plan=plan, answers=answers, status="PARTIAL_SUCCESS" if kind == "spent" else "SUCCESS")


def _source(value: int) -> str:
    return f'"""A number with a name."""\n\nVALUE = {value}\n'
