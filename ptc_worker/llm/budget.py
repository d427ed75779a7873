"""What the next call may cost: the limit of its plan, in US dollars, against what the plan has spent."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from math import inf
from typing import TYPE_CHECKING

from ptc_worker.llm.errors import NotAskedError
from ptc_worker.llm.prices import Price, highest_price

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ptc_contracts.bill import ModelCall
    from ptc_worker.llm.protocol import Prompt, Provider

FEWEST_OUTPUT_TOKENS = 4_096
"""An answer that may have less than this is hardly ever whole: a call is not made for it."""

_ROUNDING = 1e-6
"""Tokens that differences between sums of US dollars are off by, and more."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits that hold for one plan, and what it spent before."""

    plan_limit: float | None = None
    """Most US dollars for the plan; None is no limit."""
    plan_limit_name: str = "max_cost_usd"
    """The field or setting that holds it, for messages."""
    day_limit: float | None = None
    """Most US dollars for all plans of a day (UTC); None is no limit."""
    spent: float = 0.0
    """US dollars that the plan's earlier calls count."""
    unknown_price_per_mtok: float = 20.0
    """US dollars that a million tokens count where nobody knows their price."""

    def counted(self, calls: Iterable[ModelCall]) -> float:
        """Sum up what calls count against the limits, in US dollars."""
        return sum(self._counted(call) for call in calls)

    def offer(self, provider: Provider, prompt: Prompt, spent: float) -> Offer:
        """Tell what a call may cost after the plan has spent so much, earlier calls included.

        Raises:
            NotAskedError: not even a short answer fits.
        """
        offer = Offer(price=self._price(provider, prompt), max_output_tokens=provider.max_output_tokens)
        if self.plan_limit is None:
            return offer
        return offer.within(self.plan_limit, spent, "the plan", self.plan_limit_name)

    def _counted(self, call: ModelCall) -> float:
        if not call.billed:
            return 0.0
        return (
            self.by_tokens(call.prompt_tokens + call.completion_tokens)
            if call.cost_usd is None
            else call.cost_usd
        )

    def by_tokens(self, tokens: int) -> float:
        """Count tokens whose price is not known, in US dollars."""
        return tokens * self.unknown_price_per_mtok / 1e6

    def _price(self, provider: Provider, prompt: Prompt) -> Price:
        known = highest_price(provider.name, provider.model, prompt.tokens, provider.max_output_tokens)
        return known or Price(prompt=self.by_tokens(prompt.tokens), token=self.by_tokens(1))


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What one call may cost."""

    price: Price
    max_output_tokens: int
    """Most tokens of its answer; the less, the cheaper it is at worst."""

    @property
    def most(self) -> float:
        """US dollars at worst."""
        return self.price.of(self.max_output_tokens)

    @property
    def least(self) -> float:
        """US dollars at worst, if the answer is bounded as far as makes sense."""
        return self.price.of(min(FEWEST_OUTPUT_TOKENS, self.max_output_tokens))

    def within(self, limit: float, spent: float, whose: str, name: str) -> Offer:
        """Bound the answer so that its worst case fits into what is left.

        Raises:
            NotAskedError: not even a short answer fits.
        """
        left = limit - spent
        if left < self.least:
            raise self.refused(limit, spent, whose, name)
        return self.costing(left)

    def refused(
        self,
        limit: float,
        spent: float,
        whose: str,
        name: str,
        *,
        reserved: float = 0.0,
        retry_after: float | None = None,
    ) -> NotAskedError:
        """Say that not even a short answer fits, beside what calls under way have reserved, and what bounds it."""
        others = f" (calls under way may cost ${reserved:.4f})" if reserved else ""
        figures = f"{whose} has spent ${spent:.4f} of ${Decimal(f'{limit:g}'):f}{others}"
        message = f"{figures}, and the next call may cost ${self.least:.4f} ({name})"
        return NotAskedError("budget", message, retry_after=retry_after)

    def costing(self, usd: float) -> Offer:
        """Bound the answer so that the call costs at most so many US dollars."""
        tokens = (usd - self.price.prompt) / self.price.token + _ROUNDING if self.price.token else inf
        return Offer(price=self.price, max_output_tokens=int(min(self.max_output_tokens, tokens)))
