"""What must hold after a storm, whatever fell down in it, and the figures that show it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ptc_contracts.bill import Request
from ptc_contracts.keys import (
    ACTIVE_RUNS,
    ALL_RUNS,
    BROKER_PREFIX,
    CACHE_STATS,
    DEAD_RUNS,
    LANE_PREFIX,
    RUN_PREFIX,
    SWEEPS,
    usage_key,
)
from ptc_worker.llm.prices import REPLAY_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from faults.plans import Task
    from redis import Redis

    from ptc_worker.llm.replay.server import Call

STANDING = (ACTIVE_RUNS, ALL_RUNS, CACHE_STATS, DEAD_RUNS, SWEEPS, LANE_PREFIX, BROKER_PREFIX)
"""What begins the names of keys that belong to no run, and so may stay for ever."""

SLACK_SECONDS = 1.0
"""An answer that was written so long before its worker fell may not have been kept yet."""

FALLS = {"worker_killed", "worker_frozen", "worker_terminated"}
"""Faults that may cost a call: a kill, a freeze beyond the lease, the end of a warm shutdown."""

_Turn = tuple[str, int, Request]
"""A plan by its cache key, an iteration, and what it asks for."""

_ANSWERED = {"ok", "truncated"}
"""Outcomes of calls that brought an answer."""

_OURS_ALONE = ("execution_id", "llm_usage")
_HIT_FACTS = ("cached_execution_id", "cached_at", "saved_cost_usd", "saved_tokens", "joined_run")
_SHOWN = 5


@dataclass
class Strike:
    """A fault that came down."""

    kind: str
    target: str
    """Of a worker's process its model; else whatever tells."""
    at: float
    """When, by `time.monotonic()`."""
    until: float | None
    """When its effect was over: the same moment, a thaw, the end of a shutdown."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What Redis holds when all is over."""

    runs: dict[str, dict[str, str]]
    """Every run's record, without what takes room, by run id."""
    calls: dict[str, list[dict[str, Any]]]
    """What each run paid for."""
    active: int
    claims: list[str]
    lasting: list[str]
    """Keys without a TTL that belong to a run."""
    messages: int
    """Messages in the queues."""
    unacked: int
    """Messages that a worker took and never acknowledged: they come back some time, and are ignored then."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that is known of a storm."""

    tasks: Sequence[Task]
    executions: dict[str, int]
    """Each caller's execution id, and the number of its plan."""
    answers: dict[str, list[dict[str, Any]]]
    """What each caller got, more than once if it asked again."""
    strikes: Sequence[Strike]
    mishaps: Sequence[str]
    calls: Sequence[Call]
    kept: Kept
    logs: Sequence[Path]
    seconds: float


def still_moving(client: Redis) -> bool:
    """Tell whether a run goes on, or a message waits."""
    return bool(client.zcard(ACTIVE_RUNS)) or _messages(client) > 0 or any(client.scan_iter("ptc:claim:*"))


def read_kept(client: Redis) -> Kept:
    """Read what is left in Redis."""
    names = list(client.scan_iter("ptc:*", count=1000))
    ids = [n.removeprefix(RUN_PREFIX) for n in names if re.fullmatch(rf"{RUN_PREFIX}[^:]+", n)]
    fields = ("key", "state", "status", "iteration", "submitted_at", "ended_at", "fence", "attempt")
    runs = {}
    for run_id in ids:
        values = client.hmget(RUN_PREFIX + run_id, fields)
        runs[run_id] = {f: str(v) for f, v in zip(fields, values, strict=True) if v is not None}
    return Kept(
        runs=runs,
        calls={run_id: [json.loads(call) for call in client.hvals(usage_key(run_id))] for run_id in ids},
        active=int(client.zcard(ACTIVE_RUNS)),
        claims=[name for name in names if name.startswith("ptc:claim:")],
        lasting=[n for n in names if not n.startswith(STANDING) and client.ttl(n) == -1],
        messages=_messages(client),
        unacked=int(client.hlen(f"{BROKER_PREFIX}unacked")),
    )


def _messages(client: Redis) -> int:
    queues = client.scan_iter(f"{BROKER_PREFIX}*", count=1000, _type="LIST")
    return sum(int(client.llen(name)) for name in queues)


def judge(evidence: Evidence) -> dict[str, Any]:
    """Check every invariant; return the figures, and the names of those that broke."""
    parts = {
        "one_result": _one_result(evidence),
        "no_run_left": _no_run_left(evidence.kept),
        "nothing_stays": _broken_by({"keys_without_ttl": evidence.kept.lasting}),
        "calls": _calls(evidence),
        "usage": _usage(evidence),
        "processes": _broken_by({"mishaps": list(evidence.mishaps)}),
    }
    return {
        "broken": [name for name, part in parts.items() if not part["holds"]],
        "wall_seconds": round(evidence.seconds, 1),
        "warnings": _warnings(evidence.logs),
        **parts,
    }


