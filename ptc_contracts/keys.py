"""What identifies a plan, and the name of every key that PTC keeps in Redis."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from ptc_contracts.plan import PTCExecutionPlan

_IDENTITY_CHARS = 16

_SCAFFOLDING_FINGERPRINT = ("context", "file_structure")
_PLAN_FINGERPRINT = ("test_files", "initial_files")
"""Fields of the scaffolding, and of the plan, that change the code and are not in the key. Every later field belongs
here."""

_OUTCOME_NEUTRAL_FIELDS = frozenset(
    {
        "execution_id",
        "created_at",
        "project_name",
        "roma_task_id",
        "metadata",
        "cache_strategy",
        "cache_ttl",
    }
)
"""Fields of the plan that cannot change its outcome, and so are not in the digest."""


def cache_key(plan: PTCExecutionPlan) -> str:
    """Compute the plan's cache key: 16 hex digits, the same in every installation.

    The recipe is the contract's, down to the separators: changing anything here loses every stored entry.
    """
    spec = plan.scaffolding
    return _sha256(
        json.dumps(
            {
                "task_description": spec.task_description.strip().lower(),
                "requirements": sorted(text.strip().lower() for text in spec.requirements),
                "dependencies": sorted(text.strip().lower() for text in spec.dependencies),
                "architecture": spec.architecture,
                "primary_llm": plan.primary_llm.value,
                "fallback_llm": plan.fallback_llm.value if plan.fallback_llm else None,
                "enable_testing": plan.enable_testing,
            },
            sort_keys=True,
        )
    )[:_IDENTITY_CHARS]


def fingerprint(plan: PTCExecutionPlan) -> str:
    """Hash the fields that change the code but are not in the key: 16 hex digits, empty if none is set."""
    told = {name: getattr(plan.scaffolding, name) for name in _SCAFFOLDING_FINGERPRINT}
    told |= {name: getattr(plan, name) for name in _PLAN_FINGERPRINT}
    fields = {name: value for name, value in told.items() if value}
    return _canonical_sha256(fields)[:_IDENTITY_CHARS] if fields else ""


def digest(plan: PTCExecutionPlan) -> str:
    """Hash everything that can change the outcome: 32 hex digits. Only plans with equal digests share a run.

    Fields at their default are left out, so that a peer that knows one more optional field agrees with ours.
    """
    fields = plan.model_dump(mode="json", exclude=set(_OUTCOME_NEUTRAL_FIELDS), exclude_defaults=True)
    return _canonical_sha256(fields)[: 2 * _IDENTITY_CHARS]


def content_id(plan: PTCExecutionPlan) -> str:
    """Hash what a model is told of a plan: 16 hex digits. Plans with equal prompts have equal ids."""
    return _sha256(f"{cache_key(plan)}:{fingerprint(plan)}")[:_IDENTITY_CHARS]


def new_run_id(key: str) -> str:
    """Make the id of a new run: the plan's key, so that people find it, and a random part, never reused."""
    return f"{key}-{uuid4().hex[:12]}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical_sha256(value: Any) -> str:  # noqa: ANN401 any JSON value
    return _sha256(json.dumps(value, sort_keys=True))


# ── Redis ──────────────────────────────────────────────────────────────────────────────────────────────────

EXEC_PREFIX = "ptc:exec:"
META_PREFIX = "ptc:meta:"
RUN_PREFIX = "ptc:run:"
BROKER_PREFIX = "ptc:broker:"
"""Before every key of Celery's queues."""
RESULTS_PREFIX = "ptc:results:"
"""Before every key of Celery's result backend."""
CALLERS_SUFFIX = ":callers"
EVENTS_SUFFIX = ":events"

CACHE_STATS = "ptc:stats:cache"
"""Hash of the counters `hits` and `misses`."""

ACTIVE_RUNS = "ptc:active"
"""Sorted set of the runs that have not ended; scored by the server time (ms) at which a sweep must look at one:
the end of its lease, of the time its message may take, of its time in the queue; never for one that waits."""

