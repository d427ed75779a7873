"""One answer from whichever configured provider gives it: retry, fallback, deadline, budget, and what it all cost."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

import stamina
import structlog

from ptc_contracts.bill import ModelCall, Request
from ptc_worker.busy import BusyError
from ptc_worker.llm.billing import Begun
from ptc_worker.llm.budget import Budget
from ptc_worker.llm.errors import ModelError, TransientError, UnsendableError
from ptc_worker.llm.patience import ATTEMPTS, Patience, unless_silent, worth_coming_back
from ptc_worker.llm.protocol import Tally
from ptc_worker.llm.responses import Response, asked_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from ptc_worker.llm.protocol import Prompt, Provider
    from ptc_worker.llm.responses import Responses
    from ptc_worker.llm.shared import Shared

log = structlog.get_logger(__name__)

_DOUBT_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer and who gave it."""

    text: str
    truncated: bool
    provider: str
    model: str


class NoAnswerError(Exception):
    """No provider answered; the message tells what each one said."""


class OverBudgetError(Exception):
    """No provider's answer fits into what may be spent; the message has the figures."""


class Listener(Protocol):
    """Hears of calls as they go; what it does takes no time, and raises nothing."""

    def asked(self, provider: Provider, request: Request) -> None:
        """Hear that a provider is asked."""

    def wrote(self, text: str) -> None:
        """Hear what it writes, piece by piece; an empty piece is a thought."""

    def billed(self, call: ModelCall) -> None:
        """Hear how a call ended, the response cache's answers among them."""