def _broken_by(lists: dict[str, list[Any]], **figures: object) -> dict[str, Any]:
    """Word one invariant: it holds if all these lists are empty; of each the length and the first few are told."""
    counts = {name: len(found) for name, found in lists.items()}
    shown = {name: found[:_SHOWN] for name, found in lists.items() if found}
    return {"holds": not any(counts.values()), **figures, **counts, **({"shown": shown} if shown else {})}


# ── one result ──


def _one_result(evidence: Evidence) -> dict[str, Any]:
    """Every caller got its run's one result, and every run ended as recorded."""
    seen: dict[str, dict[str, str]] = defaultdict(dict)
    errors, odd, hits, again = [], [], 0, 0
    for execution, answers in evidence.answers.items():
        task = evidence.tasks[evidence.executions[execution]]
        again += len(answers) - 1
        for answer in answers:
            if "error" in answer:
                errors.append(f"{execution}: {answer['error']}")
                continue
            result = answer["result"]
            hits += result["from_cache"]
            seen[result["metadata"]["run_id"]][_common(result)] = execution
            status = "SUCCESS" if result["from_cache"] else result["status"]
            if (status, result["iterations_used"]) != (task.status, len(task.answers)):
                odd.append(f"{execution}: {result['status']}, {result['error_message']}, {_history(result)}")
    return _broken_by(
        {
            "hangs": [execution for execution in evidence.executions if execution not in evidence.answers],
            "errors": errors,
            "differing": [
                f"{run}: {sorted(found.values())}" for run, found in seen.items() if len(found) > 1
            ],
            "ended_otherwise": odd,
            "runs_at_once": list(_runs_at_once(evidence.kept.runs)),
        },
        callers=len(evidence.executions),
        results=len(evidence.answers) - len(errors),
        cache_hits=hits,
        asked_again=again,
        runs=len(seen),
        takeovers=_takeovers(evidence),
    )


def _common(result: dict[str, Any]) -> str:
    """Reduce a result to what all callers of its run must have in common."""
    metadata = {name: fact for name, fact in result["metadata"].items() if name not in _HIT_FACTS}
    status = "SUCCESS" if result["from_cache"] else result["status"]
    rest = {name: value for name, value in result.items() if name not in _OURS_ALONE}
    return json.dumps(rest | {"status": status, "from_cache": False, "metadata": metadata}, sort_keys=True)


def _history(result: dict[str, Any]) -> list[str]:
    return [note["outcome"] for note in result["metadata"].get("history", [])]


def _runs_at_once(runs: dict[str, dict[str, str]]) -> Iterator[str]:
    """Find runs of one plan that overlapped: the second one should have been joined to the first."""
    spans = defaultdict(list)
    for run_id, run in runs.items():
        spans[run["key"]].append((int(run["submitted_at"]), int(run.get("ended_at", 2**62)), run_id))
    for found in spans.values():
        found.sort()
        for (_, ended, first), (begun, _, second) in pairwise(found):
            if begun < ended:
                yield f"{first} and {second}"


def _takeovers(evidence: Evidence) -> int:
    """Count the starts of stages beyond those that an undisturbed run takes."""
    fences = sum(int(run.get("fence", 0)) for run in evidence.kept.runs.values())
    tasks = {task.key: task for task in evidence.tasks}
    needed = sum(2 * len(tasks[run["key"]].answers) for run in evidence.kept.runs.values())
    return fences - needed


# ── nothing is left ──


def _no_run_left(kept: Kept) -> dict[str, Any]:
    unfinished = [f"{run_id}: {run['state']}" for run_id, run in kept.runs.items() if run["state"] != "ended"]
    return _broken_by(
        {"unfinished": unfinished, "claims": kept.claims},
        active=kept.active,
        messages=kept.messages,
        unacked=kept.unacked,
    ) | {"holds": not (unfinished or kept.claims or kept.active or kept.messages)}


# ── what was paid ──


def _calls(evidence: Evidence) -> dict[str, Any]:
    """Every call beyond the needed ones was in flight when its worker fell.

    A call is excused that was open, or whose answer was not kept yet, when its worker was killed, frozen for
    longer than a lease, or ended by a warm shutdown.
    """
    runs = Counter(_turns(evidence))
    tasks = {task.content: task for task in evidence.tasks}
    good = defaultdict(list)
    for call in evidence.calls:
        if call.fault is None:
            good[_asked(tasks[call.turn.plan], call)].append(call)
    bill = _bill(evidence)
    extra = excused = in_flight = 0
    unexcused = []
    for turn, calls in good.items():
        beyond = len(calls) - runs[turn]
        fallen = sum(_fell(call, evidence.strikes, bill[turn]) for call in calls)
        in_flight += fallen
        extra += max(0, beyond)
        excused += max(0, min(beyond, fallen))
        if beyond > fallen:
            unexcused.append(f"{turn}: {_told(calls, evidence.strikes, bill[turn])}")
    return _broken_by(
        {"unexcused": unexcused},
        served=sum(map(len, good.values())),
        needed=sum(runs.values()),
        above_ideal=extra,
        excused=excused,
        in_flight_at_a_fall=in_flight,
        answers_with_faults=sum(call.fault is not None for call in evidence.calls),
    )


