"""Workers as operators run them: one queue each, killed, misconfigured, many submitters at once."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support import PATIENCE_SECONDS, answer_with

from ptc_contracts import ConfigurationError, RunNotFinishedError, ServerUnavailableError
from ptc_contracts.bill import ModelCall
from ptc_contracts.run import Run, RunState
from ptc_contracts.settings import RedisSettings
from ptc_contracts.stages import Stage
from roma_bridge import PTC

if TYPE_CHECKING:
    from pathlib import Path

    from cluster import Cluster

    from roma_bridge import PlanHandle

_TESTS = "from it import works\n\n\ndef test_it():\n    assert works()"
GREEN = answer_with(it_py="def works():\n    return True", tests__test_it_py=_TESTS)
RED = answer_with(it_py="def works():\n    return False", tests__test_it_py=_TESTS)


def test_two_workers_serve_a_queue_each(empty_cluster: Cluster) -> None:
    """The run goes to and fro between them."""
    for queue in ("generate", "sandbox"):
        empty_cluster.start_worker("-Q", queue)

    result = empty_cluster.run([RED, GREEN])

    logs = [worker.log.read_text() for worker in empty_cluster.workers]
    assert (result.status, result.iterations_used) == ("SUCCESS", 2)
    assert [("ptc.generate[" in log, "ptc.sandbox[" in log) for log in logs] == [(True, False), (False, True)]


def test_a_killed_workers_run_goes_on_elsewhere(empty_cluster: Cluster) -> None:
    """Another worker notices the silence and repeats the stage; the caller sees nothing of it."""
    plan = empty_cluster.record([GREEN])
    empty_cluster.replay.latency = 60.0
    doomed = empty_cluster.start_worker()
    handle = empty_cluster.ptc.submit(plan)
    _wait_for_calls(empty_cluster, 1)
    doomed.kill()
    empty_cluster.replay.latency = 0.0
    empty_cluster.start_worker()

    result = handle.get(timeout=PATIENCE_SECONDS)

    assert (result.status, empty_cluster.calls_for(plan)) == ("SUCCESS", 2)


def test_an_answer_that_was_kept_is_not_paid_again(empty_cluster: Cluster) -> None:
    """A worker died between the answer and its next step; whoever repeats the stage asks no model."""
    plan = empty_cluster.record([])
    handle = empty_cluster.ptc.submit(plan)
    store = empty_cluster.work
    run = store.begin(handle.run_id, Stage.GENERATE, 1)
    assert isinstance(run, Run)
    paid = ModelCall(call_id="paid", iteration=1, provider="claude", model="m", prompt_tokens=7)
    kept = {"text": GREEN, "truncated": False, "provider": "claude", "model": "m"}
    store.keep(run, "generate:1", kept, [paid])
    empty_cluster.start_worker()

    result = handle.get(timeout=PATIENCE_SECONDS)

    assert (result.status, empty_cluster.calls_for(plan)) == ("SUCCESS", 0)
    assert [usage.prompt_tokens for usage in result.llm_usage] == [7]


def test_a_worker_killed_in_the_sandbox_costs_no_further_call(empty_cluster: Cluster) -> None:
    """The draft is in the record; its tests run again elsewhere."""
    slow = answer_with(tests__test_it_py="import time\n\ndef test_it():\n    time.sleep(3)")
    plan = empty_cluster.record([slow])
    doomed = empty_cluster.start_worker()
    handle = empty_cluster.ptc.submit(plan)
    _wait_for_stage(handle, RunState.RUNNING, Stage.SANDBOX)
    doomed.kill()
    empty_cluster.start_worker()

    result = handle.get(timeout=PATIENCE_SECONDS)

    assert (result.status, empty_cluster.calls_for(plan)) == ("SUCCESS", 1)


def _wait_for_calls(cluster: Cluster, number: int) -> None:
    """Return once models were asked so many times."""
    while cluster.replay.stats()["calls"] < number:
        cluster.replay.stopping.wait(0.01)


def _wait_for_stage(handle: PlanHandle, state: RunState, stage: Stage) -> None:
    """Return once a run is there; a run that ended never will be."""
    while (status := handle.status()).state is not state or status.stage is not stage:
        assert status.state is not RunState.ENDED


SUBMITTER = """
import json, sys
from roma_bridge import submit_plan
plan = json.load(sys.stdin)
handles = [submit_plan({**plan, "execution_id": f"{sys.argv[1]}-{n}"}) for n in range(25)]
results = [handle.get(timeout=180) for handle in handles]
print(json.dumps({"runs": sorted({h.run_id for h in handles} - {""}), "statuses": sorted({r.status.value for r in results}),
                  "paid": sum(u.api_calls for r in results for u in r.llm_usage), "ids": len({r.execution_id for r in results})}))