@dataclass(kw_only=True)
class Caller:
    """Asks providers in turn, within a deadline and a budget, and keeps the bill."""

    run_id: str = field(default_factory=lambda: uuid4().hex)
    """Whose calls these are; a run makes one at a time."""
    iteration: int
    request: Request = Request.DRAFT
    """What is asked for."""
    deadline: float
    """`time.monotonic()` at which everything stops."""
    may_pay: Callable[[], bool] = lambda: True
    """Whether a call may be begun now: the run may be somebody else's by now."""
    shared: Shared | None = None
    """What all workers share; without it there are no breakers, rates or days."""
    responses: Responses | None = None
    """The response cache; None where it is switched off or the plan wants no cache."""
    budget: Budget = field(default_factory=Budget)
    listener: Listener | None = None
    """Who wants to hear of the calls."""
    calls: list[ModelCall] = field(default_factory=list)
    """Every call, billed or not, failed and abandoned ones included."""
    _in_hand: Answer | None = field(default=None, init=False)
    """What was answered and paid for, from that moment on."""

    async def ask(self, providers: Sequence[Provider], prompt: Prompt) -> Answer:
        """Return the first usable answer.

        Raises:
            TimeoutError: the deadline passed.
            BusyError: nobody can be asked now, but there is time to wait for somebody.
            OverBudgetError: a provider that might answer cannot be paid.
            NoAnswerError: every provider failed.
            RedisError: it could not be told whether a call may be made.
        """
        try:
            async with asyncio.timeout(max(0.0, self._time_left())):
                return await self._first_answer(providers, prompt)
        except (TimeoutError, asyncio.CancelledError):
            if self._in_hand:  # what came too late is the telling of others
                return self._in_hand
            raise

    async def _first_answer(self, providers: Sequence[Provider], prompt: Prompt) -> Answer:
        failures: list[tuple[Provider, ModelError]] = []
        for provider in providers:
            try:
                return await self._answer_of(provider, prompt, last=provider is providers[-1])
            except ModelError as error:
                failures.append((provider, error))
                log.warning("provider_given_up", provider=provider.name, error=error.kind)
                if isinstance(error, UnsendableError):
                    break
        raise self._unanswered(failures)

    async def _answer_of(self, provider: Provider, prompt: Prompt, *, last: bool) -> Answer:
        """Return one provider's answer: the one it gave to somebody else, or a new one, if need be after retries."""
        asked = asked_of(provider, prompt)
        if self.responses and (known := await self.responses.find(asked, provider.max_output_tokens)):
            return self._remembered(provider, known, asked)
        patience = Patience(self.deadline, last)
        async for attempt in stamina.retry_context(on=patience.wait_after, attempts=ATTEMPTS, timeout=None):
            with attempt:
                answer, shortened = await self._ask_once(provider, prompt, patience)
        if not (answer.truncated and shortened):  # where it was cut then is our budget's doing
            await self._remember(answer, asked, provider.max_output_tokens)
        return answer

    async def _ask_once(self, provider: Provider, prompt: Prompt, patience: Patience) -> tuple[Answer, bool]:
        """Ask a provider; return its answer, and whether the budget allowed it less than the usual length."""
        await self._sure_to_pay()
        tally = Tally(model=provider.model)
        if self.listener:
            tally.wrote = self.listener.wrote
        async with self._admitted(provider, prompt, tally) as max_output_tokens:
            await self._sure_to_pay()
            call, outcome = self._begun(provider), "abandoned"
            if self.listener:
                self.listener.asked(provider, self.request)
            try:
                asking = provider.ask(prompt, tally, max_output_tokens)
                reply = await unless_silent(asking, tally, patience.silence)
                if not reply.text.strip():
                    raise TransientError("empty", "the answer holds no text")
                outcome = "truncated" if reply.truncated else "ok"
                self._in_hand = answer = Answer(
                    text=reply.text, truncated=reply.truncated, provider=provider.name, model=tally.model
                )
            except ModelError as error:
                outcome = error.kind
                raise
            finally:
                self._bill(call.ended(prompt, tally, outcome))
        return answer, max_output_tokens < provider.max_output_tokens

    async def _sure_to_pay(self) -> None:
        """Wait while it is in doubt whether the run is still ours."""
        while not self.may_pay():  # noqa: ASYNC110 a thread learns of it, and no event of its reaches this loop
            await asyncio.sleep(_DOUBT_SECONDS)

    @asynccontextmanager
    async def _admitted(self, provider: Provider, prompt: Prompt, tally: Tally) -> AsyncIterator[int]:
        """Let a call through that budget, breaker and limits allow; yield the most tokens its answer may have."""
        spent = self.budget.spent + self.budget.counted(self.calls)
        offer = self.budget.offer(provider, prompt, spent)
        if self.shared is None:
            yield offer.max_output_tokens
            return
        before = len(self.calls)
        async with self.shared.admitting(
            provider,
            prompt,
            offer,
            day_limit=self.budget.day_limit,
            owner=self.run_id,
            seconds=self._time_left(),
            tally=tally,
            paid=lambda: self.budget.counted(self.calls[before:]),
        ) as admitted:
            yield admitted.max_output_tokens

    def _begun(self, provider: Provider) -> Begun:
        return Begun(provider=provider, iteration=self.iteration, request=self.request)

    def _bill(self, row: ModelCall) -> None:
        self.calls.append(row)
        if self.listener:
            self.listener.billed(row)
        log.info(
            "model_called",
            provider=row.provider,
            model=row.model,
            outcome=row.outcome,
            seconds=round(row.seconds, 2),
            from_cache=row.from_cache,
        )

    def _remembered(self, provider: Provider, known: Response, asked: str) -> Answer:
        """Take a response out of the cache, and note what that saved."""
        self._bill(self._begun(provider).remembered(known, asked))
        return Answer(text=known.text, truncated=known.truncated, provider=provider.name, model=known.model)

    async def _remember(self, answer: Answer, asked: str, max_output_tokens: int) -> None:
        """Keep an answer for others."""
        if self.responses is None:
            return
        call = self.calls[-1]
        call.response = asked
        response = Response(
            text=answer.text,
            truncated=answer.truncated,
            model=answer.model,
            tokens=call.prompt_tokens + call.completion_tokens,
            cost_usd=call.cost_usd,
            max_output_tokens=max_output_tokens,
        )
        await self.responses.keep(asked, response)

    def _unanswered(self, failures: Sequence[tuple[Provider, ModelError]]) -> Exception:
        """Tell why there is no answer by what would help: time, money, or neither."""
        message = "; ".join(f"{provider.name} ({error})" for provider, error in failures)
        errors = [error for _, error in failures]
        waits = [wait for wait in map(worth_coming_back, errors) if wait is not None]
        hopeless = any(isinstance(error, UnsendableError) for error in errors)
        if waits and not hopeless and (wait := min(waits)) < self._time_left():
            return BusyError(wait, f"no model can be asked for {wait:.0f} s: {message}")
        if any(error.kind == "budget" for error in errors):
            return OverBudgetError(f"the budget ends here: {message}")
        return NoAnswerError(f"no model answered: {message}")

    def _time_left(self) -> float:
        return self.deadline - time.monotonic()
