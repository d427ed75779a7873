"""The breaker, on both implementations of Redis: who fails is left alone by all workers, and tried again in time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import pytest
from models import requests_of, serving
from sharing import (
    ANSWER,
    CLAUDE,
    KIMI,
    NAMES,
    OPENAI,
    PLAN,
    Model,
    Workers,
    answered,
    asked,
)
from support import replaying, until

from ptc_contracts.keys import breaker_key
from ptc_worker.busy import BusyError
from ptc_worker.halt import Halt, HaltedError, Why
from ptc_worker.llm.breaker import FAILURES, LONG_REST_SECONDS, REST_SECONDS
from ptc_worker.llm.calls import NoAnswerError
from ptc_worker.llm.replay.faults import Fault
from ptc_worker.loop import run_async

if TYPE_CHECKING:
    from ptc_contracts import LLMProvider
    from ptc_worker.llm.replay.server import ReplayServer

pytestmark = pytest.mark.usefixtures("_no_waiting")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", [Fault.QUOTA, Fault.PAYMENT, Fault.AUTH, Fault.UNKNOWN_MODEL])
def test_a_failure_that_lasts_is_met_once_by_all_workers(
    workers: Workers, primary: ReplayServer, fallback: ReplayServer, name: LLMProvider, fault: Fault
) -> None:
    """Only people can mend it, so the next worker goes straight to the fallback."""
    models = Model.at(name, primary.url), Model.at(KIMI, fallback.url)
    primary.faults.script([fault])
    workers.ask(*models)

    outcomes = workers.at_once(8, *models)

    assert all(answered(outcome, KIMI) for outcome in outcomes)
    assert requests_of(primary) == 1
    assert LONG_REST_SECONDS - 60 < rests(workers) <= LONG_REST_SECONDS


def test_claudes_spend_limit_counts_as_quota(workers: Workers, fallback: ReplayServer) -> None:
    """It comes as 400, which for anybody who looks at the status alone is the fault of the request."""
    message = "You have reached your specified API usage limits. You will regain access on 2026-12-01."
    body = f'{{"type": "error", "error": {{"type": "invalid_request_error", "message": "{message}"}}}}'
    with serving(body.encode(), status=400, kind="application/json") as url:
        outcome, _ = workers.ask(Model.at(CLAUDE, url), Model.at(KIMI, fallback.url))

    assert answered(outcome, KIMI)
    assert rests(workers) > REST_SECONDS


def test_without_a_fallback_a_failure_that_lasts_is_told_at_once(
    workers: Workers, primary: ReplayServer
) -> None:
    """Waiting would not help, so no run is put off."""
    primary.faults.script([Fault.AUTH])
    workers.ask(Model.at(CLAUDE, primary.url))

    outcome, rows = workers.ask(Model.at(CLAUDE, primary.url), seconds=10_000)

    assert isinstance(outcome, NoAnswerError)
    assert "claude (resting: it failed before (auth) and is left alone for" in str(outcome)
    assert rows == []


def test_a_mended_key_is_tried_at_once(workers: Workers, primary: ReplayServer) -> None:
    """The breaker belongs to the old one."""
    primary.faults.script([Fault.AUTH])
    workers.ask(Model.at(CLAUDE, primary.url))

    outcome, _ = workers.ask(Model.at(CLAUDE, primary.url, api_key="another-test-key"))

    assert answered(outcome)


def test_another_model_of_the_provider_is_not_to_blame(workers: Workers, primary: ReplayServer) -> None:
    """Each model has its own breaker."""
    primary.faults.script([Fault.UNKNOWN_MODEL])
    workers.ask(Model.at(CLAUDE, primary.url))

    outcome, _ = workers.ask(Model.at(CLAUDE, primary.url, model="model-2"))

    assert answered(outcome)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", [Fault.OVERLOADED, Fault.CUT_OFF, Fault.CLOSED, Fault.EMPTY])
def test_failures_of_several_workers_open_a_breaker(
    workers: Workers, primary: ReplayServer, name: LLMProvider, fault: Fault
) -> None:
    """The fifth in a row is the last that anybody asks for; then the run is put off."""
    primary.faults.script([fault] * 20)
    for _ in range(4):
        outcome, _ = workers.ask(Model.at(name, primary.url), seconds=600)

    assert requests_of(primary) == FAILURES
    assert isinstance(outcome, BusyError)
    assert REST_SECONDS - 10 < outcome.seconds <= REST_SECONDS


def test_a_success_ends_the_count(workers: Workers, primary: ReplayServer) -> None:
    """A provider that fails now and then is no broken one."""
    primary.faults.script([Fault.OVERLOADED, Fault.OVERLOADED, None] * 6)

    outcomes = [workers.ask(Model.at(CLAUDE, primary.url))[0] for _ in range(6)]

    assert all(map(answered, outcomes))


@pytest.mark.parametrize("fault", [Fault.REFUSAL, Fault.TOO_LONG, Fault.BAD_REQUEST])
def test_the_faults_of_a_request_are_not_its_providers(
    workers: Workers, primary: ReplayServer, fault: Fault
) -> None:
    """Others are answered."""
    primary.faults.script([fault] * (FAILURES + 1))
    for _ in range(FAILURES + 1):
        workers.ask(Model.at(CLAUDE, primary.url))

    outcome, _ = workers.ask(Model.at(CLAUDE, primary.url))

    assert answered(outcome)


def test_a_fallback_that_fails_is_left_alone_too(
    workers: Workers, primary: ReplayServer, fallback: ReplayServer
) -> None:
    """Its place in a plan makes no difference."""
    models = Model.at(CLAUDE, primary.url), Model.at(OPENAI, fallback.url)
    primary.faults.script([Fault.REFUSAL] * 2)
    fallback.faults.script([Fault.QUOTA])
    workers.ask(*models)

    outcome, _ = workers.ask(*models)

    assert isinstance(outcome, NoAnswerError)
    assert requests_of(fallback) == 1


def test_a_long_wait_that_a_provider_asks_for_holds_for_all_workers(
    workers: Workers, primary: ReplayServer
) -> None:
    """One worker is told; the others are put off without asking, for as long as we believe a provider."""
    primary.faults.script([Fault.RATE_LIMITED_LONG])
    first, _ = workers.ask(Model.at(CLAUDE, primary.url), seconds=100_000)

    second, _ = workers.ask(Model.at(CLAUDE, primary.url), seconds=100_000)

    assert isinstance(first, BusyError)
    assert isinstance(second, BusyError)
    assert (first.seconds, requests_of(primary)) == (3600.0, 1)
    assert LONG_REST_SECONDS - 60 < second.seconds <= LONG_REST_SECONDS


def test_after_its_rest_a_provider_is_probed_by_one(workers: Workers) -> None:
    """The others wait for what becomes of that; its success lets all of them in."""
    with replaying((PLAN, [ANSWER])) as server:
        model = Model.at(CLAUDE, server.url)
        server.faults.script([Fault.AUTH])
        workers.ask(model)
        rest_is_over(workers)
        server.latency = 3600.0
        with ThreadPoolExecutor(1) as thread:
            probe = thread.submit(workers.ask, model)
            until(lambda: requests_of(server) == 2)
            others = workers.at_once(6, model, seconds=20)
            server.latency = 0.0
            server.stopping.set()  # it stops to wait, no more
            outcome, _ = probe.result()

        assert all(isinstance(other, BusyError) for other in others)
        assert answered(outcome)
        assert all(map(answered, workers.at_once(6, model)))


def test_a_probe_that_fails_opens_the_breaker_again(workers: Workers, primary: ReplayServer) -> None:
    """One is enough now."""
    primary.faults.script([Fault.AUTH, Fault.OVERLOADED])
    workers.ask(Model.at(CLAUDE, primary.url))
    rest_is_over(workers)

    outcome, rows = workers.ask(Model.at(CLAUDE, primary.url), seconds=600)

    assert isinstance(outcome, BusyError)
    assert [row.outcome for row in rows] == ["overloaded"]
    assert rests(workers) > REST_SECONDS - 10


def test_a_probe_that_is_given_up_lets_the_next_one_through(workers: Workers) -> None:
    """A cancelled run tells nothing about the provider."""
    halt = Halt()
    with replaying((PLAN, [ANSWER])) as server, ExitStack() as stack:
        model = Model.at(CLAUDE, server.url)
        server.faults.script([Fault.AUTH])
        workers.ask(model)
        rest_is_over(workers)
        server.latency = 3600.0
        thread = stack.enter_context(ThreadPoolExecutor(1))
        probe = thread.submit(run_async, asked(workers, model), halt)
        until(lambda: requests_of(server) == 2)
        halt.set(Why.CANCELLED)
        with pytest.raises(HaltedError):
            probe.result()
        server.latency = 0.0

        outcome, _ = workers.ask(model)

        assert answered(outcome)


def breakers(workers: Workers) -> list[bytes]:
    """Name the breakers that know of failures."""
    return list(workers.redis.scan_iter(breaker_key("*")))


def rests(workers: Workers) -> float:
    """Tell how many seconds the one provider that failed is still left alone."""
    (key,) = breakers(workers)
    seconds, microseconds = workers.redis.time()
    until_ = int(cast("bytes", workers.redis.hget(key.decode(), "open_until")))
    return until_ / 1000 - seconds - microseconds / 1e6


def rest_is_over(workers: Workers) -> None:
    """Let the rest of whoever failed have passed."""
    for key in breakers(workers):
        workers.redis.hset(key.decode(), "open_until", 1)
