"""Workers that ask models as part of one installation: each call is made by another one."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from models import opened
from support import answer_with, make_plan

from ptc_contracts import LLMProvider
from ptc_contracts.blobs import Blobs
from ptc_contracts.progress import Progress
from ptc_worker.busy import BusyError
from ptc_worker.llm.budget import Budget
from ptc_worker.llm.calls import Answer, Caller, NoAnswerError, OverBudgetError
from ptc_worker.llm.shared import Shared
from ptc_worker.prompts import build_prompt

if TYPE_CHECKING:
    from redis import Redis

    from ptc_contracts.bill import ModelCall
    from ptc_contracts.settings import RedisSettings
    from ptc_worker.llm.protocol import Prompt, Provider


CLAUDE, OPENAI, KIMI = LLMProvider.CLAUDE, LLMProvider.OPENAI, LLMProvider.KIMI
NAMES = [CLAUDE, OPENAI]
PLAN = make_plan("Add two numbers")
ANSWER = answer_with(src__add_py="def add(a, b):\n    return a + b\n" * 20)
PROMPT = build_prompt(PLAN, Progress())
OTHER_PROMPT = build_prompt(PLAN, Progress(iteration=2))

TERRA = "gpt-6.1-terra"
"""A model with a price: 1 dollar for a million tokens read, 5 for a million written."""


@dataclass(frozen=True)
class Model:
    """How a worker reaches a provider."""

    name: LLMProvider
    url: str
    settings: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def at(cls, name: LLMProvider, url: str, **settings: Any) -> Model:
        """Name a provider, its address, and whatever else is not as usual."""
        return cls(name, url, tuple(settings.items()))


@dataclass
class Workers:
    """Workers that share one Redis server; each call is made by another one, on a loop of its own."""

    settings: RedisSettings
    redis: Redis
    blobs: Blobs = field(default_factory=Blobs)

    def ask(self, *models: Model, **options: Any) -> tuple[Answer | Exception, list[ModelCall]]:
        """Ask as one worker; return what came of it, and the account."""

        async def ask() -> Answer | Exception:
            async with self.asking(*models, **options) as (caller, providers, prompt):
                rows.append(caller.calls)
                try:
                    return cast("Answer", await caller.ask(providers, prompt))
                except (TimeoutError, NoAnswerError, BusyError, OverBudgetError) as error:
                    return error

        rows: list[list[ModelCall]] = []
        return asyncio.run(ask()), rows[0]

    def asking(self, *models: Model, **options: Any) -> _Asking:
        """Open what a worker asks with, for the time of the block."""
        return _Asking(self, models, **options)

    def at_once(self, number: int, *models: Model, **options: Any) -> list[Answer | Exception]:
        """Ask as so many workers at the same time."""
        with ThreadPoolExecutor(number) as threads:
            begun = [threads.submit(self.ask, *models, **options) for _ in range(number)]
            return [work.result()[0] for work in begun]


class _Asking(AsyncExitStack):
    """A caller with its providers and its prompt."""

    def __init__(
        self,
        workers: Workers,
        models: tuple[Model, ...],
        *,
        seconds: float = 60,
        prompt: Prompt = PROMPT,
        remembers: bool = False,
        budget: Budget | None = None,
        run_id: str = "",
        blobs: Blobs | None = None,
    ) -> None:
        super().__init__()
        self._workers, self._models, self._prompt = workers, models, prompt
        self._seconds, self._remembers = seconds, remembers
        self._run_id = run_id or uuid4().hex
        self._budget, self._blobs = budget or Budget(), blobs or workers.blobs

    async def __aenter__(self) -> Any:
        shared = Shared.connect(self._workers.settings, self._blobs, 600)
        self.push_async_callback(shared.close)
        providers: list[Provider] = [
            await self.enter_async_context(opened(model.name, model.url, **dict(model.settings)))
            for model in self._models
        ]
        caller = Caller(
            run_id=self._run_id,
            iteration=1,
            deadline=time.monotonic() + self._seconds,
            shared=shared,
            responses=shared.responses if self._remembers else None,
            budget=self._budget,
        )
        return caller, providers, self._prompt


def answered(outcome: Answer | Exception, by: LLMProvider | None = None) -> bool:
    """Tell whether there is an answer, of this provider."""
    return isinstance(outcome, Answer) and (by is None or outcome.provider == by.value)


async def asked(workers: Workers, model: Model) -> Answer:
    """Ask on whichever loop this runs."""
    async with workers.asking(model) as (caller, providers, prompt):
        answer: Answer = await caller.ask(providers, prompt)
        return answer
