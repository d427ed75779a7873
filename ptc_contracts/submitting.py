"""How plans become runs: answered from the cache, joined to a run that is under way, or put into a queue."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError, RedisError

from ptc_contracts import scripts
from ptc_contracts.cache import CacheEntry
from ptc_contracts.keys import (
    ACTIVE_RUNS,
    ALL_RUNS,
    CACHE_STATS,
    attempt_key,
    cache_key,
    cache_names,
    callers_key,
    checkpoints_key,
    claim_key,
    digest,
    exec_key,
    meta_key,
    new_run_id,
    run_key,
)
from ptc_contracts.plan import CacheStrategy, PTCExecutionPlan
from ptc_contracts.progress import Progress
from ptc_contracts.record import RecordForm, Resumption
from ptc_contracts.run import Submission
from ptc_contracts.stages import Priority, Stage, Unsent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis
    from redis.commands.core import Script

GRACE_MS = 2_000
"""How long the process that owes a run its message may take to send it."""

MOST_LISTED = 100_000
"""Runs, the newest ones, that lists of runs know."""


@dataclass(frozen=True)
class Offer:
    """A plan on its way to a run, and how that run would begin."""

    plan: PTCExecutionPlan
    expires: float | None = None
    """Seconds that a new run may wait for its first start; for ever unless given."""
    priority: Priority = Priority.NORMAL
    start: Resumption = field(default_factory=lambda: Resumption(Stage.GENERATE, Progress(), {}))


@dataclass
class _Pending:
    """An offer that has no answer yet, sealed as the record of a new run."""

    offer: Offer
    run_id: str
    key: str
    claim: str
    attempt: str
    names: list[str]
    """Its cache entries."""
    record: dict[str, Any]
    checkpoints: dict[str, bytes]
    seen: list[bytes] = field(default_factory=list)
    """The metas of the cache entries that were judged."""
    became: Submission | None = None

    @classmethod
    def sealed(cls, offer: Offer, form: RecordForm) -> _Pending:
        plan, start = offer.plan, offer.start
        key, mark = cache_key(plan), digest(plan)
        run_id = new_run_id(key)
        return cls(
            offer=offer,
            run_id=run_id,
            key=key,
            claim=claim_key(key, mark),
            attempt=attempt_key(mark, plan.execution_id),
            names=[] if plan.cache_strategy is CacheStrategy.NEVER else cache_names(plan),
            record=form.new(run_id, plan, start),
            checkpoints={
                name: form.checkpoint(run_id, name, kept) for name, kept in start.checkpoints.items()
            },
        )

    def keys(self) -> list[str]:
        """Give the keys of the script."""
        return [
            *(run_key(self.run_id), callers_key(self.run_id), self.claim, self.attempt),
            *(ACTIVE_RUNS, CACHE_STATS, checkpoints_key(self.run_id), ALL_RUNS),
            *(meta_key(name) for name in self.names),
        ]

    def args(self) -> list[Any]:
        """Give its arguments."""
        expires, exclusive = self.offer.expires, self.offer.plan.cache_strategy is CacheStrategy.NEVER
        return [
            *(self.run_id, int(exclusive), GRACE_MS, "" if expires is None else round(expires * 1000)),
            *(self.offer.priority.step, MOST_LISTED),
            *(len(self.record), *flat(self.record), len(self.checkpoints), *flat(self.checkpoints)),
            *self.seen,
        ]

    def judge(self, retried: bytes | None, entries: list[bytes | None]) -> None:
        """Let the cache answer, unless this submission was made before."""
        self.seen = [meta or b"" for meta in entries[1::2]]
        if retried is not None:
            return
        parsed = (CacheEntry.parse(*entries[i : i + 2]) for i in range(0, len(entries), 2))
        plan = self.offer.plan
        hit = next((entry.hit_for(plan) for entry in parsed if entry and entry.serves(plan)), None)
        if hit:
            self.became = Submission(hit=hit)

    def read(self, answer: list[Any]) -> None:
        """Read what the script made of it; nothing yet, if the cache has changed since it was looked at."""
        how, run_id, joined, *owed = answer
        if how == b"look":
            return
        unsent = Unsent.read(owed[0]) if owed else None
        if how == b"new":
            start, step = self.offer.start, self.offer.priority.step
            unsent = Unsent(self.run_id, start.stage, self.key, start.progress.iteration, 1, step)
        self.became = Submission(run_id=run_id.decode(), joined=joined == b"1", unsent=unsent)


@dataclass
class Submitting:
    """Submits plans to one Redis database."""

    redis: Redis = field(repr=False)
    form: RecordForm = field(default_factory=RecordForm)

    def __post_init__(self) -> None:
        self._submit = self.redis.register_script(scripts.SUBMIT)
        self._published = self.redis.register_script(scripts.PUBLISHED)

    def submit(
        self,
        plan: PTCExecutionPlan,
        *,
        expires: float | None = None,
        priority: Priority = Priority.NORMAL,
        resume: Resumption | None = None,
    ) -> Submission:
        """Answer the plan from the cache, join the run that works on it, or make a new one, atomically.

        The cache is looked at first, and judged here; the script then refuses unless what was judged is
        still what the cache holds, so that a run which ended in between is not started again. A retry finds
        its own run first: whoever missed an answer gets that one, with what it cost.

        Args:
            plan: What to build.
            expires: Seconds that a new run may wait for its first start; for ever unless given.
            priority: Which place a new run takes in its queue; one that waits further back moves up to it.
            resume: Where a new run starts; at its beginning unless given.

        Raises:
            PayloadTooLargeError: the plan is larger than PTC_MAX_PAYLOAD_MB.
        """
        offer = Offer(plan, expires, priority, *([resume] if resume else []))
        ((_, submission),) = self.submit_all([offer])
        return submission

    def submit_all(self, offers: Sequence[Offer]) -> Iterator[tuple[Offer, Submission]]:
        """Submit many plans in a few round trips; what was submitted is given before an error is raised.

        Raises:
            PayloadTooLargeError: a plan is larger than PTC_MAX_PAYLOAD_MB; none was submitted.
        """
        pending = [_Pending.sealed(offer, self.form) for offer in offers]
        while pending:
            self._look(pending)
            error = self._put([each for each in pending if not each.became])
            yield from ((each.offer, each.became) for each in pending if each.became)
            if error:
                raise error
            pending = [each for each in pending if not each.became]

    def _look(self, pending: list[_Pending]) -> None:
        """Let the cache answer what it can."""
        looked = [each for each in pending if each.names]
        pipe = self.redis.pipeline(transaction=False)
        for each in looked:
            pipe.mget(each.attempt, *(key for name in each.names for key in (exec_key(name), meta_key(name))))
        for each, (retried, *entries) in zip(looked, pipe.execute() if looked else [], strict=True):
            each.judge(retried, entries)
        if hits := sum(each.became is not None for each in pending):
            with suppress(RedisError):  # a server that is full refuses to count and still answers
                self.redis.hincrby(CACHE_STATS, "hits", hits)

    def _put(self, pending: list[_Pending]) -> Exception | None:
        """Ask for runs; return the first error, if there was one."""
        answers = self._each(self._submit, [(each.keys(), each.args()) for each in pending])
        for each, answer in zip(pending, answers, strict=True):
            if not isinstance(answer, Exception):
                each.read(answer)
        return next((answer for answer in answers if isinstance(answer, Exception)), None)

    def mark_published(self, *sent: Unsent) -> None:
        """Note that these messages were sent."""
        self._each(
            self._published,
            [([run_key(unsent.run_id), ACTIVE_RUNS], [unsent.run_id, unsent.sending]) for unsent in sent],
        )

    def _each(self, script: Script, calls: list[tuple[list[str], list[Any]]]) -> list[Any]:
        """Call a script many times in one round trip; an answer may be an error."""
        pipe = self.redis.pipeline(transaction=False)
        for keys, args in calls:
            pipe.evalsha(script.sha, len(keys), *keys, *args)
        answers = pipe.execute(raise_on_error=False)
        if any(isinstance(answer, NoScriptError) for answer in answers):  # it is not loaded, so none was run
            self.redis.script_load(script.script)
            return self._each(script, calls)
        return answers


def flat(pairs: dict[str, Any]) -> list[Any]:
    """Lay names and values out as a script takes them."""
    return [item for pair in pairs.items() for item in pair]
