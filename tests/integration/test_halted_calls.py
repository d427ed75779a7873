"""Model calls that are told to stop from another thread, through the real SDKs."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from support import answer_with, make_plan, replaying, until

from ptc_contracts import LLMProvider
from ptc_contracts.progress import Progress
from ptc_worker.halt import Halt, HaltedError, Why
from ptc_worker.llm import open_provider
from ptc_worker.llm.calls import Caller
from ptc_worker.llm.replay.faults import Fault
from ptc_worker.loop import run_async
from ptc_worker.prompts import build_prompt
from ptc_worker.settings import ProviderSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ptc_worker.llm.protocol import Prompt, Provider, Reply, Tally

NAMES = [LLMProvider.CLAUDE, LLMProvider.OPENAI]
MODEL = "model-1"
PLAN = make_plan("Add two numbers")
ANSWER = answer_with(src__add_py="def add(a, b):\n    return a + b\n" * 20)
PROMPT = build_prompt(PLAN, Progress())


class Watched:
    """A provider whose call can be watched."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self.name, self.model = provider.name, provider.model
        self.mark, self.rpm, self.tpm = provider.mark, provider.rpm, provider.tpm
        self.max_output_tokens = provider.max_output_tokens
        self.tallies: list[Tally] = []

    async def ask(self, prompt: Prompt, tally: Tally, max_output_tokens: int) -> Reply:
        """Ask, and show what the call has used so far."""
        self.tallies.append(tally)
        return await self._provider.ask(prompt, tally, max_output_tokens)

    async def close(self) -> None:
        """Close the connections."""
        await self._provider.close()

    def answering(self) -> bool:
        """Tell whether the provider has begun to answer the last call."""
        return any(tally.accepted for tally in self.tallies)


@contextmanager
def watched(name: LLMProvider, url: str) -> Iterator[Watched]:
    """Open a provider that stays open for the time of the block, whatever becomes of its calls."""
    base_url = url if name is LLMProvider.CLAUDE else f"{url}/v1"
    settings = ProviderSettings(name=name.value, model=MODEL, base_url=base_url, api_key="test-key")
    provider = Watched(open_provider(name, settings, 1000))
    try:
        yield provider
    finally:
        run_async(provider.close(), Halt())


@pytest.fixture
def caller() -> Caller:
    """A caller with a minute."""
    return Caller(iteration=1, deadline=time.monotonic() + 60)


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    """A thread to work in, while the test's own one stops the work."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.mark.parametrize("fault", [None, Fault.STALL, Fault.PINGS])
@pytest.mark.parametrize("name", NAMES)
def test_a_halted_answer_is_broken_off_and_billed(
    name: LLMProvider, fault: Fault | None, caller: Caller, thread: ThreadPoolExecutor
) -> None:
    """The server sees the caller leave, the bill is complete at once, and the provider can be asked again."""
    halt = Halt()
    with (
        replaying((PLAN, [ANSWER]), chunk_chars=2, chunk_seconds=1) as server,
        watched(name, server.url) as provider,
    ):
        server.faults.script([fault])
        work = thread.submit(run_async, caller.ask([provider], PROMPT), halt)
        until(provider.answering)
        halt.set(Why.CANCELLED)

        with pytest.raises(HaltedError):
            work.result()
        assert [(call.outcome, call.estimated) for call in caller.calls] == [("abandoned", True)]
        until(lambda: server.stats()["left"] == 1)
        server.chunk_seconds = 0
        assert run_async(caller.ask([provider], PROMPT), Halt()).text == ANSWER


@pytest.mark.parametrize("name", NAMES)
def test_a_request_that_nobody_has_answered_yet_is_given_up(
    name: LLMProvider, caller: Caller, thread: ThreadPoolExecutor
) -> None:
    """The server sees the caller leave; what was not accepted is told, and not billed."""
    halt = Halt()
    with (
        replaying((PLAN, [ANSWER]), latency=3600) as server,
        watched(name, server.url) as provider,
    ):
        work = thread.submit(run_async, caller.ask([provider], PROMPT), halt)
        until(lambda: server.stats()["calls"] == 1)
        halt.set(Why.LEASE_LOST)

        with pytest.raises(HaltedError, match="lease_lost"):
            work.result()
        assert [(call.outcome, call.billed) for call in caller.calls] == [("abandoned", False)]
        until(lambda: server.stats()["left"] == 1)


def test_other_calls_go_on(thread: ThreadPoolExecutor) -> None:
    """All runs of a process share one loop, and a halt is for one of them."""
    halt, other = Halt(), ThreadPoolExecutor(1)
    begun, go_on = threading.Event(), threading.Event()

    async def answer() -> str:
        begun.set()
        await asyncio.to_thread(go_on.wait)
        return "answer"

    with other:
        going_on = other.submit(run_async, answer(), Halt())
        begun.wait()
        halted = thread.submit(run_async, asyncio.sleep(3600), halt)
        halt.set(Why.CANCELLED)

        with pytest.raises(HaltedError):
            halted.result()
        go_on.set()
        assert going_on.result() == "answer"


def test_what_ends_a_call_has_run_when_its_halt_is_told(thread: ThreadPoolExecutor) -> None:
    """The `finally` of a coroutine bills it, even if that takes a moment."""
    halt, begun, billed = Halt(), threading.Event(), list[str]()

    async def call() -> None:
        try:
            begun.set()
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.3)
            billed.append("call")

    work = thread.submit(run_async, call(), halt)
    begun.wait()
    halt.set(Why.SHUTDOWN)

    with pytest.raises(HaltedError):
        work.result()
    assert billed == ["call"]


def test_a_call_is_not_begun_once_the_work_must_stop(caller: Caller) -> None:
    """No request is sent that would be paid for nothing."""
    halt = Halt()
    halt.set(Why.CANCELLED)
    with replaying((PLAN, [ANSWER])) as server, watched(LLMProvider.CLAUDE, server.url) as provider:
        with pytest.raises(HaltedError):
            run_async(caller.ask([provider], PROMPT), halt)

        assert (server.stats()["calls"], provider.tallies) == (0, [])


def test_a_call_that_fails_while_it_is_halted_counts_as_halted(thread: ThreadPoolExecutor) -> None:
    """What a broken connection raises on the way out is no answer either."""
    halt, begun = Halt(), threading.Event()

    async def call() -> None:
        try:
            begun.set()
            await asyncio.sleep(3600)
        finally:
            raise OSError("the connection broke")

    work = thread.submit(run_async, call(), halt)
    begun.wait()
    halt.set(Why.CANCELLED)

    with pytest.raises(HaltedError):
        work.result()
