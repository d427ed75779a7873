"""What a call costs: the price table, the provider's own word, and the replay server."""

from __future__ import annotations

import pytest

from ptc_contracts import LLMProvider
from ptc_worker.llm.prices import cost_usd
from ptc_worker.llm.protocol import Tally
from ptc_worker.settings import WorkerSettings


def tally(model: str, **fields: float | None) -> Tally:
    """Make the tally of a call that read and wrote a thousand tokens."""
    made = Tally(model=model, prompt_tokens=1000, completion_tokens=1000)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("provider", "model", "dollars"),
    [
        ("claude", "claude-sonnet-5-5", 0.012),
        ("claude", "claude-sonnet-5-5-20260928", 0.012),
        ("kimi", "kimi-k3.1-pro", 0.012),
        ("openai", "gpt-6.1-terra", 0.006),
        ("openrouter", "anthropic/claude-sonnet-5.5", 0.012),
    ],
)
def test_a_known_model_has_its_listed_price(provider: str, model: str, dollars: float) -> None:
    """Dollars per million tokens, read and written."""
    assert cost_usd(provider, tally(model)) == pytest.approx(dollars)


@pytest.mark.parametrize("provider", LLMProvider)
def test_the_default_model_of_every_provider_has_a_price(provider: LLMProvider) -> None:
    """Nobody who changes no setting gets results without costs."""
    model = WorkerSettings.model_construct().provider(provider).model  # the environment is not asked

    assert (cost_usd(provider.value, tally(model)) or 0) > 0


@pytest.mark.parametrize(
    ("fields", "dollars"),
    [({"cached_tokens": 500}, 0.01105), ({"cache_write_tokens": 500}, 0.01225)],
)
def test_cached_tokens_have_their_own_price(fields: dict[str, int], dollars: float) -> None:
    """Reading from the cache costs less, writing to it more."""
    assert cost_usd("claude", tally("claude-sonnet-5-5", **fields)) == pytest.approx(dollars)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("claude", "nobody-knows"),
        ("openai", "llama3.2"),
        ("openrouter", "nobody/knows"),
        ("no-one", "gpt-6.1-terra"),
    ],
)
def test_an_unknown_model_has_an_unknown_price(provider: str, model: str) -> None:
    """Unknown is not free."""
    assert cost_usd(provider, tally(model)) is None


def test_counts_that_contradict_each_other_have_an_unknown_price() -> None:
    """More cached tokens than tokens are a provider's mistake, not a reason to fail."""
    assert cost_usd("claude", tally("claude-sonnet-5-5", cached_tokens=2000)) is None


def test_the_providers_own_cost_wins_over_the_list() -> None:
    """OpenRouter tells what it bills."""
    assert cost_usd("openrouter", tally("anthropic/claude-sonnet-5.5", cost_usd=0.5)) == 0.5


def test_a_cost_of_zero_is_a_cost() -> None:
    """Free models tell it; the list is not asked."""
    assert cost_usd("openrouter", tally("anthropic/claude-sonnet-5.5", cost_usd=0.0)) == 0.0


@pytest.mark.parametrize("provider", LLMProvider)
def test_a_replayed_answer_costs_nothing(provider: LLMProvider) -> None:
    """Whatever model it names."""
    assert cost_usd(provider.value, tally("replay/claude-sonnet-5-5")) == 0.0
