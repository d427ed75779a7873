"""Model providers: a protocol, one file per vendor, and this registry."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ptc_contracts import LLMProvider

if TYPE_CHECKING:
    from ptc_worker.llm.protocol import Provider
    from ptc_worker.settings import ProviderSettings

_REGISTRY = {
    LLMProvider.CLAUDE: "ptc_worker.llm.claude:ClaudeProvider",
    LLMProvider.KIMI: "ptc_worker.llm.openai_compatible:OpenAICompatibleProvider",
    LLMProvider.OPENAI: "ptc_worker.llm.openai_compatible:OpenAICompatibleProvider",
    LLMProvider.OPENROUTER: "ptc_worker.llm.openai_compatible:OpenAICompatibleProvider",
}


def open_provider(name: LLMProvider, settings: ProviderSettings, max_output_tokens: int) -> Provider:
    """Make a provider; its SDK (up to a second) is imported with the first one that needs it."""
    module, _, cls = _REGISTRY[name].partition(":")
    provider: Provider = getattr(import_module(module), cls)(settings, max_output_tokens)
    return provider
