"""The plans of a storm: small, each unlike any other, with the answers that models give to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from support import answer_with, make_plan

from ptc_contracts.bill import Request
from ptc_contracts.keys import cache_key, content_id
from ptc_worker.llm.replay.recordings import Part

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from ptc_contracts import PTCExecutionPlan
    from ptc_worker.llm.replay.recordings import Recorded


@dataclass(frozen=True)
class Task:
    """A plan, and how it has to end."""

    plan: PTCExecutionPlan
    answers: tuple[Recorded, ...]
    """What models answer in each iteration: one text, or one for each of its requests."""
    status: str
    """How its run ends, whatever happens on the way."""
    requests: tuple[Request, ...] = (Request.DRAFT,)
    """What its first iteration asks for, in turn; the others ask for a draft alone."""

    @property
    def turns(self) -> Iterator[tuple[int, Request]]:
        """List what its run asks for, by iteration."""
        yield from ((1, request) for request in self.requests)
        yield from ((iteration, Request.DRAFT) for iteration in range(2, len(self.answers) + 1))

    @property
    def content(self) -> str:
        """What the replay server knows it by."""
        return content_id(self.plan)

    @property
    def key(self) -> str:
        """What its runs begin with."""
        return cache_key(self.plan)


def make_task(storm: str, number: int, chance: random.Random) -> Task:
    """Make a plan that is mended in its second draft, right in its first, or never.

    A first answer may be cut or hold no file: then its iteration takes a second request.
    """
    right, wrong = _source(number), _source(-number - 1)
    tests = f"from value import VALUE\n\n\ndef test_it():\n    assert VALUE == {number}\n\n\ndef test_more():\n    pass"
    source, test = answer_with(src__value_py=right), answer_with(tests__test_value_py=tests)
    first_right, first_wrong = f"{source}\n{test}", f"{answer_with(src__value_py=wrong)}\n{test}"
    unreadable, cut = "Here you are.", Part(text=f"{source}\n{test[:40]}", finish="length")
    kinds: dict[str, tuple[int, tuple[Recorded, ...], tuple[Request, ...]]] = {
        "mended": (4, (first_wrong, source), ()),
        "right": (2, (first_right,), ()),
        "spent": (2, (first_wrong, answer_with(src__value_py=_source(-number - 2))), ()),
        "cut": (2, ([cut, test],), (Request.CONTINUATION,)),
        "unreadable": (1, ([unreadable, first_wrong], source), (Request.FORMAT_REPAIR,)),
        "both": (1, ([unreadable, cut, test],), (Request.FORMAT_REPAIR, Request.CONTINUATION)),
    }
    (kind,) = chance.choices(list(kinds), weights=[weight for weight, *_ in kinds.values()])
    _, answers, more = kinds[kind]
    plan = make_plan(
        f"Storm {storm}: give {number} by name",
        execution_id="to be filled in",
        max_iterations=2 if kind == "spent" else 3,
        fallback_llm=None,
    )
    status = "PARTIAL_SUCCESS" if kind == "spent" else "SUCCESS"
    return Task(plan=plan, answers=answers, status=status, requests=(Request.DRAFT, *more))


def _source(value: int) -> str:
    return f'"""A number with a name."""\n\nVALUE = {value}\n'
