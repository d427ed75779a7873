"""What a day may cost, on both implementations of Redis, whoever spends it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import count
from socket import AF_UNIX, create_connection, socket
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import pytest
from models import chunk, chunks, requests_of, serving
from sharing import (
    ANSWER,
    CLAUDE,
    OPENAI,
    PLAN,
    TERRA,
    Model,
    Workers,
    answered,
)
from support import replaying, served, until

from ptc_contracts.keys import spent_key
from ptc_contracts.settings import RedisSettings
from ptc_worker.busy import BusyError
from ptc_worker.halt import Halt, HaltedError, Why
from ptc_worker.llm.budget import Budget
from ptc_worker.llm.calls import OverBudgetError
from ptc_worker.llm.replay.faults import Fault
from ptc_worker.loop import run_async

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ptc_worker.llm.replay.server import ReplayServer

pytestmark = pytest.mark.usefixtures("_no_waiting")


def priced(prompt_tokens: int, completion_tokens: int, text: str = ANSWER) -> bytes:
    """Write an answer of a model with a price, and how much of it was used."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return chunks(
        chunk(TERRA, delta={"content": text}, finish_reason="stop"),
        {**chunk(TERRA), "choices": [], "usage": usage},
    )


def today() -> str:
    """Name the key of this day."""
    return spent_key(datetime.now(UTC).date().isoformat())


def spent_today(workers: Workers) -> float:
    """Read what this day has spent or reserved."""
    kept = cast("list[bytes]", workers.redis.hvals(today()))
    return sum(float(value.split()[0]) for value in kept)


def test_what_a_day_has_spent_is_what_its_calls_cost(workers: Workers) -> None:
    """The reservation is gone."""
    with serving(priced(100_000, 20_000)) as url:
        _, (row,) = workers.ask(Model.at(OPENAI, url, model=TERRA), budget=Budget(day_limit=1.0))

    assert row.cost_usd == pytest.approx(0.2)
    assert spent_today(workers) == pytest.approx(0.2)


def test_the_worst_case_of_a_call_is_reserved_while_it_is_under_way(workers: Workers) -> None:
    """A worker that is killed leaves it counted."""
    with replaying((PLAN, [ANSWER]), latency=3600) as server, ThreadPoolExecutor(1) as thread:
        model = Model.at(OPENAI, server.url, model=TERRA, max_output_tokens=100_000)
        halt = Halt()

        async def ask() -> None:
            async with workers.asking(model, budget=Budget(day_limit=2.0)) as (caller, providers, prompt):
                await caller.ask(providers, prompt)

        work = thread.submit(run_async, ask(), halt)
        until(lambda: requests_of(server) == 1)
        reserved = spent_today(workers)
        halt.set(Why.CANCELLED)
        with pytest.raises(HaltedError):
            work.result()

    assert 0.5 < reserved < 0.51
    assert spent_today(workers) == pytest.approx(0.0)


def test_no_burst_of_workers_spends_more_than_a_day_allows(workers: Workers) -> None:
    """Each may cost 10 cents and 50 are allowed; what is left over is too little for a sixth."""
    with serving(priced(0, 20_000)) as url:
        model = Model.at(OPENAI, url, model=TERRA, max_output_tokens=20_000)
        outcomes = workers.at_once(12, model, budget=Budget(day_limit=0.51))
        refused = [outcome for outcome in outcomes if isinstance(outcome, OverBudgetError | BusyError)]

    assert (sum(map(answered, outcomes)), len(refused)) == (5, 7)
    assert spent_today(workers) == pytest.approx(0.5)


@contextmanager
def half_the_day(workers: Workers) -> Iterator[ReplayServer]:
    """Let a call be under way that may cost 50 cents."""
    with replaying((PLAN, [ANSWER]), latency=3600) as server, ThreadPoolExecutor(1) as thread:
        model = Model.at(OPENAI, server.url, model=TERRA, max_output_tokens=100_000)
        halt = Halt()

        async def ask() -> None:
            async with workers.asking(model, budget=Budget(day_limit=2.0)) as (caller, providers, prompt):
                await caller.ask(providers, prompt)

        work = thread.submit(run_async, ask(), halt)
        until(lambda: requests_of(server) == 1)
        try:
            yield server
        finally:
            halt.set(Why.CANCELLED)
            with pytest.raises(HaltedError):
                work.result()


def test_what_others_have_only_reserved_is_waited_for(workers: Workers) -> None:
    """They will hardly spend it: nobody's plan has to end for that, and there is time to come back."""
    with half_the_day(workers) as server:
        model = Model.at(OPENAI, server.url, model=TERRA, max_output_tokens=4096)
        outcome, _ = workers.ask(model, budget=Budget(day_limit=0.51))
        hasty, _ = workers.ask(model, budget=Budget(day_limit=0.51), seconds=2)

    assert isinstance(outcome, BusyError)
    assert "budget: today has spent $0.0000 of $0.51 (calls under way may cost $0.5" in str(outcome)
    assert isinstance(hasty, OverBudgetError)


