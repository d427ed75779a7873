"""The model providers through the real SDKs, against the replay server and its faults."""

from __future__ import annotations

import asyncio
import json
import pickle
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import anthropic
import openai
import pytest
from models import FAKE_KEY as KEY
from models import MESSAGE_START, MODEL, chunk, chunks, events, fixed, opened, requests_of, serving
from support import answer_with, make_plan, replaying

from ptc_contracts import LLMProvider
from ptc_contracts.progress import Progress
from ptc_worker.busy import BusyError
from ptc_worker.llm.budget import Budget
from ptc_worker.llm.calls import Answer, Caller, NoAnswerError, OverBudgetError
from ptc_worker.llm.errors import ModelError, TransientError, UnavailableError, UnsendableError
from ptc_worker.llm.patience import ATTEMPTS, COME_BACK_SECONDS
from ptc_worker.llm.protocol import BYTES_PER_TOKEN, Message, Prompt, Tally
from ptc_worker.llm.replay.faults import Fault
from ptc_worker.prompts import build_prompt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ptc_contracts.bill import ModelCall
    from ptc_worker.llm.protocol import Reply
    from ptc_worker.llm.replay.server import ReplayServer

PLAN = make_plan("Add two numbers")
ANSWER = answer_with(
    src__add_py="def add(a: int, b: int) -> int:\n    return a + b\n",
    tests__test_add_py="from add import add\n\n\ndef test_adds() -> None:\n    assert add(1, 2) == 3\n",
)
PROMPT = build_prompt(PLAN, Progress())

NAMES = [LLMProvider.CLAUDE, LLMProvider.OPENAI, LLMProvider.KIMI]
CHAT_NAMES = [LLMProvider.OPENAI, LLMProvider.KIMI]
PAIRS = [
    (LLMProvider.CLAUDE, LLMProvider.OPENAI),
    (LLMProvider.OPENAI, LLMProvider.CLAUDE),
    (LLMProvider.KIMI, LLMProvider.CLAUDE),
]

FAILURES: dict[Fault, tuple[type[ModelError], str]] = {
    Fault.RATE_LIMITED: (TransientError, "rate_limited"),
    Fault.RATE_LIMITED_LONG: (TransientError, "rate_limited"),
    Fault.OVERLOADED: (TransientError, "overloaded"),
    Fault.SERVER_ERROR: (TransientError, "overloaded"),
    Fault.HTML_502: (TransientError, "overloaded"),
    Fault.CLOSED: (TransientError, "connection"),
    Fault.RESET: (TransientError, "connection"),
    Fault.CUT_OFF: (TransientError, "cut_off"),
    Fault.GARBLED: (TransientError, "garbled"),
    Fault.STREAM_ERROR: (TransientError, "overloaded"),
    Fault.QUOTA: (UnavailableError, "quota"),
    Fault.PAYMENT: (UnavailableError, "quota"),
    Fault.AUTH: (UnavailableError, "auth"),
    Fault.FORBIDDEN: (UnavailableError, "auth"),
    Fault.UNKNOWN_MODEL: (UnavailableError, "unknown_model"),
    Fault.REFUSAL: (UnavailableError, "refused"),
    Fault.TOO_LONG: (UnsendableError, "too_long"),
    Fault.TOO_LARGE: (UnsendableError, "too_long"),
    Fault.BAD_REQUEST: (UnsendableError, "bad_request"),
}
ANSWERED = {Fault.EMPTY, Fault.LENGTH}
ENDLESS = {Fault.STALL, Fault.PINGS}

RETRIED = [
    f for f, (cls, _) in FAILURES.items() if cls is TransientError and f is not Fault.RATE_LIMITED_LONG
]
UNANSWERED = [Fault.RATE_LIMITED, Fault.OVERLOADED, Fault.SERVER_ERROR, Fault.HTML_502, Fault.CLOSED]
BROKEN_OFF = [Fault.CUT_OFF, Fault.GARBLED, Fault.STREAM_ERROR]


@pytest.fixture
def server() -> Iterator[ReplayServer]:
    """A server that answers the plan in pieces, so that a fault can come in the middle."""
    with replaying((PLAN, [ANSWER]), chunk_chars=20) as running:
        yield running


@pytest.fixture
def fallback() -> Iterator[ReplayServer]:
    """Another one, for the second provider."""
    with replaying((PLAN, [ANSWER])) as running:
        yield running