"""


def test_two_processes_that_submit_one_plan_cause_one_run_and_one_call(cluster: Cluster) -> None:
    """Fifty submissions at once: one run, one model call, and sums over all results count it once."""
    plan = cluster.record([GREEN])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SUBMITTER, name],
            env=cluster.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in ("a", "b")
    ]
    outputs = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(plan.model_dump_json().encode())
        process.stdin.close()
    for process in processes:
        assert process.stdout is not None
        outputs.append(json.loads(process.stdout.read()))
        process.stdout.close()
        process.wait()

    assert len({run for output in outputs for run in output["runs"]}) == 1
    assert cluster.calls_for(plan) == 1
    assert sum(output["paid"] for output in outputs) == 1
    assert [output["ids"] for output in outputs] == [25, 25]


def test_a_strangers_celeryconfig_in_the_working_directory_is_not_used(
    empty_cluster: Cluster, tmp_path: Path
) -> None:
    """Ours is loaded from beside the package."""
    (tmp_path / "celeryconfig.py").write_text("raise SystemExit('a stranger was loaded')")
    empty_cluster.start_worker(cwd=tmp_path)

    assert empty_cluster.run([GREEN]).status == "SUCCESS"


def test_a_worker_reads_dotenv_of_its_working_directory(empty_cluster: Cluster, tmp_path: Path) -> None:
    """The process environment wins over it."""
    environment = empty_cluster.environment
    url = environment.pop("ANTHROPIC_BASE_URL")
    (tmp_path / ".env").write_text(f"ANTHROPIC_BASE_URL={url}\nREDIS_URL=redis://nobody.invalid\n")
    empty_cluster.start_worker(cwd=tmp_path, environment=environment)

    assert empty_cluster.run([GREEN], fallback_llm=None).status == "SUCCESS"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("REDIS_URL", "http://localhost", "REDIS_URL must start with one of"),
        ("PTC_SANDBOX_MEMORY_MB", "plenty", "PTC_SANDBOX_MEMORY_MB: Input should be a valid integer"),
        ("PTC_SANDBOX", "jail", "PTC_SANDBOX: Input should be 'local'"),
        ("PTC_SIGNING_KEY", "short", "PTC_SIGNING_KEY must have at least 16 characters"),
        ("PTC_MAX_PAYLOAD_MB", "0", "PTC_MAX_PAYLOAD_MB must be a whole number from 1"),
        ("PTC_SHUTDOWN_GRACE", "inf", "PTC_SHUTDOWN_GRACE: Input should be less than or equal to 86400"),
        ("PTC_RECORD", f"{__file__}/sub", f"PTC_RECORD: {__file__} is not a folder"),
    ],
)
def test_a_setting_that_cannot_be_understood_stops_the_worker_with_its_name(
    empty_cluster: Cluster, name: str, value: str, message: str
) -> None:
    """One line, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "ptc_worker", "worker"],
        env={**empty_cluster.environment, name: value},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )

    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_submitting_without_a_server_says_what_to_do() -> None:
    """The address is named, its password is not."""
    nowhere = PTC(RedisSettings(url="redis://:a-password@127.0.0.1:1/0"))

    with pytest.raises(ServerUnavailableError, match=r"redis://127\.0\.0\.1:1/0 cannot be reached") as caught:
        nowhere.submit({"execution_id": "x", "scaffolding": {"task_description": "x"}})
    assert "a-password" not in str(caught.value)


def test_get_ends_on_its_own_timeout_and_the_run_goes_on(empty_cluster: Cluster) -> None:
    """Nobody works on it yet; the caller is told, and can ask again."""
    handle = empty_cluster.ptc.submit(empty_cluster.record([GREEN]))

    with pytest.raises(RunNotFinishedError, match=handle.run_id):
        handle.get(timeout=0.1)
    assert handle.status().state is RunState.QUEUED


def test_a_default_that_does_not_fit_names_its_variable(
    empty_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the installation's, not the plan's mistake."""
    monkeypatch.setenv("DEFAULT_MAX_ITERATIONS", "99")

    with pytest.raises(ConfigurationError, match="DEFAULT_MAX_ITERATIONS='99'"):
        empty_cluster.ptc.submit({"execution_id": "x", "scaffolding": {"task_description": "x"}})


def test_defaults_fill_what_the_author_left_unset(
    empty_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are part of what is hashed; what the author wrote stays."""
    monkeypatch.setenv("LLM_PROVIDER", "openai")
    monkeypatch.setenv("DEFAULT_TIMEOUT", "77")
    spec = {"task_description": "x"}

    handle = empty_cluster.ptc.submit({"execution_id": "x", "scaffolding": spec, "timeout_seconds": 60})

    assert (handle.plan.primary_llm.value, handle.plan.timeout_seconds) == ("openai", 60)
