"""One answer from whichever configured provider gives it: retry, fallback, deadline, and what it all cost."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

import stamina
import structlog

from ptc_contracts.bill import ModelCall
from ptc_worker.llm.errors import ModelError, TransientError, UnsendableError
from ptc_worker.llm.prices import cost_usd
from ptc_worker.llm.protocol import CHARS_PER_TOKEN, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ptc_worker.llm.protocol import Prompt, Provider, Reply

log = structlog.get_logger(__name__)

ATTEMPTS = 4
"""Times one provider is asked before the next one is."""

_DOUBT_SECONDS = 0.1

LONGEST_WAIT = 30.0
"""Seconds we wait at most when a provider asks us to; beyond, the fallback is asked at once."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer and who gave it."""

    text: str
    truncated: bool
    provider: str
    model: str


class NoAnswerError(Exception):
    """No provider answered; the message tells what each one said."""


@dataclass
class Caller:
    """Asks providers in turn, within a deadline, and keeps the bill."""

    iteration: int
    deadline: float
    """`time.monotonic()` at which everything stops."""
    may_pay: Callable[[], bool] = lambda: True
    """Whether a call may be begun now: the run may be somebody else's by now."""
    calls: list[ModelCall] = field(default_factory=list)
    """Every call that was or may have been billed, failed and abandoned ones included."""

    async def ask(self, providers: Sequence[Provider], prompt: Prompt) -> Answer:
        """Return the first usable answer.

        Raises:
            TimeoutError: the deadline passed.
            NoAnswerError: every provider failed.
        """
        failures = []
        async with asyncio.timeout(max(0.0, self.deadline - time.monotonic())):
            for provider in providers:
                try:
                    return await self._ask_with_retries(provider, prompt)
                except UnsendableError as error:
                    failures.append(f"{provider.name} ({error})")
                    break
                except ModelError as error:
                    failures.append(f"{provider.name} ({error})")
                    log.warning("provider_given_up", provider=provider.name, error=error.kind)
        raise NoAnswerError("no model answered: " + "; ".join(failures))

    async def _ask_with_retries(self, provider: Provider, prompt: Prompt) -> Answer:
        async for attempt in stamina.retry_context(
            on=self._worth_a_retry,
            attempts=ATTEMPTS,
            timeout=None,
            wait_initial=0.5,
            wait_max=8.0,
        ):
            with attempt:
                return await self._ask_once(provider, prompt)
        raise AssertionError("stamina either returns or raises")  # pragma: no cover

    def _worth_a_retry(self, error: Exception) -> bool | float:
        """Decide on another try with the same provider: no, yes, or yes after so many seconds."""
        if not isinstance(error, TransientError):
            return False
        if error.retry_after is None:
            return True
        fits = error.retry_after < min(LONGEST_WAIT, self.deadline - time.monotonic())
        return error.retry_after if fits else False

    async def _ask_once(self, provider: Provider, prompt: Prompt) -> Answer:
        while not self.may_pay():  # noqa: ASYNC110 a thread learns of it, and no event of its reaches this loop
            await asyncio.sleep(_DOUBT_SECONDS)
        tally = Tally(model=provider.model)
        started = time.monotonic()
        outcome = "abandoned"
        try:
            reply = await provider.ask(prompt, tally)
            outcome = "truncated" if reply.truncated else "ok"
        except ModelError as error:
            outcome = error.kind
            raise
        finally:
            self._bill(provider, prompt, tally, time.monotonic() - started, outcome)
        return _answer(provider, tally, reply)

    def _bill(self, provider: Provider, prompt: Prompt, tally: Tally, seconds: float, outcome: str) -> None:
        log.info(
            "model_called",
            provider=provider.name,
            model=tally.model,
            outcome=outcome,
            seconds=round(seconds, 2),
        )
        if not tally.accepted:
            return
        counted = tally.prompt_tokens is not None and tally.completion_tokens is not None
        estimated = not counted or outcome not in {"ok", "truncated", "refused"}
        if tally.prompt_tokens is None:
            tally.prompt_tokens = round(prompt.chars / CHARS_PER_TOKEN)
        if estimated:
            written = round((tally.thought_chars + sum(map(len, tally.text))) / CHARS_PER_TOKEN)
            tally.completion_tokens = max(tally.completion_tokens or 0, written)
        self.calls.append(
            ModelCall(
                call_id=uuid4().hex,
                iteration=self.iteration,
                provider=provider.name,
                model=tally.model,
                prompt_tokens=tally.prompt_tokens,
                cached_tokens=tally.cached_tokens,
                completion_tokens=tally.completion_tokens or 0,
                cost_usd=cost_usd(provider.name, tally),
                seconds=round(seconds, 3),
                outcome=outcome,
                estimated=estimated,
            )
        )


def _answer(provider: Provider, tally: Tally, reply: Reply) -> Answer:
    return Answer(text=reply.text, truncated=reply.truncated, provider=provider.name, model=tally.model)
