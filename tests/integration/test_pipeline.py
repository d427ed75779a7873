"""A plan's life through the real queue, the real SDKs, the real sandbox."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from cluster import FAKE_KEY
from support import PATIENCE_SECONDS, answer_with

from ptc_contracts import ExecutionStatus, PTCArtifactResult
from ptc_contracts.keys import cache_key
from ptc_contracts.stages import FRESH, Lane, Stage
from ptc_worker.llm.replay.faults import Fault

if TYPE_CHECKING:
    from cluster import Cluster

GREEN = answer_with(
    calc_py="def add(a, b):\n    return a + b",
    tests__test_calc_py="from calc import add\n\ndef test_add():\n    assert add(1, 2) == 3",
)
RED = GREEN.replace("a + b", "a - b")
FIXED = answer_with(calc_py="def add(a, b):\n    return a + b")
BROKEN = GREEN.replace("def add(a, b):", "def add(a, b)")


def test_a_green_first_draft_ends_as_success(cluster: Cluster) -> None:
    """One call, one test run, the files and what they cost."""
    result = cluster.run([GREEN])

    assert (result.status, result.iterations_used, result.error_message) == ("SUCCESS", 1, None)
    assert result.test_results.tests_passed == 1
    assert [(a.file_path, a.artifact_type.value) for a in result.artifacts] == [
        ("calc.py", "source_code"),
        ("tests/test_calc.py", "test"),
    ]
    assert [(u.provider, u.api_calls) for u in result.llm_usage] == [("claude", 1)]


def test_a_red_draft_goes_back_with_its_failures(cluster: Cluster) -> None:
    """The second draft gives the changed file alone and inherits the rest."""
    result = cluster.run([RED, FIXED])

    assert (result.status, result.iterations_used, len(result.artifacts)) == ("SUCCESS", 2, 2)
    assert [note["outcome"] for note in result.metadata["history"]] == ["failed", "passed"]
    assert result.llm_usage[0].api_calls == 2


def test_celerys_own_result_is_the_result(cluster: Cluster) -> None:
    """`AsyncResult(run_id).get()` in any process follows the run through both queues to its end."""
    handle = cluster.ptc.submit(cluster.record([RED, FIXED]))
    script = "import sys, json; from ptc_worker import app; print(json.dumps(app.AsyncResult(sys.argv[1]).get(timeout=180)))"

    done = subprocess.run(
        [sys.executable, "-c", script, handle.run_id],
        env=cluster.environment,
        capture_output=True,
        check=True,
    )

    assert PTCArtifactResult.model_validate_json(done.stdout) == handle.get(timeout=10)


def test_spent_iterations_end_as_partial_success_with_the_best_draft(cluster: Cluster) -> None:
    """A later draft that is worse does not replace a better one."""
    half = answer_with(tests__test_more_py="def test_one():\n    pass\n\ndef test_two():\n    assert False")
    worse = answer_with(
        tests__test_more_py="def test_one():\n    assert False\n\ndef test_two():\n    assert False"
    )

    result = cluster.run([half, worse], max_iterations=2)

    assert (result.status, result.iterations_used) == ("PARTIAL_SUCCESS", 2)
    assert (result.test_results.tests_passed, result.test_results.tests_failed) == (1, 1)
    assert "max_iterations=2" in result.error_message


def test_a_draft_that_does_not_compile_costs_no_sandbox(cluster: Cluster) -> None:
    """The gate sends it back; the next draft runs."""
    result = cluster.run([BROKEN, FIXED])

    assert [note["outcome"] for note in result.metadata["history"]] == ["gate", "passed"]
    assert result.status is ExecutionStatus.SUCCESS


def test_an_answer_without_files_is_a_failure(cluster: Cluster) -> None:
    """Nothing is guessed from prose."""
    result = cluster.run(["I would rather talk about it."] * 3)

    assert (result.status, result.artifacts) == ("FAILURE", [])
    assert "no usable code" in result.error_message


def test_testing_switched_off_ends_without_a_sandbox(cluster: Cluster) -> None:
    """The code is taken as it was written."""
    result = cluster.run([RED], enable_testing=False)

    assert (result.status, result.test_results) == ("SUCCESS", None)


def test_a_plan_nobody_recorded_gets_an_error_and_no_code(cluster: Cluster) -> None:
    """The replay server never invents."""
    result = cluster.run([])

    assert result.status is ExecutionStatus.FAILURE
    assert "no recording" in result.error_message


def test_results_made_with_recordings_say_so(cluster: Cluster) -> None:
    """In metadata, in a warning, in the model's name, and in a cost of nothing."""
    result = cluster.run([GREEN])

    assert result.metadata["provider_mode"] == "replay"
    assert any("replay" in warning for warning in result.warnings)
    assert (result.llm_usage[0].model.startswith("replay/"), result.llm_usage[0].cost_usd) == (True, 0.0)


