"""`ptc-enqueue` on runs that somebody submitted before: listed, watched, shown, cancelled, gone on from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support import PATIENCE_SECONDS, answer_with
from terminal import CTRL_C, run, terminal

from ptc_contracts import PTCArtifactResult
from ptc_contracts.keys import cache_key
from roma_bridge import PlanHandle

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from cluster import Cluster

GREEN = answer_with(tests__test_it_py="def test_it():\n    pass")
RED = answer_with(tests__test_it_py="def test_it():\n    assert 1 == 2, 'one is not two'", it_py="x = 1")


def enqueue(
    cluster: Cluster, folder: Path, *arguments: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the program as a user of the cluster."""
    return run(folder, {**cluster.environment, "PTC_EXPIRES": ""}, *arguments, **options)


def test_runs_are_listed_and_narrowed(cluster: Cluster, tmp_path: Path) -> None:
    """The newest first; by key, status, state and project."""
    plan = cluster.record([RED], max_iterations=1, project_name="ledger")
    other = cluster.record([GREEN])
    handles = [cluster.ptc.submit(each) for each in (plan, other)]
    for handle in handles:
        handle.get(timeout=PATIENCE_SECONDS)
    key = cache_key(plan)
    listed = enqueue(cluster, tmp_path, "--runs")
    chosen = enqueue(cluster, tmp_path, "--runs", "--key", key, "--status", "partial_success", "--json")
    none = enqueue(cluster, tmp_path, "--runs", "--key", key, "--state", "queued")
    few = enqueue(cluster, tmp_path, "--runs", "--limit", "1")
    ledger = enqueue(cluster, tmp_path, "--runs", "--project", "ledger")

    ids = [line.split()[0] for line in listed.stdout.splitlines()[1:]]
    assert ids[:2] == [handles[1].run_id, handles[0].run_id]
    assert [each["execution_id"] for each in json.loads(chosen.stdout)] == [plan.execution_id]
    assert (none.returncode, none.stdout, "there is no such run" in none.stderr) == (0, "", True)
    assert [line.split()[0] for line in few.stdout.splitlines()[1:]] == [handles[1].run_id]
    assert [line.split()[0] for line in ledger.stdout.splitlines()[1:]] == [handles[0].run_id]


def test_a_result_is_shown_and_written_again(cluster: Cluster, tmp_path: Path) -> None:
    """From another process, with the exit code of its status; files on request."""
    handle = cluster.ptc.submit(cluster.record([RED], max_iterations=1))
    handle.get(timeout=PATIENCE_SECONDS)
    shown = enqueue(cluster, tmp_path, "--result", handle.run_id)
    before = list(tmp_path.iterdir())
    written = enqueue(cluster, tmp_path, "--result", handle.run_id, "--output", "out", "--json")

    assert (shown.returncode, "PARTIAL_SUCCESS in" in shown.stdout, before) == (1, True, [])
    assert PTCArtifactResult.model_validate_json(written.stdout).llm_usage != []
    assert (tmp_path / "out" / "it.py").exists()


def test_a_run_is_watched_from_elsewhere_to_its_end(cluster: Cluster, tmp_path: Path) -> None:
    """Who watches is no caller: Ctrl-C leaves the run alone unless it is told otherwise."""
    plan = cluster.record([GREEN])
    handle = cluster.written(plan)
    early = enqueue(cluster, tmp_path, "--result", handle.run_id)
    with terminal(tmp_path, cluster.environment, "--watch", handle.run_id) as screen:
        screen.until("watched; nothing of it changes by that")
        screen.type(CTRL_C)
        screen.until("let it go on")
        screen.type("\r")
        code = screen.end()
    going = handle.status().state
    handle.cancel()
    cluster.replay.chunk_seconds = 0.0
    watched = enqueue(cluster, tmp_path, "--watch", handle.run_id, "--json")

    result = PTCArtifactResult.model_validate_json(watched.stdout)
    assert (early.returncode, f"--watch {handle.run_id}" in early.stderr) == (6, True)
    assert (code, going) == (130, "running")
    assert (watched.returncode, result.status) == (3, "FAILURE")


@pytest.mark.parametrize("task", ["--watch", "--result", "--cancel", "--continue"])
def test_a_run_that_nobody_knows_is_said_to_be_unknown(cluster: Cluster, tmp_path: Path, task: str) -> None:
    """Whatever is to be done with it."""
    done = enqueue(cluster, tmp_path, task, "no-such-run")

    assert done.returncode == 2
    assert "run 'no-such-run' is not known: it expired, or its id is wrong" in done.stderr


def test_a_run_is_cancelled_by_its_id(cluster: Cluster, tmp_path: Path) -> None:
    """Options of a submission mean nothing here, and are refused instead of ignored."""
    plan = cluster.record([GREEN])
    handle = cluster.written(plan)
    refused = [
        enqueue(cluster, tmp_path, "--cancel", handle.run_id, *more)
        for more in (
            ("--output", "x"),
            ("--timeout", "3"),
            ("--no-wait",),
            ("--expires", "3"),
            ("plan.json",),
        )
    ]
    stranger = enqueue(cluster, tmp_path, "--cancel", handle.run_id, "--caller", "nobody")
    done = enqueue(cluster, tmp_path, "--cancel", handle.run_id, "--json")
    cluster.replay.chunk_seconds = 0.0

    assert [(each.returncode, "exclude each other" in each.stderr) for each in refused] == [(2, True)] * 5
    assert stranger.returncode == 8
    assert (done.returncode, json.loads(done.stdout)["departure"]) == (0, "stopped")
    assert handle.get(timeout=PATIENCE_SECONDS).metadata["stop_reason"] == "cancelled"


def test_a_red_run_goes_on_from_its_files(cluster: Cluster, tmp_path: Path) -> None:
    """A new run of the same plan, under another name, that has the files and knows how their tests ended."""
    plan = cluster.record([RED], max_iterations=1, context="Mind the gap.")
    red = cluster.ptc.submit(plan)
    red.get(timeout=PATIENCE_SECONDS)
    sent = enqueue(cluster, tmp_path, "--continue", red.run_id, "--set", "max_iterations=2", "--no-wait")
    following = PlanHandle.of(sent.stdout.strip(), cluster.ptc).plan

    assert sent.returncode == 0, sent.stderr
    assert following.execution_id.startswith(f"{plan.execution_id}-")
    assert following.initial_files.keys() == {"it.py", "tests/test_it.py"}
    assert following.max_iterations == 2
    assert (following.scaffolding.context or "").startswith("Mind the gap.\n")
    assert "one is not two" in (following.scaffolding.context or "")


def test_there_is_nothing_to_go_on_from_where_all_is_green(cluster: Cluster, tmp_path: Path) -> None:
    """Unless it is said what is to change."""
    handle = cluster.ptc.submit(cluster.record([GREEN]))
    handle.get(timeout=PATIENCE_SECONDS)
    refused = enqueue(cluster, tmp_path, "--continue", handle.run_id, "--dry-run")
    changed = enqueue(
        cluster,
        tmp_path,
        *("--continue", handle.run_id, "--dry-run"),
        *("--set", "scaffolding.task_description=Count lines, too"),
    )

    assert (refused.returncode, "ended green: say what is to change" in refused.stderr) == (2, True)
    assert (changed.returncode, "answered by   a new run" in changed.stdout) == (0, True), changed.stderr
