"""`--dry-run`: what would become of plans if they were submitted now; nothing is counted, claimed or sent."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Literal, cast

import click

from ptc_contracts import (
    CacheStrategy,
    PTCArtifactResult,
    PTCExecutionPlan,
    RunNotFoundError,
    ServerUnavailableError,
    UnreadableBlobError,
)
from ptc_contracts.cache import CacheEntry
from ptc_contracts.keys import (
    attempt_key,
    cache_key,
    cache_names,
    claim_key,
    digest,
    exec_key,
    fingerprint,
    meta_key,
)
from ptc_contracts.run import RunState
from roma_bridge.cli.continuing import continued
from roma_bridge.cli.here import server
from roma_bridge.cli.plans import read
from roma_bridge.cli.tables import span
from roma_bridge.reaching import reaching
from roma_bridge.terminal import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from roma_bridge.cli.asked import Asked
    from roma_bridge.cli.plans import Given
    from roma_bridge.client import PTC

RUNS_FOR_PRICES = 30
"""How many of the last ended runs an estimate looks at."""


@dataclass(frozen=True)
class Answer:
    """What would answer a plan."""

    by: Literal["cache", "joined", "earlier", "new", "unknown"]
    words: str
    run_id: str = ""


@dataclass(frozen=True)
class Estimate:
    """What a new run may cost, in US dollars; null where that is not known."""

    typical_usd: float | None
    worst_usd: float | None
    words: str


@dataclass(frozen=True)
class Outlook:
    """What would become of one plan."""

    file: str
    line: int | None
    execution_id: str
    key: str
    fingerprint: str
    answer: Answer
    estimate: Estimate


def foresee(asked: Asked) -> int:
    """Print an outlook for every plan."""
    given = [] if asked.continue_run else read(asked.plans, asked.changes)
    with server(local=asked.local) as ptc:
        if asked.continue_run:
            given = [continued(ptc, asked.continue_run, asked.changes, local=asked.local)]
        outlooks = _outlooks(ptc, given)
    for outlook in outlooks:
        if asked.as_json:
            click.echo(json.dumps(asdict(outlook), indent=2 if len(outlooks) == 1 else None))
        else:
            click.echo(_worded(outlook))
    return 0


def _outlooks(ptc: PTC, given: Sequence[Given]) -> list[Outlook]:
    """Look at the server for each plan; without it, the plans are valid all the same."""
    try:
        with reaching(ptc.settings):
            answers = _with_each_other(given, [_answer(ptc, each.plan) for each in given])
            past: list[PTCArtifactResult] | None = _past(ptc)
    except ServerUnavailableError as error:
        away = Answer("unknown", f"not known: {error}")
        answers, past = [away for _ in given], None
    return [
        Outlook(
            each.file,
            each.line,
            each.plan.execution_id,
            cache_key(each.plan),
            fingerprint(each.plan),
            answer,
            _estimate(each.plan, answer, past),
        )
        for each, answer in zip(given, answers, strict=True)
    ]


def _answer(ptc: PTC, plan: PTCExecutionPlan) -> Answer:
    """Look in the order of a submission: a retry's own run, the cache, a run that is under way."""
    key, mark = cache_key(plan), digest(plan)
    names = [] if plan.cache_strategy is CacheStrategy.NEVER else cache_names(plan)
    places = [place for name in names for place in (exec_key(name), meta_key(name))]
    kept = ptc.store.redis.mget(attempt_key(mark, plan.execution_id), claim_key(key, mark), *places)
    own, claimed, *texts = cast("list[bytes | None]", kept)
    if own and (answer := _of_run(ptc, own.decode(), own=True)):
        return answer
    for entry in (CacheEntry.parse(*texts[i : i + 2]) for i in range(0, len(texts), 2)):
        if entry and entry.serves(plan):
            return Answer("cache", f"the cache, with a result that is {span(entry.meta.age_seconds)} old")
    if claimed and names and (answer := _of_run(ptc, claimed.decode(), own=False)):
        return answer
    return Answer("new", "a new run")