def test_the_fallback_answers_when_the_primary_cannot(cluster: Cluster) -> None:
    """A refused key is no reason to wait."""
    plan = cluster.record([GREEN])
    cluster.replay.faults.script([Fault.AUTH])

    result: Any = cluster.ptc.submit(plan).get(timeout=PATIENCE_SECONDS)

    assert (result.status, [u.provider for u in result.llm_usage]) == ("SUCCESS", ["kimi"])


def test_a_provider_that_is_not_configured_is_skipped_with_a_warning(cluster: Cluster) -> None:
    """The other one answers; the warning names the variables."""
    result = cluster.run([GREEN], primary_llm="openrouter", fallback_llm="openai")

    assert result.status is ExecutionStatus.SUCCESS
    assert any("OPENROUTER_API_KEY or OPENROUTER_BASE_URL" in warning for warning in result.warnings)


def test_a_plan_without_any_configured_provider_fails_at_once(cluster: Cluster) -> None:
    """The message names what to set; no model was asked."""
    plan = cluster.record([GREEN], primary_llm="openrouter", fallback_llm=None)

    result: Any = cluster.ptc.submit(plan).get(timeout=PATIENCE_SECONDS)

    assert (result.status, cluster.calls_for(plan)) == ("FAILURE", 0)
    assert "set OPENROUTER_API_KEY or OPENROUTER_BASE_URL for openrouter" in result.error_message


def test_the_deadline_ends_a_run_with_its_best_files(cluster: Cluster) -> None:
    """The model stalls in the second iteration; the first one's files and tests are in the result."""
    plan = cluster.record([RED, FIXED])
    cluster.replay.faults.script([None, Fault.STALL])

    result: Any = cluster.submit_with_timeout(plan, 4).get(timeout=PATIENCE_SECONDS)

    assert (result.status, result.iterations_used, len(result.artifacts)) == ("TIMEOUT", 1, 2)
    assert (result.test_results.tests_failed, result.llm_usage[0].api_calls) == (1, 2)
    assert "ran out in generate (model calls that failed: 1 x claude" in result.error_message


def test_a_test_that_hangs_is_cut_at_the_deadline(cluster: Cluster) -> None:
    """The run is a TIMEOUT with its files, not a red draft to be mended."""
    hang = answer_with(tests__test_hang_py="import time\n\ndef test_it():\n    time.sleep(1000)")

    result: Any = cluster.submit_with_timeout(cluster.record([hang]), 3).get(timeout=PATIENCE_SECONDS)

    assert (result.status, len(result.artifacts), result.test_results.tests_failed) == ("TIMEOUT", 1, 1)


def test_an_equal_plan_that_runs_is_joined(cluster: Cluster) -> None:
    """Each caller gets the result under its own execution id; who joined pays nothing."""
    plan = cluster.record([GREEN])
    other = plan.model_copy(update={"execution_id": "other"})
    cluster.replay.latency = 0.5
    try:
        first, second = cluster.ptc.submit(plan), cluster.ptc.submit(other)
        results = [handle.get(timeout=PATIENCE_SECONDS) for handle in (first, second)]
    finally:
        cluster.replay.latency = 0.0

    assert (second.joined, second.run_id, cluster.calls_for(plan)) == (True, first.run_id, 1)
    assert [r.execution_id for r in results] == [plan.execution_id, "other"]
    assert (results[1].llm_usage, results[1].metadata["joined_run"]) == ([], first.run_id)
    assert results[0].llm_usage != []


def test_a_second_submission_is_answered_from_the_cache(cluster: Cluster) -> None:
    """No run, no message, no call."""
    plan = cluster.record([GREEN])
    first = cluster.ptc.submit(plan).get(timeout=PATIENCE_SECONDS)

    handle = cluster.ptc.submit(plan.model_copy(update={"execution_id": "second"}))

    assert (handle.from_cache, handle.run_id, handle.ready()) == (True, "", True)
    hit = handle.get(timeout=0)
    assert (hit.status, hit.execution_id) == ("CACHE_HIT", "second")
    assert (hit.artifacts, cluster.calls_for(plan)) == (first.artifacts, 1)


def test_the_cache_holds_what_other_installations_read(cluster: Cluster) -> None:
    """`ptc:exec` has the result's JSON and `ptc:meta` its circumstances."""
    plan = cluster.record([GREEN])
    result: Any = cluster.ptc.submit(plan).get(timeout=PATIENCE_SECONDS)
    key = cache_key(plan)

    entry: Any = cluster.ptc.store.redis.mget(f"ptc:exec:{key}", f"ptc:meta:{key}")
    stored, meta = entry

    assert PTCArtifactResult.model_validate_json(stored) == result
    assert json.loads(meta)["execution_id"] == plan.execution_id