def _asked(task: Task, call: Call) -> _Turn:
    """Tell what a request asked for."""
    iteration, number = call.turn.number, call.turn.request
    return task.key, iteration, task.requests[number - 1] if iteration == 1 else Request.DRAFT


def _turns(evidence: Evidence) -> Iterator[_Turn]:
    """List the answers that each run needs; one that waited for nobody's sake counts as far as it came."""
    tasks = {task.key: task for task in evidence.tasks}
    for run in evidence.kept.runs.values():
        for iteration, request in tasks[run["key"]].turns:
            if run["state"] == "ended" or iteration <= int(run["iteration"]):
                yield run["key"], iteration, request


def _bill(evidence: Evidence) -> dict[_Turn, set[str]]:
    """Name the models whose answers are on a run's bill, for each turn."""
    bill: dict[_Turn, set[str]] = defaultdict(set)
    for run_id, calls in evidence.kept.calls.items():
        for call in calls:
            if call["outcome"] in _ANSWERED:
                turn = evidence.kept.runs[run_id]["key"], call["iteration"], Request(call["request"])
                bill[turn].add(call["model"].removeprefix(REPLAY_PREFIX))
    return bill


def _fell(call: Call, strikes: Iterable[Strike], billed: set[str]) -> bool:
    """Tell whether a call's worker fell before the answer was kept."""
    for strike in strikes:
        falls = strike.until if strike.kind == "worker_terminated" else strike.at
        if strike.target != call.model or strike.kind not in FALLS or falls is None:
            continue
        unkept = call.ended is None or _kept_by(call.ended, strikes) >= falls or call.model not in billed
        if unkept and call.started <= falls + SLACK_SECONDS:
            return True
    return False


def _kept_by(written: float, strikes: Iterable[Strike]) -> float:
    """Tell by when an answer can have been kept: not while the server is away."""
    moment = written + SLACK_SECONDS
    for outage in sorted((s for s in strikes if s.kind.startswith("server")), key=lambda strike: strike.at):
        until = math.inf if outage.until is None else outage.until
        if outage.at <= moment <= until + SLACK_SECONDS:
            moment = until + SLACK_SECONDS
    return moment


def _told(calls: Sequence[Call], strikes: Sequence[Strike], billed: set[str]) -> list[str]:
    """Tell the story of a turn that was paid too often, in seconds from its first call."""
    start, models = calls[0].started, {call.model for call in calls}
    lines = [(c.started, f"called by {c.model} until {(c.ended or 0) - start:.2f}") for c in calls]
    lines += [
        (s.at, f"{s.kind} {s.target} until {(s.until or 0) - start:.2f}")
        for s in strikes
        if s.target in models or s.kind.startswith(("server", "connections"))
    ]
    told = [f"{at - start:.2f} {line}" for at, line in sorted(lines) if -30 < at - start < 60]
    return [*told, f"on the bill: {sorted(billed)}"]


def _usage(evidence: Evidence) -> dict[str, Any]:
    """One caller of each run pays, and for calls that were made."""
    payers: dict[str, dict[str, int]] = defaultdict(dict)
    for execution, answers in evidence.answers.items():
        for result in (answer["result"] for answer in answers if "result" in answer):
            if paid := sum(usage["api_calls"] for usage in result["llm_usage"]):
                payers[result["metadata"]["run_id"]][execution] = paid
    served = Counter(call.model for call in evidence.calls)
    billed = Counter(
        call["model"].removeprefix(REPLAY_PREFIX) for calls in evidence.kept.calls.values() for call in calls
    )
    seen = {
        answer["result"]["metadata"]["run_id"]
        for answers in evidence.answers.values()
        for answer in answers
        if "result" in answer
    }
    return _broken_by(
        {
            "paid_by_nobody": [run_id for run_id in seen if not payers[run_id]],
            "paid_twice": [f"{run_id}: {paid}" for run_id, paid in payers.items() if len(paid) > 1],
            "beyond_the_record": [
                f"{run_id}: {paid} of {len(evidence.kept.calls.get(run_id, []))}"
                for run_id, paid in payers.items()
                if sum(paid.values()) > len(evidence.kept.calls.get(run_id, []))
            ],
            "beyond_the_served": [model for model in billed if billed[model] > served[model]],
        },
        paid_by_callers=sum(sum(paid.values()) for paid in payers.values()),
        on_record=sum(billed.values()),
    )


def _warnings(logs: Iterable[Path]) -> dict[str, int]:
    """Count what workers warned of, by the name of the event; Celery's own lines are sentences and left out."""
    lines = (line for log in logs for line in log.read_text(errors="replace").splitlines())
    warnings = (line for line in lines if re.search(r'"level": "(warning|error|critical)"', line))
    return dict(Counter(event[1] for line in warnings if (event := re.search(r'"event": "(\w+)"', line))))
