"""Limits of rate, on both implementations of Redis: no minute holds more than is allowed, however many workers ask."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import pytest
from models import requests_of
from sharing import (
    ANSWER,
    CLAUDE,
    OPENAI,
    PLAN,
    PROMPT,
    Model,
    Workers,
    answered,
)
from support import replaying, until

from ptc_contracts.keys import limit_key
from ptc_worker.busy import BusyError
from ptc_worker.llm.calls import NoAnswerError
from ptc_worker.llm.limits import OUTPUT_SHARE
from ptc_worker.llm.replay.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ptc_worker.llm.replay.server import ReplayServer

pytestmark = pytest.mark.usefixtures("_no_waiting")


def test_no_burst_of_workers_passes_more_requests_than_a_minute_allows(
    workers: Workers, primary: ReplayServer
) -> None:
    """Exactly as many as the limit; the others learn when to come again."""
    outcomes = workers.at_once(24, Model.at(CLAUDE, primary.url, rpm=7), seconds=600)

    assert (requests_of(primary), sum(map(answered, outcomes))) == (7, 7)
    waits = [outcome.seconds for outcome in outcomes if isinstance(outcome, BusyError)]
    assert len(waits) == 17
    assert all(3 <= wait <= 61 for wait in waits)


def test_no_burst_of_workers_passes_more_tokens_than_a_minute_allows(workers: Workers) -> None:
    """Prompt and a share of the longest answer are reserved before the call."""
    each = PROMPT.tokens + round(OUTPUT_SHARE * 1000)
    with held_server() as server:
        model = Model.at(CLAUDE, server.url, tpm=5 * each + each // 2)
        with ThreadPoolExecutor(16) as threads:
            begun = [threads.submit(workers.ask, model, seconds=600) for _ in range(16)]
            until(lambda: (sum(work.done() for work in begun), requests_of(server)) == (11, 5))
            server.latency = 0.0
            server.chunk_seconds = 0.0
        outcomes = [work.result()[0] for work in begun]

    assert (requests_of(server), sum(map(answered, outcomes))) == (5, 5)


@contextmanager
def held_server() -> Iterator[ReplayServer]:
    """Serve answers that begin and do not end before they are let go."""
    with replaying((PLAN, [ANSWER]), chunk_chars=10, chunk_seconds=0.5) as server:
        yield server


def test_what_a_call_did_not_use_is_free_again(workers: Workers, primary: ReplayServer) -> None:
    """After it, its own count stands in the place of the reservation."""
    _, (row,) = workers.ask(Model.at(CLAUDE, primary.url, tpm=1_000_000))

    assert sum_of(workers, "t") == row.prompt_tokens + row.completion_tokens


@pytest.mark.parametrize("fault", [Fault.AUTH, Fault.RATE_LIMITED_LONG, Fault.BAD_REQUEST])
def test_a_request_that_was_turned_away_uses_no_tokens(
    workers: Workers, primary: ReplayServer, fault: Fault
) -> None:
    """But it was a request."""
    primary.faults.script([fault])

    workers.ask(Model.at(CLAUDE, primary.url, rpm=10, tpm=1_000_000))

    assert (sum_of(workers, "r"), sum_of(workers, "t")) == (1, 0)


def test_every_retry_counts_as_a_request(workers: Workers, primary: ReplayServer) -> None:
    """The provider counts them too."""
    primary.faults.script([Fault.OVERLOADED, Fault.CUT_OFF])

    outcome, _ = workers.ask(Model.at(CLAUDE, primary.url, rpm=10))

    assert (answered(outcome), sum_of(workers, "r")) == (True, 3)


def test_a_short_wait_for_a_place_is_waited(workers: Workers, primary: ReplayServer) -> None:
    """The place comes within the next two seconds: no run need leave its slot for that."""
    model = Model.at(CLAUDE, primary.url, rpm=1)
    workers.ask(model)
    pass_time(workers, 59)

    outcome, _ = workers.ask(model)

    assert answered(outcome)


def test_a_minute_later_there_are_places_again(workers: Workers, primary: ReplayServer) -> None:
    """And nothing of the old count is left."""
    model = Model.at(CLAUDE, primary.url, rpm=1)
    workers.ask(model)
    pass_time(workers, 61)

    outcome, _ = workers.ask(model)

    assert (answered(outcome), sum_of(workers, "r")) == (True, 1)


def test_a_provider_without_a_place_leaves_the_call_to_the_fallback(
    workers: Workers, primary: ReplayServer, fallback: ReplayServer
) -> None:
    """At once, and nothing was sent to the first."""
    models = Model.at(CLAUDE, primary.url, rpm=1), Model.at(OPENAI, fallback.url)
    workers.ask(*models)

    outcome, (row,) = workers.ask(*models)

    assert (answered(outcome, OPENAI), row.provider, requests_of(primary)) == (True, "openai", 1)


def test_a_wait_beyond_the_deadline_is_no_answer(workers: Workers, primary: ReplayServer) -> None:
    """Nobody need come again for that; the message tells why."""
    workers.ask(model := Model.at(CLAUDE, primary.url, rpm=1))

    outcome, _ = workers.ask(model, seconds=20)

    assert isinstance(outcome, NoAnswerError)
    assert "limited: the next request may be sent in" in str(outcome)


def test_a_request_larger_than_a_minutes_tokens_goes_alone(workers: Workers, primary: ReplayServer) -> None:
    """It would never fit; the provider has the last word."""
    outcome, _ = workers.ask(Model.at(CLAUDE, primary.url, tpm=10))

    assert answered(outcome)


def test_limits_of_one_provider_are_not_anothers(
    workers: Workers, primary: ReplayServer, fallback: ReplayServer
) -> None:
    """Each has its own."""
    workers.ask(Model.at(CLAUDE, primary.url, rpm=1))

    outcome, _ = workers.ask(Model.at(OPENAI, fallback.url, rpm=1))

    assert answered(outcome)


def sum_of(workers: Workers, kind: str) -> int:
    """Sum up the requests (r) or tokens (t) that are counted against Claude's limits."""
    counted = cast("dict[bytes, bytes]", workers.redis.hgetall(limit_key("claude")))
    return sum(int(number) for name, number in counted.items() if name.decode().endswith(f":{kind}"))


def pass_time(workers: Workers, seconds: int) -> None:
    """Let everything that is counted lie so much further back."""
    key = limit_key("claude")
    counted = cast("dict[bytes, bytes]", workers.redis.hgetall(key))
    workers.redis.delete(key)
    for name, number in counted.items():
        second, kind = name.decode().split(":")
        workers.redis.hset(key, f"{int(second) - seconds}:{kind}", number.decode())
