"""Which of a plan's providers can be asked: the configured ones, in order."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ptc_contracts import ConfigurationError, LLMProvider
from ptc_worker.llm import open_provider
from ptc_worker.settings import ProviderSettings, variables_of

if TYPE_CHECKING:
    from ptc_contracts import PTCExecutionPlan
    from ptc_worker.llm.protocol import Provider
    from ptc_worker.settings import WorkerSettings


def providers_for(
    plan: PTCExecutionPlan, settings: WorkerSettings, lead: str | None = None
) -> tuple[list[Provider], list[str]]:
    """Open the plan's providers, the leading one first; one that is not configured is left out with a warning.

    Raises:
        ConfigurationError: none is configured; the message names the variables.
    """
    wanted = list(dict.fromkeys(p for p in (plan.primary_llm, plan.fallback_llm) if p is not None))
    wanted.sort(key=lambda name: name.value != (lead or plan.primary_llm.value))
    known = {name: settings.provider(name) for name in wanted}
    missing = [name for name in wanted if not known[name].configured]
    if missing == wanted:
        ways = "; or ".join(f"{variables_of(name)} for {name.value}" for name in wanted)
        raise ConfigurationError(f"no model provider of this plan is configured: set {ways}")
    warnings = [f"{name.value} was skipped: set {variables_of(name)} to use it" for name in missing]
    opened = [
        _open(name, known[name], settings.ptc_max_output_tokens) for name in wanted if name not in missing
    ]
    return opened, warnings


def open_configured(name: LLMProvider, settings: WorkerSettings) -> Provider | None:
    """Open one provider; None if it is not configured."""
    known = settings.provider(name)
    return _open(name, known, settings.ptc_max_output_tokens) if known.configured else None


@cache
def _open(name: LLMProvider, settings: ProviderSettings, max_output_tokens: int) -> Provider:
    """Keep one client per provider and process, so that calls share its connections."""
    return open_provider(name, settings, max_output_tokens)
