"""What a call cost, from the price table that `genai-prices` ships."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    from ptc_worker.llm.protocol import Tally

REPLAY_PREFIX = "replay/"
"""Models of the replay server carry it; they cost nothing, and results made with them say so."""

_PRICE_LIST_NAMES = {"claude": "anthropic", "kimi": "moonshotai"}


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
    try:
        price = table.calc_price(
            usage, model_ref=tally.model, provider_id=_PRICE_LIST_NAMES.get(provider, provider)
        )
    except (LookupError, ValueError):
        return None
    return float(price.total_price)


@cache
def _price_table() -> ModuleType:
    import genai_prices  # 0.2 s: imported with the first answer

    return genai_prices
