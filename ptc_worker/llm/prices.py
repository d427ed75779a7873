"""What a call cost, from the price table that `genai-prices` ships."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    from ptc_worker.llm.protocol import Tally

REPLAY_PREFIX = "replay/"
"""Models of the replay server carry it; they cost nothing, and results made with them say so."""

_PRICE_LIST_NAMES = {"claude": "anthropic", "kimi": "moonshotai"}


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a call can cost before anybody knows how long its answer gets, in US dollars."""

    prompt: float
    """For reading the prompt."""
    token: float
    """For each token of the answer."""

    def of(self, tokens: int) -> float:
        """Return what the call costs if its answer has so many tokens."""
        return self.prompt + self.token * tokens


def highest_price(provider: str, model: str, prompt_tokens: int, max_output_tokens: int) -> Price | None:
    """Return what a call costs at most, all of its prompt written to the provider's cache; None if nobody knows."""
    table = _price_table()
    usage = table.Usage(input_tokens=prompt_tokens, cache_write_tokens=prompt_tokens)
    longest = table.Usage(
        input_tokens=prompt_tokens, cache_write_tokens=prompt_tokens, output_tokens=max_output_tokens
    )
    prompt, whole = (_listed(provider, model, used) for used in (usage, longest))
    if prompt is None or whole is None:
        return None
    return Price(prompt=prompt, token=(whole - prompt) / max_output_tokens)


def cost_usd(provider: str, tally: Tally) -> float | None:
    """Return what the call cost in US dollars, None when its price is not known."""
    if tally.model.startswith(REPLAY_PREFIX):
        return 0.0
    if tally.cost_usd is not None:
        return tally.cost_usd
    table = _price_table()
    usage = table.Usage(
        input_tokens=tally.prompt_tokens or 0,
        cache_read_tokens=tally.cached_tokens,
        cache_write_tokens=tally.cache_write_tokens,
        output_tokens=tally.completion_tokens or 0,
    )
    return _listed(provider, tally.model, usage)


def _listed(provider: str, model: str, usage: object) -> float | None:
    try:
        price = _price_table().calc_price(
            usage, model_ref=model, provider_id=_PRICE_LIST_NAMES.get(provider, provider)
        )
    except (LookupError, ValueError):
        return None
    return float(price.total_price)


@cache
def _price_table() -> ModuleType:
    import genai_prices  # 0.2 s: imported with the first answer

    return genai_prices
