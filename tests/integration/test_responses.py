"""The response cache, on both implementations of Redis: the same question is paid for once."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from models import requests_of
from redis import Redis
from sharing import (
    ANSWER,
    CLAUDE,
    NAMES,
    OPENAI,
    OTHER_PROMPT,
    PLAN,
    PROMPT,
    TERRA,
    Model,
    Workers,
    answered,
    asked,
)
from structlog.testing import capture_logs
from support import replaying, until

from ptc_contracts.blobs import Blobs
from ptc_contracts.keys import response_key
from ptc_worker.halt import Halt, Why
from ptc_worker.llm.budget import Budget
from ptc_worker.llm.calls import Answer
from ptc_worker.llm.replay.faults import Fault
from ptc_worker.loop import run_async
from roma_bridge.embedded import embedded_server

if TYPE_CHECKING:
    from pathlib import Path

    from ptc_contracts import LLMProvider
    from ptc_worker.llm.replay.server import ReplayServer

pytestmark = pytest.mark.usefixtures("_no_waiting")


@pytest.mark.parametrize("name", NAMES)
def test_the_same_prompt_is_answered_by_whoever_was_answered_before(
    workers: Workers, primary: ReplayServer, name: LLMProvider
) -> None:
    """Nothing is sent; the account tells what was saved."""
    first, (paid,) = workers.ask(Model.at(name, primary.url), remembers=True)

    second, (row,) = workers.ask(Model.at(name, primary.url), remembers=True)

    assert second == first
    assert requests_of(primary) == 1
    assert (row.from_cache, row.billed, row.outcome, row.cost_usd) == (True, False, "ok", 0.0)
    assert row.saved_tokens == paid.prompt_tokens + paid.completion_tokens
    assert (row.saved_cost_usd, row.response) == (paid.cost_usd, paid.response)


def test_a_response_comes_before_breaker_limits_and_budget(workers: Workers, primary: ReplayServer) -> None:
    """It costs nothing and asks nobody."""
    model = Model.at(CLAUDE, primary.url, rpm=1)
    workers.ask(model, remembers=True)
    primary.faults.script([Fault.AUTH])
    workers.ask(replace(model, settings=()), prompt=OTHER_PROMPT)

    outcome, _ = workers.ask(model, remembers=True, budget=Budget(plan_limit=0.0))

    assert answered(outcome)


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": OTHER_PROMPT},
        {"model": "model-2"},
        {"api_key": "another-test-key"},
        {"name": OPENAI},
    ],
)
def test_another_question_is_asked(workers: Workers, primary: ReplayServer, other: dict[str, Any]) -> None:
    """Prompt, provider, its address and key, and model are the question."""
    workers.ask(Model.at(CLAUDE, primary.url), remembers=True)
    prompt = other.get("prompt", PROMPT)
    model = {"name": CLAUDE, "url": primary.url} | {k: v for k, v in other.items() if k != "prompt"}

    outcome, _ = workers.ask(Model.at(**model), prompt=prompt, remembers=True)

    assert (answered(outcome), requests_of(primary)) == (True, 2)


def test_who_wants_no_cache_gets_a_new_answer_and_leaves_none(
    workers: Workers, primary: ReplayServer
) -> None:
    """As plans with the strategy NEVER do."""
    workers.ask(Model.at(CLAUDE, primary.url), remembers=True)
    kept = list(workers.redis.scan_iter(response_key("*")))

    workers.ask(Model.at(CLAUDE, primary.url))
    workers.ask(Model.at(CLAUDE, primary.url), prompt=OTHER_PROMPT)

    assert requests_of(primary) == 3
    assert list(workers.redis.scan_iter(response_key("*"))) == kept


def test_a_response_is_kept_for_its_time_alone(workers: Workers, primary: ReplayServer) -> None:
    """The setting's seconds."""
    workers.ask(Model.at(CLAUDE, primary.url), remembers=True)
    (key,) = workers.redis.scan_iter(response_key("*"))

    assert 500 < workers.redis.ttl(key) <= 600


def test_a_response_that_led_to_nothing_can_be_forgotten(workers: Workers, primary: ReplayServer) -> None:
    """By the hash on its call."""
    _, (row,) = workers.ask(Model.at(CLAUDE, primary.url), remembers=True)

    async def forget() -> None:
        async with workers.asking() as (caller, _, _):
            await caller.shared.responses.forget([row.response, ""])

    asyncio.run(forget())
    workers.ask(Model.at(CLAUDE, primary.url), remembers=True)

    assert requests_of(primary) == 2


