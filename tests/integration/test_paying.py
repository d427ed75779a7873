"""What runs pay for, and what they wait for: budgets, limits and the response cache, with real workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from support import PATIENCE_SECONDS, answer_with, until

from ptc_contracts.keys import EXEC_PREFIX, META_PREFIX, limit_key, run_key
from ptc_contracts.progress import StopReason

if TYPE_CHECKING:
    from cluster import Cluster
    from redis import Redis

GREEN = answer_with(
    src__add_py="def add(a, b):\n    return a + b\n",
    tests__test_add_py="from src.add import add\n\n\ndef test_adds():\n    assert add(1, 2) == 3\n",
)


def test_a_plan_that_may_cost_nothing_asks_nobody(cluster: Cluster) -> None:
    """Neither the primary nor the fallback; the message has the figures."""
    plan = cluster.record([GREEN], max_cost_usd=0)

    result: Any = cluster.ptc.submit(plan).get(timeout=PATIENCE_SECONDS)

    assert (result.status, cluster.calls_for(plan)) == ("FAILURE", 0)
    assert result.metadata["stop_reason"] == StopReason.BUDGET.value
    assert (
        "claude (budget: the plan has spent $0.0000 of $0, and the next call may cost $"
        in result.error_message
    )
    assert "(max_cost_usd)" in result.error_message


def test_a_run_that_has_to_wait_for_a_limit_gives_its_slot_to_another(empty_cluster: Cluster) -> None:
    """The worker has one slot: the second plan ends while the first one waits, and then that one goes on.

    It waited, and did not fail: nothing of that is counted against it.
    """
    environment = empty_cluster.environment | {"ANTHROPIC_RPM": "1", "MAX_CONCURRENT_EXECUTIONS": "1"}
    worker = empty_cluster.start_worker(environment=environment)
    asked_a_while_ago(empty_cluster.ptc.store.redis, 50)
    plan = empty_cluster.record([GREEN], fallback_llm=None)
    waiting = empty_cluster.ptc.submit(plan)
    until(lambda: "run_deferred" in worker.log.read_text())

    other = empty_cluster.run([GREEN], primary_llm="kimi", fallback_llm=None)

    assert (other.status, empty_cluster.calls_for(plan)) == ("SUCCESS", 0)
    assert empty_cluster.ptc.store.redis.hget(run_key(waiting.run_id), "starts") == b"0"
    assert waiting.get(timeout=PATIENCE_SECONDS).status == "SUCCESS"


def asked_a_while_ago(redis: Redis, seconds: int) -> None:
    """Let one request to Claude lie so far back."""
    now, _ = redis.time()
    redis.hset(limit_key("claude"), f"{now - seconds}:r", 1)


def test_a_prompt_that_was_answered_before_costs_nothing(cluster: Cluster) -> None:
    """The plan's own result is gone, and what the model said is not."""
    plan = cluster.record([GREEN])
    first: Any = cluster.ptc.submit(plan).get(timeout=PATIENCE_SECONDS)
    forget_results(cluster.ptc.store.redis)

    second: Any = cluster.ptc.submit(plan.model_copy(update={"execution_id": "another"})).get(
        timeout=PATIENCE_SECONDS
    )

    assert (first.status, second.status, cluster.calls_for(plan)) == ("SUCCESS", "SUCCESS", 1)
    assert second.llm_usage == []
    assert second.metadata["response_cache_hits"] == 1
    assert second.metadata["saved_tokens"] == first.llm_usage[0].total_tokens


def test_a_plan_that_wants_no_cache_is_answered_anew(cluster: Cluster) -> None:
    """Each time."""
    plan = cluster.record([GREEN], cache_strategy="never")
    for name in ("one", "another"):
        cluster.ptc.submit(plan.model_copy(update={"execution_id": name})).get(timeout=PATIENCE_SECONDS)

    assert cluster.calls_for(plan) == 2


def forget_results(redis: Redis) -> None:
    """Let the results of all plans have passed."""
    for prefix in (EXEC_PREFIX, META_PREFIX):
        for key in redis.scan_iter(f"{prefix}*"):
            redis.delete(key)


def test_a_plan_that_stayed_red_is_answered_anew(cluster: Cluster) -> None:
    """Whoever submits it once more hopes for a better answer than the one it had."""
    plan = cluster.record([GREEN.replace("a + b", "a - b")], max_iterations=1)
    for name in ("one", "another"):
        result: Any = cluster.ptc.submit(plan.model_copy(update={"execution_id": name})).get(
            timeout=PATIENCE_SECONDS
        )

    assert (result.status, cluster.calls_for(plan)) == ("PARTIAL_SUCCESS", 2)
