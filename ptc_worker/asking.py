"""Asks models on behalf of a run: what is answered is kept, with what it cost, before anything else happens to it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from ptc_contracts import CacheStrategy, PayloadTooLargeError
from ptc_contracts.bill import Request
from ptc_contracts.stages import Stage
from ptc_worker.announcing import ModelNews
from ptc_worker.app import redactor, settings, shared, store
from ptc_worker.halt import Halt
from ptc_worker.llm.budget import Budget
from ptc_worker.llm.calls import Answer, Caller
from ptc_worker.loop import run_async
from ptc_worker.outages import through_outages
from ptc_worker.prompts import build_prompt
from ptc_worker.recording import record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ptc_contracts.bill import ModelCall
    from ptc_contracts.run import Run
    from ptc_worker.drafting import Reading
    from ptc_worker.leases import Hold
    from ptc_worker.llm.protocol import Prompt, Provider


def answer_to(
    request: Request, hold: Hold, providers: Sequence[Provider], earlier: Sequence[Reading]
) -> Answer:
    """Return the next answer of an iteration: the one that is kept already, or a new one.

    Raises:
        NoAnswerError, OverBudgetError, BusyError, TimeoutError: there is none, or none yet; see `Caller.ask`.
        HaltedError: the work must stop.
        PayloadTooLargeError: it is larger than PTC_MAX_PAYLOAD_MB.
    """
    run = hold.run
    number = len(earlier) + 1
    name = f"{Stage.GENERATE.value}:{run.progress.iteration}" + (f":{number}" if earlier else "")
    if kept := store().checkpoint(run, name):
        return Answer(**kept)
    prompt = build_prompt(run.plan, run.progress, earlier)
    caller = _caller(hold, request)
    answer = _paid(run, caller, name, _asked(hold, caller, providers, prompt))
    if folder := settings().ptc_record:
        record(
            folder,
            redactor(),
            run.plan,
            iteration=run.progress.iteration,
            request_number=number,
            prompt=prompt,
            answer=answer,
            call=caller.calls[-1] if caller.calls else None,
        )
    hold.halt.check()
    return answer


def forget_answers(run: Run) -> None:
    """Drop a run's answers from the response cache: they came to nothing, and whoever asks again wants others."""
    with suppress(RedisError):  # they pass by themselves
        hashes = [call.response for call in store().calls(run)]
        run_async(shared().responses.forget(hashes), Halt())


def _asked(hold: Hold, caller: Caller, providers: Sequence[Provider], prompt: Prompt) -> Answer:
    """Ask, and keep the bill of what brought no answer."""
    try:
        return run_async(caller.ask(providers, prompt), hold.halt)
    except BaseException:
        if caller.calls:
            through_outages(lambda: store().keep_usage(hold.run, caller.calls))
        raise


def _paid(run: Run, caller: Caller, name: str, answer: Answer) -> Answer:
    """Keep an answer and its bill; what is kept already counts."""
    try:
        return Answer(**through_outages(lambda: store().keep(run, name, asdict(answer), caller.calls)))
    except PayloadTooLargeError:
        through_outages(lambda: store().keep_usage(run, caller.calls))
        raise


def _caller(hold: Hold, request: Request) -> Caller:
    run = hold.run
    earlier: list[ModelCall] = []
    if run.fence > 1 or request is not Request.DRAFT:
        with suppress(RedisError):  # only what is told of the run is poorer without
            earlier = store().calls(run)
    keeps = settings().ptc_response_cache_ttl and run.plan.cache_strategy is not CacheStrategy.NEVER
    return Caller(
        run_id=run.run_id,
        iteration=run.progress.iteration,
        request=request,
        deadline=run.deadline,
        may_pay=hold.sure,
        shared=shared(),
        responses=shared().responses if keeps else None,
        budget=_budget(run),
        listener=ModelNews(hold.report, earlier),
    )


def _budget(run: Run) -> Budget:
    """Gather the limits that hold for a run, and what it has spent."""
    limits = {"max_cost_usd": run.plan.max_cost_usd, "PTC_MAX_COST_USD": settings().ptc_max_cost_usd}
    known = [(limit, name) for name, limit in limits.items() if limit is not None]
    plan_limit, name = min(known, default=(None, ""))
    budget = Budget(
        plan_limit=plan_limit,
        plan_limit_name=name,
        day_limit=settings().ptc_max_cost_usd_per_day,
        unknown_price_per_mtok=settings().ptc_unknown_price_per_mtok,
    )
    return budget if budget.plan_limit is None else replace(budget, spent=budget.counted(store().calls(run)))