@pytest.mark.parametrize("kept", [b"no response", b'{"text": 1}', b"\xfe\x00"])
def test_a_response_that_cannot_be_read_is_none(workers: Workers, primary: ReplayServer, kept: bytes) -> None:
    """Whoever asks gets a new one."""
    workers.ask(Model.at(CLAUDE, primary.url), remembers=True)
    (key,) = workers.redis.scan_iter(response_key("*"))
    workers.redis.set(key, kept)

    outcome, _ = workers.ask(Model.at(CLAUDE, primary.url), remembers=True)

    assert (answered(outcome), requests_of(primary)) == (True, 2)


def test_a_response_that_was_moved_is_not_believed_where_there_is_a_key(
    workers: Workers, primary: ReplayServer
) -> None:
    """Its signature is for its own question."""
    signing = Blobs(signing_key=b"k" * 16)
    model = Model.at(CLAUDE, primary.url)
    workers.ask(model, remembers=True, blobs=signing)
    (key,) = workers.redis.scan_iter(response_key("*"))
    workers.ask(model, remembers=True, blobs=signing, prompt=OTHER_PROMPT)
    (other,) = set(workers.redis.scan_iter(response_key("*"))) - {key}
    workers.redis.copy(key, other, replace=True)

    workers.ask(model, remembers=True, blobs=signing, prompt=OTHER_PROMPT)

    assert requests_of(primary) == 3


def test_an_answer_that_was_cut_by_its_usual_limit_is_kept(workers: Workers, primary: ReplayServer) -> None:
    """Asked again it would be cut again."""
    primary.faults.script([Fault.LENGTH])
    workers.ask(Model.at(CLAUDE, primary.url), remembers=True)

    outcome, (row,) = workers.ask(Model.at(CLAUDE, primary.url), remembers=True)

    assert isinstance(outcome, Answer)
    assert (outcome.truncated, row.outcome, requests_of(primary)) == (True, "truncated", 1)


def test_an_answer_that_was_cut_is_no_answer_to_whoever_may_have_more(
    workers: Workers, primary: ReplayServer
) -> None:
    """Whoever raises `PTC_MAX_OUTPUT_TOKENS` wants the rest."""
    primary.faults.script([Fault.LENGTH])
    workers.ask(Model.at(CLAUDE, primary.url, max_output_tokens=5000), remembers=True)

    outcome, _ = workers.ask(Model.at(CLAUDE, primary.url, max_output_tokens=6000), remembers=True)

    assert isinstance(outcome, Answer)
    assert (outcome.truncated, requests_of(primary)) == (False, 2)


def test_an_answer_that_was_cut_for_want_of_money_is_not_kept(
    workers: Workers, primary: ReplayServer
) -> None:
    """Who has more gets more."""
    primary.faults.script([Fault.LENGTH])
    model = Model.at(OPENAI, primary.url, model=TERRA, max_output_tokens=100_000)
    workers.ask(model, remembers=True, budget=Budget(plan_limit=0.1))

    outcome, _ = workers.ask(model, remembers=True)

    assert isinstance(outcome, Answer)
    assert (outcome.truncated, requests_of(primary)) == (False, 2)


def test_an_answer_is_not_lost_where_nobody_can_be_told_what_it_used(tmp_path: Path) -> None:
    """The server is gone while the model answers; the answer was paid for."""
    with (
        replaying((PLAN, [ANSWER]), chunk_chars=50, chunk_seconds=0.2) as server,
        embedded_server(tmp_path) as settings,
        Redis.from_url(settings.url) as redis,
        ThreadPoolExecutor(1) as thread,
    ):
        work = thread.submit(
            run_async,
            asked(Workers(settings, redis), Model.at(CLAUDE, server.url, rpm=5, tpm=100_000)),
            Halt(),
        )
        until(lambda: requests_of(server) == 1)
        redis.shutdown(nosave=True)

        assert work.result().text == ANSWER


def test_an_answer_is_not_lost_where_its_run_is_halted_before_the_others_were_told(workers: Workers) -> None:
    """The server stands still when it comes, and the worker is told to end: nobody has to pay for it again."""
    with (
        replaying((PLAN, [ANSWER]), chunk_chars=100, chunk_seconds=0.1) as server,
        ThreadPoolExecutor(1) as thread,
        capture_logs() as logs,
    ):
        halt = Halt()
        work = thread.submit(
            run_async, asked(workers, Model.at(CLAUDE, server.url, rpm=5, tpm=100_000)), halt
        )
        until(lambda: requests_of(server) == 1)
        redis = psutil.Process(workers.redis.info("server")["process_id"])
        redis.suspend()
        try:
            until(lambda: any(line["event"] == "model_called" for line in logs))
            halt.set(Why.SHUTDOWN)

            assert work.result().text == ANSWER
        finally:
            redis.resume()
