"""`ptc-enqueue --dry-run` and `ptc-enqueue cache`: what is foretold and kept, and that looking changes nothing."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import psutil
from support import PATIENCE_SECONDS, answer_with, until
from terminal import CTRL_C, PROGRAM, run, terminal

from ptc_contracts.keys import CACHE_STATS, cache_key

if TYPE_CHECKING:
    from pathlib import Path

    from cluster import Cluster

    from ptc_contracts import PTCExecutionPlan

GREEN = answer_with(tests__test_it_py="def test_it():\n    pass")


def enqueue(
    cluster: Cluster, folder: Path, *arguments: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the program as a user of the cluster."""
    return run(folder, {**cluster.environment, "PTC_EXPIRES": ""}, *arguments, **options)


def foretold(cluster: Cluster, folder: Path, plan: PTCExecutionPlan, **fields: str) -> dict[str, Any]:
    """Ask what would become of a plan."""
    changes = [part for name, value in fields.items() for part in ("--set", f"{name}={value}")]
    done = enqueue(cluster, folder, "--dry-run", "--json", "-", *changes, stdin=plan.model_dump_json())
    assert done.returncode == 0, done.stderr
    outlook: dict[str, Any] = json.loads(done.stdout)
    return outlook


def test_it_is_foretold_what_answers_a_plan(cluster: Cluster, tmp_path: Path) -> None:
    """A new run, a run under way, its own earlier run, or the cache; and nobody notices the question."""
    plan = cluster.record([GREEN])
    before = cluster.ptc.store.redis.hgetall(CACHE_STATS)
    first = foretold(cluster, tmp_path, plan)
    untouched = cluster.ptc.store.redis.hgetall(CACHE_STATS), cluster.calls_for(plan)
    cluster.replay.latency = 3.0
    handle = cluster.ptc.submit(plan)
    joined = foretold(cluster, tmp_path, plan, execution_id="other")
    cluster.replay.latency = 0.0
    handle.get(timeout=PATIENCE_SECONDS)
    earlier = foretold(cluster, tmp_path, plan)
    cached = foretold(cluster, tmp_path, plan, execution_id="other")
    never = foretold(cluster, tmp_path, plan, execution_id="other", cache_strategy="never")

    assert (first["answer"]["by"], first["key"], first["fingerprint"]) == ("new", cache_key(plan), "")
    assert untouched == (before, 0)
    assert (joined["answer"]["by"], joined["answer"]["run_id"]) == ("joined", handle.run_id)
    assert (earlier["answer"]["by"], earlier["answer"]["run_id"]) == ("earlier", handle.run_id)
    assert (cached["answer"]["by"], cached["estimate"]["worst_usd"]) == ("cache", 0.0)
    assert never["answer"]["by"] == "new"


def test_a_price_that_nobody_knows_is_not_made_up(cluster: Cluster, tmp_path: Path) -> None:
    """Recordings cost nothing and say nothing of what a model would; the plan's own bound is told."""
    cluster.run([GREEN])
    plan = cluster.record([GREEN], max_cost_usd=0.25)
    told = foretold(cluster, tmp_path, plan)["estimate"]

    assert (told["typical_usd"], told["worst_usd"]) == (None, 0.25)
    assert told["words"].startswith("unknown: no run of late asked claude at a known price")


