"""The row that a call of a model makes on the bill, from what it had used when it ended."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ptc_contracts.bill import ModelCall
from ptc_worker.llm.prices import cost_usd

if TYPE_CHECKING:
    from ptc_contracts.bill import Request
    from ptc_worker.llm.protocol import Prompt, Provider, Tally
    from ptc_worker.llm.responses import Response

_COUNTED = {"ok", "truncated", "refused", "empty"}
"""Outcomes after which the provider's own count is complete."""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A call under way."""

    provider: Provider
    iteration: int
    request: Request
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: float = field(default_factory=time.monotonic)

    def ended(self, prompt: Prompt, tally: Tally, outcome: str) -> ModelCall:
        """Write its row; what the provider did not count is estimated from the text, in the tally too."""
        estimated = tally.accepted and _estimate(prompt, tally, outcome)
        return self._row(
            model=tally.model,
            billed=tally.accepted,
            prompt_tokens=tally.prompt_tokens or 0,
            cached_tokens=tally.cached_tokens,
            cache_write_tokens=tally.cache_write_tokens,
            completion_tokens=tally.completion_tokens or 0,
            reasoning_tokens=tally.reasoning_tokens,
            cost_usd=cost_usd(self.provider.name, tally) if tally.accepted else 0.0,
            seconds=round(time.monotonic() - self.clock, 3),
            outcome=outcome,
            estimated=estimated,
        )

    def remembered(self, response: Response, asked: str) -> ModelCall:
        """Write the row of a call that the response cache answered: nothing was spent."""
        return self._row(
            model=response.model,
            billed=False,
            from_cache=True,
            saved_cost_usd=response.cost_usd,
            saved_tokens=response.tokens,
            response=asked,
            cost_usd=0.0,
            outcome="truncated" if response.truncated else "ok",
        )

    def _row(self, **facts: Any) -> ModelCall:  # noqa: ANN401 fields of a model
        return ModelCall(
            call_id=uuid4().hex,
            iteration=self.iteration,
            request=self.request,
            provider=self.provider.name,
            started_at=self.at,
            **facts,
        )


def _estimate(prompt: Prompt, tally: Tally, outcome: str) -> bool:
    """Fill in what is missing; tell whether anything was."""
    counted = tally.prompt_tokens is not None and tally.completion_tokens is not None
    if tally.prompt_tokens is None:
        tally.prompt_tokens = prompt.tokens
    if counted and outcome in _COUNTED:
        return False
    tally.completion_tokens = max(tally.completion_tokens or 0, tally.written_tokens)
    return True