def test_a_red_result_is_not_cached(cluster: Cluster) -> None:
    """The next submission tries again."""
    plan = cluster.record([RED, RED], max_iterations=1)
    cluster.ptc.submit(plan).get(timeout=PATIENCE_SECONDS)

    assert not cluster.ptc.submit(plan.model_copy(update={"execution_id": "again"})).from_cache


def test_never_plans_run_apart_and_a_retry_finds_its_run(cluster: Cluster) -> None:
    """Another execution id is another run; the same one is the same run, ended or not."""
    plan = cluster.record([GREEN], cache_strategy="never")
    first = cluster.ptc.submit(plan)
    other = cluster.ptc.submit(plan.model_copy(update={"execution_id": "other"}))
    result = first.get(timeout=PATIENCE_SECONDS)

    retried = cluster.ptc.submit(plan)

    assert other.run_id != first.run_id == retried.run_id
    assert (retried.get(timeout=1), retried.joined) == (result, False)


def test_a_dependency_of_the_plan_is_installed(cluster: Cluster) -> None:
    """The tests import it; it is in no package of the worker's own."""
    uses = answer_with(
        tests__test_six_py="import tabulate\n\ndef test_it():\n    assert tabulate.tabulate([[1]])"
    )

    result = cluster.run([uses], dependencies=["tabulate"])

    assert result.status is ExecutionStatus.SUCCESS


def test_an_unknown_import_is_told_to_the_model_and_never_installed(cluster: Cluster) -> None:
    """The next draft does without."""
    uses = GREEN.replace("def add", "import no_such_module_at_all\n\ndef add")

    result = cluster.run([uses, FIXED])

    assert [note["outcome"] for note in result.metadata["history"]] == ["gate", "passed"]


def test_a_draft_that_is_sure_to_fail_spends_no_sandbox(cluster: Cluster) -> None:
    """What gate and linter see is told to the model at once."""
    undefined = GREEN.replace("return", "return nonesuch +")
    unresolved = GREEN.replace("import add", "import add, sub")

    result = cluster.run([undefined, unresolved, GREEN])

    assert [note["outcome"] for note in result.metadata["history"]] == ["gate", "gate", "passed"]


def test_a_dependency_that_cannot_be_had_ends_as_partial_success(cluster: Cluster) -> None:
    """No model can mend the plan's own list; the installer's words are in the message."""
    result = cluster.run([GREEN], dependencies=["ptc-no-such-package-anywhere"])

    assert result.status is ExecutionStatus.PARTIAL_SUCCESS
    assert "ptc-no-such-package-anywhere" in result.error_message


def test_generated_code_sees_no_secret_no_network_and_no_file_of_the_worker(cluster: Cluster) -> None:
    """The environment is empty, the outside unreachable, the worker's folder not there."""
    spy = f"""
import os, pathlib, socket, pytest

def test_environment():
    assert {FAKE_KEY[::-1]!r}[::-1] not in str(dict(os.environ))

def test_network():
    with pytest.raises(OSError):
        socket.create_connection(("192.0.2.1", 80), timeout=2)

def test_files():
    assert not pathlib.Path({str(cluster.folder)!r}, "server").exists()
"""
    result = cluster.run([answer_with(tests__test_spy_py=spy)], max_iterations=1)

    assert result.metadata["isolation"] in {"bubblewrap", "landlock"}
    assert result.status is ExecutionStatus.SUCCESS


def test_messages_hold_the_run_id_and_their_number_and_nothing_else(empty_cluster: Cluster) -> None:
    """Files and plans travel through the record."""
    handle = empty_cluster.ptc.submit(empty_cluster.record([GREEN], context="a secret plan"))
    import base64

    (message,) = empty_cluster.ptc.store.redis.lrange(Lane(Stage.GENERATE, FRESH).list_key, 0, -1)
    body = json.loads(base64.b64decode(json.loads(message)["body"]))

    assert body[:2] == [[handle.run_id, 1], {}]
    assert b"a secret plan" not in message


def test_keys_never_reach_logs_or_redis(cluster: Cluster) -> None:
    """Even where the provider refuses the key, at the most talkative log level."""
    cluster.replay.faults.script([Fault.AUTH, Fault.AUTH])
    cluster.run([GREEN])
    redis = cluster.ptc.store.redis
    dump = b"".join(redis.dump(key) or b"" for key in redis.scan_iter("*"))

    assert FAKE_KEY.encode() not in dump
    assert all(FAKE_KEY not in worker.log.read_text() for worker in cluster.workers)
