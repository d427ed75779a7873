"""What a run asked of models, call by call, and what that sums up to."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from ptc_contracts.result import LLMUsage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MOST_ROWS = 200
"""Calls that a result tells one by one."""


ANSWERED = frozenset({"ok", "truncated"})
"""Outcomes of calls that brought an answer."""


class Request(str, Enum):
    """What a model was asked for."""

    DRAFT = "draft"
    CONTINUATION = "continuation"
    """The files that are missing because an answer was cut."""
    FORMAT_REPAIR = "format_repair"
    """The same answer once more, in the form that can be read."""


class ModelCall(BaseModel):
    """One call of a model, answered or not."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    call_id: str
    """Unique to the call: a usage that is reported twice counts once."""
    iteration: int
    """The iteration that made it."""
    request: Request = Request.DRAFT
    """What it asked for."""
    provider: str
    """The provider's name."""
    model: str
    """The model that answered."""
    started_at: datetime | None = None
    """When it began."""
    billed: bool = True
    """Whether it was, or may have been, billed."""
    from_cache: bool = False
    """Whether the response cache answered in the provider's place; nothing was spent then."""
    saved_cost_usd: float | None = None
    """What the cached answer had cost."""
    saved_tokens: int = 0
    """Tokens of the cached answer."""
    response: str = ""
    """Under which hash the response cache holds the answer; empty where it does not."""
    prompt_tokens: int = 0
    """Tokens read, cached ones included."""
    cached_tokens: int = 0
    """Of these, tokens read from the provider's prompt cache."""
    cache_write_tokens: int = 0
    """Of these, tokens written to it."""
    completion_tokens: int = 0
    """Tokens written, reasoning included."""
    reasoning_tokens: int = 0
    """Of these, tokens of reasoning, where the provider tells."""
    cost_usd: float | None = None
    """US dollars; null when the price is unknown."""
    seconds: float = 0.0
    """Wall time of the call."""
    outcome: str = "ok"
    """`ok`, or the kind of error that ended it."""
    estimated: bool = False
    """Whether the tokens are counted from the text, because the provider's own count never came."""


def usage_of(calls: Iterable[ModelCall]) -> list[LLMUsage]:
    """Sum billed calls up, one entry per provider and model; one unknown price makes the sum unknown."""
    sums: dict[tuple[str, str], LLMUsage] = {}
    for call in (call for call in calls if call.billed):
        usage = sums.setdefault(
            (call.provider, call.model),
            LLMUsage(provider=call.provider, model=call.model, api_calls=0, cost_usd=0.0),
        )
        usage.prompt_tokens += call.prompt_tokens
        usage.completion_tokens += call.completion_tokens
        usage.total_tokens += call.prompt_tokens + call.completion_tokens
        usage.api_calls += 1
        known = usage.cost_usd is not None and call.cost_usd is not None
        usage.cost_usd = (usage.cost_usd or 0.0) + (call.cost_usd or 0.0) if known else None
    return list(sums.values())


def accounts_of(calls: Sequence[ModelCall]) -> dict[str, Any]:
    """Tell what a run did with models, for its result's metadata: call by call, and what was saved.

    `calls`: a row for each call, in order. `usage_details`: of what `llm_usage` sums up, cached tokens (read from and
    written to a provider's prompt cache) and reasoning, by `provider/model`. `saved_cost_usd` and `saved_tokens`: what
    the response cache answered; only where it did.
    """
    ordered = sorted(calls, key=lambda call: call.started_at or _LONG_AGO)
    saved = [call for call in calls if call.from_cache]
    estimated = sum(call.estimated for call in calls)
    return {
        "calls": [_row(call) for call in ordered[:MOST_ROWS]],
        "usage_details": _details(calls),
        **({"calls_left_out": len(ordered) - MOST_ROWS} if len(ordered) > MOST_ROWS else {}),
        **({"calls_with_estimated_tokens": estimated} if estimated else {}),
        **(
            {
                "response_cache_hits": len(saved),
                "saved_cost_usd": sum(call.saved_cost_usd or 0.0 for call in saved),
                "saved_tokens": sum(call.saved_tokens for call in saved),
            }
            if saved
            else {}
        ),
    }


_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def _row(call: ModelCall) -> dict[str, Any]:
    return {"stage": "generate", **call.model_dump(mode="json", exclude={"call_id", "response"})}


def _details(calls: Iterable[ModelCall]) -> dict[str, dict[str, int]]:
    sums: dict[str, dict[str, int]] = {}
    for call in (call for call in calls if call.billed):
        kinds = sums.setdefault(f"{call.provider}/{call.model}", dict.fromkeys(_DETAILS, 0))
        for kind in _DETAILS:
            kinds[kind] += getattr(call, kind)
    return sums


_DETAILS = ("cached_tokens", "cache_write_tokens", "reasoning_tokens")