def ask_once(
    name: LLMProvider, url: str, *, key: str = KEY, prompt: Prompt = PROMPT
) -> tuple[Reply | ModelError, Tally]:
    """Ask a provider once; an error of ours is returned."""

    async def ask() -> tuple[Reply | ModelError, Tally]:
        tally = Tally(model=MODEL)
        async with opened(name, url, api_key=key) as provider:
            try:
                return await provider.ask(prompt, tally, 1000), tally
            except ModelError as error:
                return error, tally

    return asyncio.run(ask())


def error_of(name: LLMProvider, url: str, *, key: str = KEY, prompt: Prompt = PROMPT) -> ModelError:
    """Ask a provider once and return the error that it must end with."""
    outcome, _ = ask_once(name, url, key=key, prompt=prompt)
    assert isinstance(outcome, ModelError)
    return outcome


def call(
    *addresses: tuple[LLMProvider, str],
    model: str = MODEL,
    seconds: float = 60,
    budget: Budget | None = None,
    max_output_tokens: int = 1000,
) -> tuple[Answer | Exception, list[ModelCall]]:
    """Ask through a caller, providers in order; return what came of it, and the bill."""

    async def ask() -> Answer | Exception:
        async with AsyncExitStack() as stack:
            providers = [
                await stack.enter_async_context(
                    opened(name, url, model=model, max_output_tokens=max_output_tokens)
                )
                for name, url in addresses
            ]
            caller.deadline = time.monotonic() + seconds
            try:
                return await caller.ask(providers, PROMPT)
            except (TimeoutError, NoAnswerError, BusyError, OverBudgetError) as error:
                return error

    caller = Caller(iteration=1, deadline=0, budget=budget or Budget())
    return asyncio.run(ask()), caller.calls


@pytest.mark.parametrize("name", NAMES)
def test_a_good_answer_arrives_whole_and_with_its_usage(server: ReplayServer, name: LLMProvider) -> None:
    """Text, model and token counts are those that the server sent."""
    reply, tally = ask_once(name, server.url)

    assert not isinstance(reply, ModelError)
    assert (reply.text, reply.truncated) == (ANSWER, False)
    assert tally.model == f"replay/{MODEL}"
    assert (tally.prompt_tokens or 0) > 100
    assert tally.completion_tokens == round(len(ANSWER) / BYTES_PER_TOKEN)


@pytest.mark.parametrize("name", NAMES)
def test_a_good_call_is_on_the_bill_as_counted(server: ReplayServer, name: LLMProvider) -> None:
    """One call, with the provider's own counts, at no cost because it was replayed."""
    answer, (billed,) = call((name, server.url))

    assert answer == Answer(text=ANSWER, truncated=False, provider=name.value, model=f"replay/{MODEL}")
    assert (billed.outcome, billed.estimated, billed.cost_usd) == ("ok", False, 0.0)


def test_the_tables_of_this_file_name_every_fault() -> None:
    """A new fault needs a decision."""
    assert set(FAILURES) | ANSWERED | ENDLESS == set(Fault)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", FAILURES)
