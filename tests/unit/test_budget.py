"""What the next call may cost, and how long its answer may get for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from ptc_contracts.bill import ModelCall
from ptc_worker.llm.budget import FEWEST_OUTPUT_TOKENS, Budget
from ptc_worker.llm.errors import NotAskedError
from ptc_worker.llm.protocol import Message, Prompt

if TYPE_CHECKING:
    from ptc_worker.llm.protocol import Reply, Tally

PROMPT = Prompt(system="", messages=(Message(role="user", content="x" * 350_000),))
"""A hundred thousand tokens, by estimate."""


@dataclass
class Priced:
    """A provider that is known by its price alone: nobody asks it anything."""

    name: str = "openai"
    model: str = "gpt-6.1-terra"
    mark: str = ""
    rpm: int | None = None
    tpm: int | None = None
    max_output_tokens: int = 20_000

    async def ask(self, prompt: Prompt, tally: Tally, max_output_tokens: int) -> Reply:
        """Be asked nothing."""
        raise NotImplementedError

    async def close(self) -> None:
        """Have nothing to close."""


def spent(cost: float | None, *, billed: bool = True) -> ModelCall:
    """Make a call of 10,000 tokens."""
    return ModelCall(
        call_id="c",
        iteration=1,
        provider="openai",
        model="m",
        prompt_tokens=6000,
        completion_tokens=4000,
        cost_usd=cost,
        billed=billed,
    )


def test_the_worst_case_is_the_prompt_and_the_longest_answer() -> None:
    """1.25 dollars a million for a prompt that is written to the cache, 5 for the answer."""
    assert Budget().offer(Priced(), PROMPT, 0.0).most == pytest.approx(0.125 + 0.1)


def test_without_a_limit_nothing_is_bounded() -> None:
    """However much was spent."""
    assert Budget().offer(Priced(), PROMPT, 1e6).max_output_tokens == 20_000


def test_what_is_left_bounds_the_answer() -> None:
    """15 cents are left: an eighth of a dollar for the prompt, and 5,000 tokens."""
    offer = Budget(plan_limit=1.0).offer(Priced(), PROMPT, 0.85)

    assert offer.max_output_tokens == pytest.approx(5000, abs=1)
    assert offer.most <= 0.15


def test_the_setting_is_never_exceeded() -> None:
    """However much is left."""
    assert Budget(plan_limit=100.0).offer(Priced(), PROMPT, 0.0).max_output_tokens == 20_000


def test_an_answer_too_short_to_be_whole_is_not_paid_for() -> None:
    """The message has the figures."""
    left = 0.125 + 5e-6 * (FEWEST_OUTPUT_TOKENS - 1)

    with pytest.raises(NotAskedError, match=r"the plan has spent \$0\.8545 of \$1, .* may cost \$0\.1455"):
        Budget(plan_limit=1.0).offer(Priced(), PROMPT, 1.0 - left)


@pytest.mark.parametrize(("limit", "told"), [(0.00005, "of $0.00005,"), (0.0, "of $0,"), (0.1, "of $0.1,")])
def test_the_message_names_the_limit_and_its_setting(limit: float, told: str) -> None:
    """Whoever reads it knows what to raise."""
    with pytest.raises(NotAskedError) as caught:
        Budget(plan_limit=limit, plan_limit_name="PTC_MAX_COST_USD").offer(Priced(), PROMPT, 0.0)

    assert told in str(caught.value)
    assert str(caught.value).endswith("(PTC_MAX_COST_USD)")


def test_a_setting_below_the_shortest_answer_is_short_enough() -> None:
    """Who sets 1,000 tokens wants answers of 1,000 tokens."""
    offer = Budget(plan_limit=0.131).offer(Priced(max_output_tokens=1000), PROMPT, 0.0)

    assert offer.max_output_tokens == 1000


def test_an_unknown_price_counts_by_tokens() -> None:
    """At the setting's dollars a million, read or written."""
    budget = Budget(plan_limit=10.0, unknown_price_per_mtok=40.0)

    assert budget.offer(Priced(model="unheard-of"), PROMPT, 0.0).most == pytest.approx(4.8)
    assert budget.counted([spent(None), spent(0.5)]) == pytest.approx(0.9)


def test_an_unknown_price_of_nothing_bounds_nothing() -> None:
    """Local models cost nothing."""
    budget = Budget(plan_limit=0.0, unknown_price_per_mtok=0.0)

    assert budget.offer(Priced(model="unheard-of"), PROMPT, 0.0).max_output_tokens == 20_000


def test_what_was_not_billed_does_not_count() -> None:
    """Requests that were turned away, and answers of the response cache."""
    assert Budget().counted([spent(None, billed=False), spent(0.0)]) == 0.0