ALL_RUNS = "ptc:runs"
"""Sorted set of the latest runs, ended or not; scored by the server time (ms, to the microsecond) of their submission."""

SWEEPS = "ptc:sweeps"
"""Hash of `last` and `since` (server time, ms): recovery's last sweep, and since when sweeps have not paused."""

WAITING_PREFIX = "ptc:waiting:"
"""Before the name of a lane: sorted set of the runs whose message was sent there and that nobody has begun;
scored by the server time (ms) by which it had been sent."""

LANE_PREFIX = "ptc:lane:"
"""Before the name of a lane: hash of `reached` (all that was sent before this server time has left the queue),
its two earlier values `newer` and `older`, and `turned`, when they last moved on."""

LLM_PREFIX = "ptc:llm:"
"""Before the hash of provider, model and messages: a model's answer, for whoever asks the same."""

INSTALLATION = "ptc:installation"
"""A name for all that share this server: what they leave elsewhere carries it."""

DEAD_RUNS = "ptc:dead"
"""Sorted set of the runs that were given up; scored by the server time (ms) of their end."""


def cache_names(plan: PTCExecutionPlan) -> list[str]:
    """Name the plan's cache entries, best first: `{key}:{fingerprint}` if it has one, then `{key}`."""
    key, mark = cache_key(plan), fingerprint(plan)
    return [f"{key}:{mark}", key] if mark else [key]


def exec_key(name: str) -> str:
    """Where a cached result lies: its JSON."""
    return EXEC_PREFIX + name


def meta_key(name: str) -> str:
    """Where a cached result's circumstances lie: JSON with `cached_at`, `execution_id`, `cache_key`, `ttl`."""
    return META_PREFIX + name


def run_key(run_id: str) -> str:
    """Where a run's record lies: a hash."""
    return RUN_PREFIX + run_id


def checkpoints_key(run_id: str) -> str:
    """Where what a run's stages produced lies: a hash from `<stage>:<iteration>` to JSON."""
    return f"{RUN_PREFIX}{run_id}:checkpoints"


def usage_key(run_id: str) -> str:
    """Where what a run paid for lies: a hash from call id to JSON."""
    return f"{RUN_PREFIX}{run_id}:usage"


def callers_key(run_id: str) -> str:
    """Where the names of the retry markers of a run's callers lie: a set."""
    return RUN_PREFIX + run_id + CALLERS_SUFFIX


def events_key(run_id: str) -> str:
    """Where what a run tells lies: a stream whose entries have one field, `m`, a StreamMessage as JSON."""
    return RUN_PREFIX + run_id + EVENTS_SUFFIX


def ended_channel(run_id: str) -> str:
    """Where a run's end is announced: a pub/sub channel."""
    return f"{RUN_PREFIX}{run_id}:ended"


def claim_key(key: str, plan_digest: str) -> str:
    """Where the id of the run that is working on a plan lies: a string, present while that run goes on."""
    return f"ptc:claim:{key}:{plan_digest}"


def attempt_key(plan_digest: str, execution_id: str) -> str:
    """Where the run that answered one caller's submission lies, so that a retry finds it: a string."""
    return f"ptc:attempt:{plan_digest}:{_sha256(execution_id)[: 2 * _IDENTITY_CHARS]}"


def response_key(asked: str) -> str:
    """Where the answer to a prompt lies, by the hash of provider, model and messages: a blob with a time to live."""
    return LLM_PREFIX + asked


def worker_key(worker: str) -> str:
    """Where a worker process says that it lives: a string with a time to live."""
    return f"ptc:worker:{worker}"


def limit_key(provider: str) -> str:
    """Where the requests and tokens that a provider still takes this minute are counted: a hash."""
    return f"ptc:limit:{provider}"


def breaker_key(name: str) -> str:
    """Where the latest failures of one provider's model are counted: a hash with a time to live."""
    return f"ptc:breaker:{name}"


def spent_key(day: str) -> str:
    """Where what all runs of a day (UTC, `YYYY-MM-DD`) have spent or reserved is summed: US dollars."""
    return f"ptc:spent:{day}"