def test_plans_are_checked_without_a_server(cluster: Cluster, tmp_path: Path) -> None:
    """What cannot be looked at is said to be unknown."""
    plan = cluster.record([GREEN])
    done = run(
        tmp_path,
        {**cluster.environment, "REDIS_URL": "redis://127.0.0.1:1"},
        *("--dry-run", "-"),
        stdin=f"{plan.model_dump_json()}\n{plan.model_dump_json()}\n",
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("answered by   not known: Redis at redis://127.0.0.1:1 cannot be reached") == 2
    assert "standard input, line 2: a valid plan" in done.stdout


def test_the_cache_is_shown_and_loses_what_is_invalidated(cluster: Cluster, tmp_path: Path) -> None:
    """By a plan's file, by a quoted glob and by key."""
    plans = [cluster.record([GREEN]) for _ in range(2)]
    for plan in plans:
        cluster.ptc.submit(plan).get(timeout=PATIENCE_SECONDS)
    (tmp_path / "plan.json").write_text(plans[0].model_dump_json())
    shown = enqueue(cluster, tmp_path, "cache", "show", "plan.json")
    globbed = enqueue(cluster, tmp_path, "cache", "show", "*.json")
    removed = enqueue(cluster, tmp_path, "cache", "invalidate", "*.json", cache_key(plans[1]), "--json")
    nothing = enqueue(cluster, tmp_path, "cache", "invalidate", "*.none")
    gone = [enqueue(cluster, tmp_path, "cache", "show", each) for each in ("plan.json", cache_key(plans[1]))]
    stats = json.loads(enqueue(cluster, tmp_path, "cache", "stats", "--json").stdout)

    assert f"{cache_key(plans[0])}: " in shown.stdout
    assert f"from {plans[0].execution_id}" in shown.stdout
    assert globbed.stdout.startswith(f"{cache_key(plans[0])}: ")
    assert (nothing.returncode, "'*.none' matches no file" in nothing.stderr) == (2, True)
    assert json.loads(removed.stdout) == {"removed": [cache_key(plan) for plan in plans]}
    assert [(each.returncode, "keeps nothing for" in each.stderr) for each in gone] == [(2, True)] * 2
    assert stats.keys() >= {"cached_executions", "hits", "misses"}


def test_clearing_asks_first(cluster: Cluster, tmp_path: Path) -> None:
    """No is the answer unless it is yes; where nobody can be asked, --yes says so."""
    plan = cluster.record([GREEN])
    cluster.ptc.submit(plan).get(timeout=PATIENCE_SECONDS)
    unasked = enqueue(cluster, tmp_path, "cache", "clear")
    answered = [_asked_to_clear(cluster, tmp_path, keys) for keys in ("\r", "n\r", CTRL_C)]
    kept = enqueue(cluster, tmp_path, "cache", "show", cache_key(plan))
    done = enqueue(cluster, tmp_path, "cache", "clear", "--yes")
    gone = enqueue(cluster, tmp_path, "cache", "show", cache_key(plan))

    assert (unasked.returncode, "needs --yes" in unasked.stderr) == (2, True)
    assert answered == [(0, "removed no results"), (0, "removed no results"), (130, "interrupted")]
    assert (kept.returncode, done.returncode, "removed" in done.stdout, gone.returncode) == (0, 0, True, 2)


def _asked_to_clear(cluster: Cluster, folder: Path, keys: str) -> tuple[int, str]:
    """Answer the question with keys; return the exit code and the last words."""
    with terminal(folder, cluster.environment, "cache", "clear") as screen:
        screen.until("[y/N]: ")
        screen.type(keys)
        code = screen.end()
    return code, screen.shown.splitlines()[-1].split("\x1b[0m")[-1]


def test_a_queue_that_nobody_serves_is_named_with_a_way_out(empty_cluster: Cluster, tmp_path: Path) -> None:
    """For one plan and for several; the run waits."""
    empty_cluster.start_worker("-Q", "sandbox")
    plans = [empty_cluster.record([GREEN]) for _ in range(2)]
    lines = "\n".join(plan.model_dump_json() for plan in plans)
    with terminal(tmp_path, empty_cluster.environment, "plan.json") as screen:
        screen.end()
    (tmp_path / "plan.json").write_text(plans[0].model_dump_json())
    (tmp_path / "plans.jsonl").write_text(lines)
    for name in ("plan.json", "plans.jsonl"):
        with terminal(tmp_path, empty_cluster.environment, name) as screen:
            screen.until(
                "no worker serves queue generate; start one with: celery -A ptc_worker worker -Q generate"
            )

    until(lambda: all(run.state == "queued" for run in empty_cluster.ptc.list_runs().runs))


def test_nobody_is_told_to_start_what_the_command_starts_itself(
    empty_cluster: Cluster, tmp_path: Path
) -> None:
    """However long the worker of `--local` takes."""
    plans = "\n".join(empty_cluster.record([GREEN]).model_dump_json() for _ in range(2))
    (tmp_path / "plans.jsonl").write_text(plans)
    command = [PROGRAM, "--local", "--timeout", "6", "plans.jsonl"]
    environment = empty_cluster.environment
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        program = psutil.Process(process.pid)
        until(lambda: "worker" in [word for child in program.children() for word in child.cmdline()])
        for child in program.children():
            child.suspend()
        told = process.communicate(timeout=PATIENCE_SECONDS)[1]

    assert (process.returncode, "no worker" in told) == (6, False), told