def test_a_fault_becomes_the_error_that_says_what_to_do_next(
    server: ReplayServer, name: LLMProvider, fault: Fault
) -> None:
    """Class and kind do not depend on the vendor."""
    server.faults.script([fault])

    error = error_of(name, server.url)

    assert (type(error), error.kind) == FAILURES[fault]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("fault", "seconds"), [(Fault.RATE_LIMITED, 0.05), (Fault.RATE_LIMITED_LONG, 3600.0)]
)
def test_the_wait_that_a_provider_asks_for_is_kept(
    server: ReplayServer, name: LLMProvider, fault: Fault, seconds: float
) -> None:
    """The header reaches our error, in seconds."""
    server.faults.script([fault])

    assert error_of(name, server.url).retry_after == seconds


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", FAILURES)
def test_no_vendor_exception_hangs_on_an_error(server: ReplayServer, name: LLMProvider, fault: Fault) -> None:
    """Neither its cause nor its context leads to an exception that holds the request."""
    server.faults.script([fault])

    error = error_of(name, server.url)

    assert (error.__cause__, error.__context__) == (None, None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", [f for f in FAILURES if f not in {Fault.CUT_OFF, Fault.REFUSAL}])
def test_an_error_made_from_a_vendor_exception_suppresses_its_context(
    server: ReplayServer, name: LLMProvider, fault: Fault
) -> None:
    """Whatever is being handled when it is raised again, a traceback of it shows nothing of the vendor."""
    server.faults.script([fault])

    assert error_of(name, server.url).__suppress_context__


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", FAILURES)
def test_the_key_is_nowhere_in_an_error(server: ReplayServer, name: LLMProvider, fault: Fault) -> None:
    """One vendor's exceptions pickle the request with its headers; ours must not."""
    server.faults.script([fault])

    error = error_of(name, server.url)

    assert KEY not in f"{error} {error!r} {vars(error)}"
    assert KEY.encode() not in pickle.dumps(error)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", [Fault.AUTH, Fault.BAD_REQUEST, Fault.QUOTA, Fault.REFUSAL])
def test_the_key_is_nowhere_in_the_logs(
    server: ReplayServer,
    name: LLMProvider,
    fault: Fault,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not even with every library at its most talkative."""
    caplog.set_level("DEBUG")
    server.faults.script([fault])

    call((name, server.url))

    logged = caplog.text + "".join(capsys.readouterr())
    assert "model_called" in logged
    assert KEY not in logged


@pytest.mark.parametrize("name", NAMES)
def test_a_refused_key_that_the_provider_quotes_is_not_repeated(name: LLMProvider) -> None:
    """The words of a 401 are not ours to keep."""
    body = json.dumps({"error": {"type": "authentication_error", "message": f"wrong key: {KEY}"}}).encode()
    with serving(body, status=401, kind="application/json") as url:
        error = error_of(name, url)

    assert KEY not in str(error)


@pytest.mark.parametrize("name", CHAT_NAMES)
def test_a_key_that_cannot_be_sent_is_not_quoted(server: ReplayServer, name: LLMProvider) -> None:
    """The encoder's error holds the whole header, so nothing of it goes along."""
    error = error_of(name, server.url, key=f"{KEY}\N{EN DASH}")

    assert (type(error), error.kind) == (UnavailableError, "auth")
    assert KEY not in f"{error!r} {error.__context__!r}"


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_that_cannot_be_sent_stops(server: ReplayServer, name: LLMProvider) -> None:
    """Half a surrogate pair is no text for any provider."""
    prompt = Prompt(system="", messages=(Message(role="user", content="\ud800"),))

    error = error_of(name, server.url, prompt=prompt)

    assert (type(error), error.kind) == (UnsendableError, "bad_request")


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_answer_is_paid_for_and_asked_for_again(server: ReplayServer, name: LLMProvider) -> None:
    """The model ended its turn without text."""
    server.faults.script([Fault.EMPTY])

    answer, rows = call((name, server.url))

    assert isinstance(answer, Answer)
    assert answer.text == ANSWER
    assert [(row.outcome, row.billed, row.estimated) for row in rows] == [
        ("empty", True, False),
        ("ok", True, False),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_cut_at_the_token_limit_says_so(server: ReplayServer, name: LLMProvider) -> None:
    """What arrived is kept, marked as truncated on the answer and on the bill."""
    server.faults.script([Fault.LENGTH])

    answer, (billed,) = call((name, server.url))

    assert isinstance(answer, Answer)
    assert (answer.text, answer.truncated) == (ANSWER[: len(ANSWER) // 2], True)
    assert (billed.outcome, billed.estimated) == ("truncated", False)


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", RETRIED)
def test_the_same_provider_is_asked_again_after_a_transient_fault(
    server: ReplayServer, fallback: ReplayServer, name: LLMProvider, fault: Fault
) -> None:
    """One fault costs one more request, and the fallback is left alone."""
    server.faults.script([fault])

    answer, _ = call((name, server.url), (LLMProvider.CLAUDE, fallback.url))

    assert isinstance(answer, Answer)
    assert answer.text == ANSWER
    assert (requests_of(server), requests_of(fallback)) == (2, 0)


def test_a_retry_waits_as_told_and_succeeds(server: ReplayServer) -> None:
    """The same without the testing mode: the wait is the provider's 0.05 s."""
    server.faults.script([Fault.RATE_LIMITED])

    answer, _ = call((LLMProvider.CLAUDE, server.url))

    assert isinstance(answer, Answer)


AGAIN, FALLBACK, STOP = "the same provider again", "the fallback", "nobody"

MATRIX: dict[Fault, tuple[str, bool]] = {
    Fault.RATE_LIMITED: (AGAIN, False),
    Fault.RATE_LIMITED_LONG: (FALLBACK, False),
    Fault.OVERLOADED: (AGAIN, False),
    Fault.SERVER_ERROR: (AGAIN, False),
    Fault.HTML_502: (AGAIN, False),
    Fault.CLOSED: (AGAIN, False),
    Fault.RESET: (AGAIN, True),
    Fault.CUT_OFF: (AGAIN, True),
    Fault.GARBLED: (AGAIN, True),
    Fault.STREAM_ERROR: (AGAIN, True),
    Fault.EMPTY: (AGAIN, True),
    Fault.QUOTA: (FALLBACK, False),
    Fault.PAYMENT: (FALLBACK, False),
    Fault.AUTH: (FALLBACK, False),
    Fault.FORBIDDEN: (FALLBACK, False),
    Fault.UNKNOWN_MODEL: (FALLBACK, False),
    Fault.REFUSAL: (FALLBACK, True),
    Fault.TOO_LONG: (STOP, False),
    Fault.TOO_LARGE: (STOP, False),
    Fault.BAD_REQUEST: (STOP, False),
}
"""Who is asked after a fault, and whether the call that met it is billed."""


def test_the_matrix_names_every_fault_that_ends_a_call() -> None:
    """The others are answers, or have no end."""
    assert set(MATRIX) == set(Fault) - ENDLESS - {Fault.LENGTH}


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize("fault", MATRIX)
def test_what_follows_a_fault_and_what_it_cost(
    server: ReplayServer, fallback: ReplayServer, first: LLMProvider, second: LLMProvider, fault: Fault
) -> None:
    """Each fault has one way on, as many requests as that takes, and a row for each of them."""
    server.faults.script([fault])
    follows, billed = MATRIX[fault]

    outcome, rows = call((first, server.url), (second, fallback.url), seconds=10_000)

    good = {AGAIN: [(first.value, "ok", True)], FALLBACK: [(second.value, "ok", True)], STOP: []}[follows]
    kind = FAILURES[fault][1] if fault in FAILURES else "empty"
    assert [(row.provider, row.outcome, row.billed) for row in rows] == [(first.value, kind, billed), *good]
    assert isinstance(outcome, NoAnswerError if follows == STOP else Answer)
    assert (requests_of(server), requests_of(fallback)) == (
        2 if follows == AGAIN else 1,
        1 if follows == FALLBACK else 0,
    )


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", BROKEN_OFF)
def test_a_stream_that_broke_off_is_billed_as_estimated(
    server: ReplayServer, name: LLMProvider, fault: Fault
) -> None:
    """The half answer was paid for, and so was the whole one after it."""
    server.faults.script([fault])

    _, (broken, good) = call((name, server.url))

    assert (broken.outcome, broken.estimated) == (FAILURES[fault][1], True)
    assert 0 < broken.completion_tokens < good.completion_tokens
    assert broken.prompt_tokens > 100
    assert (good.outcome, good.estimated) == ("ok", False)


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", UNANSWERED)
def test_a_request_that_was_turned_away_is_not_billed(
    server: ReplayServer, name: LLMProvider, fault: Fault
) -> None:
    """The account tells of it, but only the good answer is on the bill."""
    server.faults.script([fault])

    _, rows = call((name, server.url))

    assert [(row.outcome, row.billed) for row in rows] == [(FAILURES[fault][1], False), ("ok", True)]
    assert (rows[0].prompt_tokens, rows[0].cost_usd) == (0, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_refusal_is_billed_as_counted(server: ReplayServer, name: LLMProvider) -> None:
    """The provider told what it used, although the answer is of no use."""
    server.faults.script([Fault.REFUSAL])

    _, (billed,) = call((name, server.url))

    assert (billed.outcome, billed.estimated) == ("refused", False)


@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize("fault", [f for f, (cls, _) in FAILURES.items() if cls is UnavailableError])
def test_the_fallback_answers_where_the_first_provider_will_not(
    server: ReplayServer, fallback: ReplayServer, first: LLMProvider, second: LLMProvider, fault: Fault
) -> None:
    """At once: the first one is asked a single time."""
    server.faults.script([fault])

    answer, _ = call((first, server.url), (second, fallback.url))

    assert isinstance(answer, Answer)
    assert answer.provider == second.value
    assert requests_of(server) == 1


@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize("fault", [f for f, (cls, _) in FAILURES.items() if cls is UnsendableError])
def test_a_request_at_fault_is_sent_nowhere_else(
    server: ReplayServer, fallback: ReplayServer, first: LLMProvider, second: LLMProvider, fault: Fault
) -> None:
    """Another provider would refuse it as well."""
    server.faults.script([fault])

    outcome, _ = call((first, server.url), (second, fallback.url))

    assert isinstance(outcome, NoAnswerError)
    assert (requests_of(server), requests_of(fallback)) == (1, 0)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_wait_of_an_hour_goes_to_the_fallback(
    server: ReplayServer, fallback: ReplayServer, first: LLMProvider, second: LLMProvider
) -> None:
    """Even where the deadline would allow it, and without a second request."""
    server.faults.script([Fault.RATE_LIMITED_LONG])

    answer, _ = call((first, server.url), (second, fallback.url), seconds=100_000)

    assert isinstance(answer, Answer)
    assert answer.provider == second.value
    assert requests_of(server) == 1


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_wait_beyond_the_deadline_goes_to_the_fallback(
    fallback: ReplayServer, first: LLMProvider, second: LLMProvider
) -> None:
    """Twenty seconds are a wait we would grant, but not with fifteen left."""
    body = b'{"error": {"type": "rate_limit_error", "message": "slow down"}}'
    with serving(body, status=429, kind="application/json", headers={"retry-after": "20"}) as url:
        answer, _ = call((first, url), (second, fallback.url), seconds=15)

    assert isinstance(answer, Answer)
    assert answer.provider == second.value


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_the_fallback_answers_when_the_retries_are_spent(
    server: ReplayServer, fallback: ReplayServer, first: LLMProvider, second: LLMProvider
) -> None:
    """A provider is asked so many times, and then the next one."""
    server.faults.script([Fault.OVERLOADED] * (ATTEMPTS + 1))

    answer, _ = call((first, server.url), (second, fallback.url))

    assert isinstance(answer, Answer)
    assert answer.provider == second.value
    assert requests_of(server) == ATTEMPTS


def test_when_nobody_answers_the_error_tells_what_each_provider_said(
    server: ReplayServer, fallback: ReplayServer
) -> None:
    """A reader of the result sees both reasons."""
    server.faults.script([Fault.AUTH])
    fallback.faults.script([Fault.QUOTA])

    outcome, _ = call((LLMProvider.CLAUDE, server.url), (LLMProvider.KIMI, fallback.url))

    assert str(outcome) == (
        "no model answered: claude (auth: HTTP 401: the key is not accepted); "
        "kimi (quota: you exceeded your current quota)"
    )


def test_a_provider_that_falls_silent_again_and_again_leaves_time_for_the_fallback(
    server: ReplayServer, fallback: ReplayServer
) -> None:
    """Twice ten seconds of keep-alives or of nothing; both calls are billed."""
    server.faults.script([Fault.PINGS, Fault.STALL])

    answer, rows = call((LLMProvider.CLAUDE, server.url), (LLMProvider.OPENAI, fallback.url), seconds=32)

    assert isinstance(answer, Answer)
    assert [(row.provider, row.outcome, row.billed) for row in rows] == [
        ("claude", "timeout", True),
        ("claude", "timeout", True),
        ("openai", "ok", True),
    ]


def test_a_wait_that_fits_before_the_deadline_is_told_where_nobody_else_can_be_asked(
    server: ReplayServer,
) -> None:
    """A worker does better things than to sleep for an hour."""
    server.faults.script([Fault.RATE_LIMITED_LONG])

    outcome, _ = call((LLMProvider.CLAUDE, server.url), seconds=10_000)

    assert isinstance(outcome, BusyError)
    assert outcome.seconds == 3600


@pytest.mark.usefixtures("_no_waiting")
def test_a_run_whose_providers_all_fail_in_passing_comes_back(
    server: ReplayServer, fallback: ReplayServer
) -> None:
    """After so many attempts somebody else may have the slot."""
    server.faults.script([Fault.OVERLOADED] * ATTEMPTS)
    fallback.faults.script([Fault.CLOSED] * ATTEMPTS)

    outcome, rows = call((LLMProvider.CLAUDE, server.url), (LLMProvider.OPENAI, fallback.url))

    assert isinstance(outcome, BusyError)
    assert (outcome.seconds, len(rows)) == (COME_BACK_SECONDS, 2 * ATTEMPTS)


def test_a_wait_beyond_the_deadline_is_no_answer(server: ReplayServer) -> None:
    """Nobody need wait for it."""
    server.faults.script([Fault.RATE_LIMITED_LONG])

    outcome, _ = call((LLMProvider.CLAUDE, server.url), seconds=600)

    assert isinstance(outcome, NoAnswerError)


def test_each_retry_is_checked_against_the_budget() -> None:
    """A broken answer of 20,000 tokens used up what the plan had; nobody is asked again."""
    body = chunks(chunk("gpt-6.1-terra", delta={"content": "x" * 70_000}), done=False)
    with fixed(body) as server:
        outcome, rows = call(
            (LLMProvider.OPENAI, server.url), model="gpt-6.1-terra", budget=Budget(plan_limit=0.1)
        )

    assert isinstance(outcome, OverBudgetError)
    assert str(outcome).startswith("the budget ends here: openai (budget: the plan has spent $0.1")
    assert (len(server.requests), [row.outcome for row in rows]) == (1, ["cut_off"])


def test_the_fallback_does_not_escape_the_budget(server: ReplayServer) -> None:
    """What the first provider took is not there for the second."""
    text, refusal = chunk("gpt-6.1-terra", delta={"content": "x" * 70_000}), chunk(delta={"refusal": "no"})
    with fixed(chunks(text, {**refusal, "model": "gpt-6.1-terra"})) as first:
        outcome, _ = call(
            (LLMProvider.OPENAI, first.url),
            (LLMProvider.CLAUDE, server.url),
            model="gpt-6.1-terra",
            budget=Budget(plan_limit=0.1),
        )

    assert isinstance(outcome, OverBudgetError)
    assert "claude (budget: the plan has spent $0.1" in str(outcome)
    assert requests_of(server) == 0


@pytest.mark.parametrize(
    ("name", "field"),
    [
        (LLMProvider.CLAUDE, "max_tokens"),
        (LLMProvider.KIMI, "max_tokens"),
        (LLMProvider.OPENAI, "max_completion_tokens"),
    ],
)
@pytest.mark.parametrize(
    ("setting", "paid", "told"), [(500, 500, 500), (8000, 1e6, 8000), (8000, 5000.5, 5000)]
)
def test_a_provider_is_told_how_long_an_answer_can_be_paid_for(
    name: LLMProvider, field: str, setting: int, paid: float, told: int
) -> None:
    """As long as the setting, or as what is left to spend has tokens, here at the price of unknown models."""
    budget = Budget(plan_limit=20e-6 * (PROMPT.tokens + paid))
    with fixed(b"{}", status=400, kind="application/json") as server:
        call((name, server.url), model="unheard-of", budget=budget, max_output_tokens=setting)

    assert [request[field] for request in server.requests] == [told]


def test_claude_is_asked_to_cache_its_prompt() -> None:
    """One argument; what is too short to be cached is not."""
    with fixed(events(MESSAGE_START)) as server:
        ask_once(LLMProvider.CLAUDE, server.url)

    assert server.requests[0]["cache_control"] == {"type": "ephemeral"}


def test_claudes_thoughts_are_told_apart() -> None:
    """They are part of what was written."""
    usage = {"output_tokens": 70, "output_tokens_details": {"thinking_tokens": 50}}
    end = {"stop_reason": "end_turn"}
    with serving(events(MESSAGE_START, {"type": "message_delta", "delta": end, "usage": usage})) as url:
        _, tally = ask_once(LLMProvider.CLAUDE, url)

    assert (tally.completion_tokens, tally.reasoning_tokens) == (70, 50)


def test_reasoning_is_read_from_the_details() -> None:
    """It is part of what was written."""
    details = {"reasoning_tokens": 50}
    usage = {"prompt_tokens": 10, "completion_tokens": 70, "completion_tokens_details": details}
    text = chunks(
        chunk(delta={"content": "hello"}, finish_reason="stop"), {**chunk(), "choices": [], "usage": usage}
    )
    with serving(text) as url:
        _, (row,) = call((LLMProvider.OPENAI, url))

    assert (row.completion_tokens, row.reasoning_tokens) == (70, 50)


@pytest.mark.parametrize("name", [LLMProvider.CLAUDE, LLMProvider.OPENAI])
@pytest.mark.parametrize("fault", sorted(ENDLESS))
def test_a_stream_without_end_ends_at_the_deadline_and_is_billed(
    server: ReplayServer, name: LLMProvider, fault: Fault
) -> None:
    """Keep-alives do not keep us; what was read until then may be billed, so it is on our bill."""
    ask_once(name, server.url)  # what is imported with the first request does not count against the deadline
    server.faults.script([fault])

    outcome, calls = call((name, server.url), seconds=2)

    assert isinstance(outcome, TimeoutError)
    assert [(billed.outcome, billed.estimated) for billed in calls] == [("abandoned", True)]


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("name", CHAT_NAMES)
def test_reasoning_that_led_to_nothing_is_billed_as_written(name: LLMProvider) -> None:
    """A model that thinks and breaks off has used its output tokens."""
    body = chunks(chunk(delta={"reasoning_content": "x" * 350}), done=False)
    with serving(body) as url:
        _, calls = call((name, url))

    assert [billed.completion_tokens for billed in calls] == [100] * ATTEMPTS


@pytest.mark.usefixtures("_no_waiting")
def test_what_broke_off_in_another_script_is_estimated_by_its_bytes() -> None:
    """A character that takes three bytes is about one token: by characters the bill would be a third of it."""
    thought, text = chunk(delta={"reasoning_content": "思" * 350}), chunk(delta={"content": "字" * 350})
    with serving(chunks(thought, text, done=False)) as url:
        _, calls = call((LLMProvider.KIMI, url))

    assert [billed.completion_tokens for billed in calls] == [600] * ATTEMPTS


@pytest.mark.usefixtures("_no_waiting")
def test_thinking_that_led_to_nothing_is_billed_as_written() -> None:
    """The same in Anthropic's words."""
    delta = {"type": "thinking_delta", "thinking": "x" * 350}
    body = events(MESSAGE_START, {"type": "content_block_delta", "index": 0, "delta": delta})
    with serving(body) as url:
        _, calls = call((LLMProvider.CLAUDE, url))

    assert [billed.completion_tokens for billed in calls] == [100] * ATTEMPTS


def test_claudes_cached_tokens_are_part_of_the_prompt() -> None:
    """Anthropic leaves them out of `input_tokens`; our tally counts them in."""
    with serving(events(MESSAGE_START)) as url:
        _, tally = ask_once(LLMProvider.CLAUDE, url)

    assert (tally.prompt_tokens, tally.cached_tokens, tally.cache_write_tokens) == (240, 200, 30)


@pytest.mark.parametrize(
    "event",
    [
        b"event: message_start\ndata: null\n\n",
        b"event: message_start\ndata: []\n\n",
        b'event: message_start\ndata: {"type": "message_start"}\n\n',
        b"event: message_start\ndata: \xff\n\n",
        events(MESSAGE_START, {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}),
        events(MESSAGE_START, {"type": "content_block_delta", "index": 0, "delta": None}),
    ],
)
def test_events_of_a_wrong_shape_are_a_transient_fault(event: bytes) -> None:
    """The SDK does not validate what it reads; no AttributeError of it ends a run."""
    with serving(event) as url:
        error = error_of(LLMProvider.CLAUDE, url)

    assert (type(error), error.kind) == (TransientError, "garbled")


@pytest.mark.parametrize(
    "body",
    [
        b"data: null\n\n",
        b"data: []\n\n",
        b"data: \xff\n\n",
        chunks(chunk(delta=None)),
        chunks(chunk(delta={"content": [1]}, finish_reason="stop")),
    ],
)
def test_chunks_of_a_wrong_shape_are_a_transient_fault(body: bytes) -> None:
    """The same with the other SDK."""
    with serving(body) as url:
        error = error_of(LLMProvider.OPENAI, url)

    assert (type(error), error.kind) == (TransientError, "garbled")


@pytest.mark.parametrize(
    ("code", "cls", "kind"),
    [
        (401, UnavailableError, "auth"),
        (402, UnavailableError, "quota"),
        (403, UnavailableError, "auth"),
        (429, TransientError, "rate_limited"),
        (502, TransientError, "overloaded"),
    ],
)
@pytest.mark.parametrize("kind_of_body", ["text/event-stream", "application/json"])
def test_an_error_inside_http_200_is_judged_by_its_code(
    code: int, cls: type[ModelError], kind: str, kind_of_body: str
) -> None:
    """OpenRouter has answered already when the provider behind it fails."""
    error = {"error": {"code": code, "message": f"upstream failed for {KEY if code == 401 else 'you'}"}}
    body = chunks(error, done=False) if kind_of_body == "text/event-stream" else json.dumps(error).encode()
    with serving(body, kind=kind_of_body) as url:
        outcome = error_of(LLMProvider.OPENROUTER, url)

    assert (type(outcome), outcome.kind) == (cls, kind)
    assert KEY not in str(outcome)


def test_an_error_named_as_the_reason_of_the_end_is_no_answer() -> None:
    """OpenRouter normalises a failed upstream to this finish reason."""
    with serving(chunks(chunk(delta={"content": "half"}, finish_reason="error"))) as url:
        error = error_of(LLMProvider.OPENROUTER, url)

    assert (type(error), error.kind) == (TransientError, "cut_off")


def test_openrouters_own_cost_is_on_the_bill() -> None:
    """Comment lines are skipped, and `usage.cost` is what the call cost."""
    usage = {"prompt_tokens": 50, "completion_tokens": 7, "total_tokens": 57, "cost": 0.0125}
    details = {"prompt_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 5}}
    text = chunks(
        chunk(delta={"role": "assistant", "content": "hello"}),
        chunk(finish_reason="stop"),
        {**chunk(), "choices": [], "usage": {**usage, **details}},
    )
    with serving(b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n" + text) as url:
        answer, (billed,) = call((LLMProvider.OPENROUTER, url), model="anthropic/claude-sonnet-5.5")

    assert isinstance(answer, Answer)
    assert answer.text == "hello"
    assert (billed.cost_usd, billed.estimated) == (0.0125, False)
    assert (billed.prompt_tokens, billed.cached_tokens, billed.completion_tokens) == (50, 20, 7)


def test_tokens_written_to_the_cache_are_read_from_the_details() -> None:
    """They have a price of their own."""
    details = {"cached_tokens": 20, "cache_write_tokens": 5}
    usage = {"prompt_tokens": 50, "completion_tokens": 7, "prompt_tokens_details": details}
    with serving(chunks(chunk(finish_reason="stop"), {**chunk(), "choices": [], "usage": usage})) as url:
        _, tally = ask_once(LLMProvider.OPENAI, url)

    assert (tally.cached_tokens, tally.cache_write_tokens) == (20, 5)


def test_kimis_usage_is_found_in_the_last_choice() -> None:
    """There it stands, with the cached tokens at its top level, and the reasoning is not part of the answer."""
    model = "kimi-k3.1-pro"
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 1_000_000, "cached_tokens": 400_000}
    body = chunks(
        chunk(model, delta={"reasoning_content": "Let me think."}),
        chunk(model, delta={"content": "hello"}),
        chunk(model, finish_reason="stop", usage=usage),
    )
    with serving(body) as url:
        answer, (billed,) = call((LLMProvider.KIMI, url), model=model)

    assert isinstance(answer, Answer)
    assert answer.text == "hello"
    assert (billed.prompt_tokens, billed.cached_tokens, billed.estimated) == (1_000_000, 400_000, False)
    assert billed.cost_usd == pytest.approx(0.6 * 2 + 0.4 * 0.2 + 10)


def test_the_anthropic_sdk_reads_a_whole_answer_of_the_replay_server(server: ReplayServer) -> None:
    """Other clients need not stream."""
    content = PROMPT.messages[0].content
    with anthropic.Anthropic(api_key=KEY, base_url=server.url, max_retries=0) as client:
        message = client.messages.create(
            model=MODEL,
            max_tokens=1000,
            system=PROMPT.system,
            messages=[{"role": "user", "content": content}],
        )

    assert [block.text for block in message.content if block.type == "text"] == [ANSWER]
    assert (message.stop_reason, message.usage.output_tokens) == (
        "end_turn",
        round(len(ANSWER) / BYTES_PER_TOKEN),
    )


def test_the_openai_sdk_reads_a_whole_answer_of_the_replay_server(server: ReplayServer) -> None:
    """Other clients need not stream."""
    content = PROMPT.messages[0].content
    with openai.OpenAI(api_key=KEY, base_url=f"{server.url}/v1", max_retries=0) as client:
        completion = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": content}]
        )

    assert completion.choices[0].message.content == ANSWER
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == round(len(ANSWER) / BYTES_PER_TOKEN)