def test_what_a_killed_worker_had_reserved_counts_as_spent_once_its_call_must_be_over(
    workers: Workers,
) -> None:
    """Nobody waits for it then."""
    workers.redis.hset(today(), "run", "0.505 1 call")
    with serving(priced(0, 100)) as url:
        model = Model.at(OPENAI, url, model=TERRA, max_output_tokens=4096)
        outcome, _ = workers.ask(model, budget=Budget(day_limit=0.51))

    assert isinstance(outcome, OverBudgetError)
    assert "today has spent $0.5050 of $0.51, and" in str(outcome)


def test_what_a_killed_worker_had_reserved_counts_as_spent_once_its_run_goes_on(workers: Workers) -> None:
    """Whoever took the run over tells by its own call that the last one is over; nobody knows what that cost."""
    with half_the_day(workers) as server:
        model = Model.at(OPENAI, server.url, model=TERRA, max_output_tokens=4096)
        (run_id,) = cast("list[bytes]", workers.redis.hkeys(today()))
        again, _ = workers.ask(model, budget=Budget(day_limit=0.51), run_id=run_id.decode())
        other, _ = workers.ask(model, budget=Budget(day_limit=0.51))

    assert [type(outcome) for outcome in (again, other)] == [OverBudgetError, OverBudgetError]
    assert spent_today(workers) == pytest.approx(0.505, abs=0.01)


@pytest.mark.parametrize("lost", [1, 2], ids=["reservation", "settlement"])
def test_a_lost_answer_of_the_server_counts_nothing_twice(lost: int, workers: Workers) -> None:
    """Whoever misses one asks again: the day must neither forget what it has spent nor count it once more."""
    with serving(priced(0, 20_000)) as url:
        model = Model.at(OPENAI, url, model=TERRA, max_output_tokens=100_000)
        workers.ask(model, budget=Budget(day_limit=10.0))
        with losing_an_answer(workers.settings, today(), lost) as settings:
            outcome, _ = Workers(settings, workers.redis).ask(model, budget=Budget(day_limit=10.0))

    assert answered(outcome)
    assert spent_today(workers) == pytest.approx(0.2)


@contextmanager
def losing_an_answer(settings: RedisSettings, word: str, which: int) -> Iterator[RedisSettings]:
    """Reach a server on a way that breaks once, just before it brings the answer to such a command with this word."""
    seen = count(1)

    class Way(BaseRequestHandler):
        def handle(self) -> None:
            with closing(connected(settings)) as server:
                while data := self.request.recv(1 << 20):
                    server.sendall(data)
                    answer = server.recv(1 << 20)
                    if word.encode() in data and next(seen) == which:
                        return
                    self.request.sendall(answer)

    way = ThreadingTCPServer(("127.0.0.1", 0), Way)
    way.daemon_threads = True
    with served(way):
        secret = urlsplit(settings.url).password or ""
        yield RedisSettings(url=f"redis://:{secret}@127.0.0.1:{way.server_address[1]}/0")


def connected(settings: RedisSettings) -> socket:
    """Open a connection to a server."""
    parts = urlsplit(settings.url)
    if parts.scheme == "unix":
        server = socket(AF_UNIX)
        server.connect(parts.path)
        return server
    return create_connection((parts.hostname, parts.port))


def test_the_message_of_a_day_that_is_spent_has_the_figures(workers: Workers) -> None:
    """What was spent, of how much, and what the next call may cost."""
    with serving(priced(0, 90_000)) as url:
        model = Model.at(OPENAI, url, model=TERRA, max_output_tokens=100_000)
        workers.ask(model, budget=Budget(day_limit=0.46))
        outcome, _ = workers.ask(model, budget=Budget(day_limit=0.46))

    assert isinstance(outcome, OverBudgetError)
    assert "openai (budget: today has spent $0.4500 of $0.46, and the next call may cost $0.02" in str(
        outcome
    )


def test_the_fallback_does_not_escape_the_day(
    workers: Workers, primary: ReplayServer, fallback: ReplayServer
) -> None:
    """It is priced as well."""
    primary.faults.script([Fault.AUTH])
    outcome, _ = workers.ask(
        Model.at(CLAUDE, primary.url, model="claude-haiku-5-5"),
        Model.at(OPENAI, fallback.url, model=TERRA, max_output_tokens=4096),
        budget=Budget(day_limit=0.01),
    )

    assert isinstance(outcome, OverBudgetError)
    assert "openai (budget: today has spent $0.0000 of $0.01" in str(outcome)
    assert "(PTC_MAX_COST_USD_PER_DAY)" in str(outcome)
    assert requests_of(fallback) == 0