def _of_run(ptc: PTC, run_id: str, *, own: bool) -> Answer | None:
    try:
        status = ptc.store.status(run_id)
    except RunNotFoundError:
        return None
    if status.state is not RunState.ENDED:
        where = f"{status.state.value}, iteration {status.iteration} of {status.max_iterations}"
        return Answer("joined", f"run {run_id}, which is under way ({where})", run_id)
    if not own or status.status is None:
        return None
    words = f"run {run_id}, which ended a short while ago under this execution_id ({status.status.value})"
    return Answer("earlier", words, run_id)


def _with_each_other(given: Sequence[Given], answers: Sequence[Answer]) -> list[Answer]:
    """Let plans that equal one before them join its run."""
    first: dict[str, Given] = {}
    found = []
    for each, answer in zip(given, answers, strict=True):
        before = first.get(digest(each.plan))
        if answer.by == "new" and each.plan.cache_strategy is not CacheStrategy.NEVER:
            if before:
                answer = replace(answer, by="joined", words=f"the run of {before.place}")  # noqa: PLW2901 as it turns out
            first.setdefault(digest(each.plan), each)
        found.append(answer)
    return found


def _past(ptc: PTC) -> list[PTCArtifactResult]:
    """Fetch the results of the last runs, as far as they can be read."""
    results = []
    for run in ptc.list_runs(state="ended", limit=RUNS_FOR_PRICES).runs:
        with suppress(RunNotFoundError, UnreadableBlobError):
            results.append(ptc.store.result(run.run_id))
    return [result for result in results if result]


def _estimate(plan: PTCExecutionPlan, answer: Answer, past: Iterable[PTCArtifactResult] | None) -> Estimate:
    """Guess from runs that asked the same provider at a known price; recordings cost nothing and say nothing."""
    if answer.by in {"cache", "earlier"}:
        return Estimate(0.0, 0.0, "nothing")
    if answer.by == "joined":
        return Estimate(0.0, 0.0, "nothing here: the run's first caller pays")
    alike = [result for result in past or () if _tells_price(result, plan.primary_llm.value)]
    bound = "" if plan.max_cost_usd is None else f"; max_cost_usd allows ${plan.max_cost_usd:.4f}"
    if not alike:
        reason = f"no run of late asked {plan.primary_llm.value} at a known price"
        if past is None:
            reason = "no earlier run can be looked at"
        return Estimate(None, plan.max_cost_usd, f"unknown: {reason}{bound}")
    dearest = max(result.total_cost_usd / max(1, result.iterations_used) for result in alike)
    worst = dearest * plan.max_iterations
    typical = min(median(result.total_cost_usd for result in alike), worst)
    if plan.max_cost_usd is not None:
        typical, worst = min(typical, plan.max_cost_usd), min(worst, plan.max_cost_usd)
    basis = f"{len(alike)} late run{'s' if len(alike) > 1 else ''} that asked {plan.primary_llm.value}"
    words = (
        f"typically ${typical:.4f}, perhaps up to ${worst:.4f}: the median of {basis}, and {plan.max_iterations} times their "
        f"dearest iteration{bound}"
    )
    return Estimate(typical, worst, words)


def _tells_price(result: PTCArtifactResult, provider: str) -> bool:
    usages = result.llm_usage
    known = all(usage.cost_usd is not None and not usage.model.startswith("replay/") for usage in usages)
    return bool(usages) and known and usages[0].provider == provider


def _worded(outlook: Outlook) -> str:
    place = outlook.file if outlook.line is None else f"{outlook.file}, line {outlook.line}"
    lines = (
        f"{place}: a valid plan",
        f"  execution_id  {outlook.execution_id}",
        f"  key           {outlook.key}",
        f"  fingerprint   {outlook.fingerprint or 'none'}",
        f"  answered by   {outlook.answer.words}",
        f"  cost          {outlook.estimate.words}",
    )
    return "\n".join(map(one_line, lines))
