"""`ptc-enqueue cache warm` against real workers: what is submitted, told and kept."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis as AsyncRedis
from support import PATIENCE_SECONDS, answer_with, until

from ptc_contracts import PTCCacheManager
from ptc_contracts.keys import cache_key, content_id, exec_key

if TYPE_CHECKING:
    from cluster import Cluster

    from ptc_contracts import PTCExecutionPlan

GREEN = answer_with(tests__test_it_py="def test_it():\n    pass")
RED = answer_with(tests__test_it_py="def test_it():\n    assert False")
PROGRAM = str(Path(sys.executable).with_name("ptc-enqueue"))


def warm(
    cluster: Cluster, folder: Path, lines: list[Any], *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Write plans, or whatever stands for one, one a line, and warm the cluster's cache with them."""
    return subprocess.run(
        [PROGRAM, "cache", "warm", str(written(folder, lines)), *options],
        cwd=folder,
        env={**cluster.environment, "PTC_EXPIRES": "", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def written(folder: Path, lines: list[Any]) -> Path:
    """Write one line for each plan, and an empty one in between."""
    file = folder / "plans.jsonl"
    texts = [line if isinstance(line, str) else line.model_dump_json() for line in lines]
    file.write_text("\n\n".join(texts) + "\n")
    return file


def runs_of(cluster: Cluster, plan: PTCExecutionPlan) -> list[bytes]:
    """List the run records of a plan."""
    return list(cluster.ptc.store.redis.scan_iter(f"ptc:run:{cache_key(plan)}-*"))


def test_a_warm_plan_is_answered_by_the_cache(cluster: Cluster, tmp_path: Path) -> None:
    """Every plan of the file runs once; afterwards, and in the second round, nobody is asked."""
    plans = [cluster.record([GREEN]) for _ in range(3)]
    first = warm(cluster, tmp_path, plans)
    others = [plan.model_copy(update={"execution_id": f"{plan.execution_id}-2"}) for plan in plans]
    second = warm(cluster, tmp_path, others)

    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert [cluster.calls_for(plan) for plan in plans] == [1, 1, 1]
    assert (
        "3 of 3 plans are warm: 3 new, 0 joined, 0 from earlier runs, 0 from the cache; $0.0000"
        in first.stdout
    )
    assert (
        "3 of 3 plans are warm: 0 new, 0 joined, 0 from earlier runs, 3 from the cache; $0.0000"
        in second.stdout
    )
    assert [f"{plan.execution_id}  SUCCESS  new" in first.stdout for plan in plans] == [True] * 3
    assert "3 of 3: SUCCESS test-" in first.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["plans.jsonl"]


def test_the_same_file_once_more_finds_its_earlier_runs(cluster: Cluster, tmp_path: Path) -> None:
    """Its plans have their results already, under their own names; that is told apart from new runs."""
    plan = cluster.record([GREEN])
    warm(cluster, tmp_path, [plan])

    done = warm(cluster, tmp_path, [plan], "--json")

    told = json.loads(done.stdout)
    assert (done.returncode, cluster.calls_for(plan)) == (0, 1)
    assert [(row["status"], row["source"]) for row in told["plans"]] == [("SUCCESS", "earlier")]


def test_an_earlier_run_fills_the_cache_that_lost_its_result(cluster: Cluster, tmp_path: Path) -> None:
    """Nobody is asked again, whether the plan's run was its own or another's; whoever comes later is answered."""
    plan = cluster.record([GREEN])
    joiner, later = (plan.model_copy(update={"execution_id": name}) for name in ("joiner", "later"))
    warm(cluster, tmp_path, [plan, joiner])
    codes, answers = [], []
    for each in (plan, joiner):
        asyncio.run(PTCCacheManager(AsyncRedis.from_url(cluster.settings.url)).invalidate(plan))
        codes.append(warm(cluster, tmp_path, [each]).returncode)
        answers.append(cluster.ptc.submit(later).get(timeout=PATIENCE_SECONDS))

    assert (codes, cluster.calls_for(plan)) == ([0, 0], 1)
    assert [answer.status for answer in answers] == ["CACHE_HIT", "CACHE_HIT"]
    assert [answer.metadata["saved_tokens"] > 0 for answer in answers] == [True, True]


def test_a_plan_whose_result_the_server_refuses_to_keep_is_not_warm(cluster: Cluster, tmp_path: Path) -> None:
    """It is told, and the exit code says so."""
    plan = cluster.record([GREEN])
    warm(cluster, tmp_path, [plan])
    redis = cluster.ptc.store.redis
    redis.delete(exec_key(cache_key(plan)))
    redis.acl_setuser(
        "reader", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all", "-set"]
    )
    address = cluster.settings.url.replace("://", "://reader:any@", 1)

    done = warm(cluster, tmp_path, [plan], "--json", REDIS_URL=address)

    told = json.loads(done.stdout)
    assert (done.returncode, told["totals"]["warm"]) == (7, 0), done.stderr
    assert told["plans"][0]["unwritten"] == "the cache does not keep it: the server refuses it"


def test_a_single_plan_may_take_many_lines(cluster: Cluster, tmp_path: Path) -> None:
    """The file that `ptc-enqueue PLAN` takes will do."""
    plan = cluster.record([GREEN])

    done = warm(cluster, tmp_path, [plan.model_dump_json(indent=2)], "--json")

    assert done.returncode == 0, done.stderr
    assert [row["execution_id"] for row in json.loads(done.stdout)["plans"]] == [plan.execution_id]


def test_so_many_plans_are_under_way_at_a_time(cluster: Cluster, tmp_path: Path) -> None:
    """A cluster that others use is not flooded."""
    plans = [cluster.record([GREEN]) for _ in range(5)]
    cluster.replay.latency = 0.5
    done = warm(cluster, tmp_path, plans, "--jobs", "2")
    cluster.replay.latency = 0.0

    keys = {content_id(plan) for plan in plans}
    ours = [call for call in cluster.replay.journal if call.turn.plan in keys]

    assert (done.returncode, len(ours)) == (0, 5)
    assert max(sum(a.started <= b.started < (a.ended or 0) for a in ours) for b in ours) <= 2


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{}", ["line 3: execution_id: Field required", "line 3: scaffolding: Field required"]),
        ("no JSON", ["line 3: plan: Invalid JSON"]),
        (
            '{"execution_id": "x", "scaffolding": {"task_description": "x"}, "max_iterations": 99}',
            ["line 3: max_iterations: Input should be less than or equal to 10"],
        ),
        (
            '{"execution_id": "x", "scaffolding": {"task_description": "x"}, "cache_strategy": "never"}',
            ["line 3: cache_strategy: never keeps no result"],
        ),
        (
            '{"execution_id": "x", "scaffolding": {"task_description": "x"}, "cache_ttl": 0}',
            ["line 3: cache_ttl: 0 keeps no result"],
        ),
    ],
)
def test_nothing_is_submitted_before_every_line_is_right(
    cluster: Cluster, tmp_path: Path, line: str, told: list[str]
) -> None:
    """The message names line and field."""
    plan = cluster.record([GREEN])

    done = warm(cluster, tmp_path, [plan, line, "{}"])

    assert (done.returncode, runs_of(cluster, plan)) == (2, [])
    assert [words for words in [*told, "line 5: execution_id"] if words not in done.stderr] == []


def test_a_plan_that_is_not_green_is_told_with_its_reason(cluster: Cluster, tmp_path: Path) -> None:
    """The others are warm all the same; the exit code tells that not all are."""
    red, green = cluster.record([RED], max_iterations=1), cluster.record([GREEN])

    done = warm(cluster, tmp_path, [red, green])

    assert done.returncode == 1
    assert f"{red.execution_id}  PARTIAL_SUCCESS  new" in done.stdout
    assert "1 of 2 plans are warm" in done.stdout
    assert f"PARTIAL_SUCCESS {red.execution_id}" in done.stderr


def test_a_plan_that_stands_there_twice_runs_once(cluster: Cluster, tmp_path: Path) -> None:
    """The second one joins the first, or finds it in the cache."""
    plan = cluster.record([GREEN])
    again = plan.model_copy(update={"execution_id": "another"})

    done = warm(cluster, tmp_path, [plan, again], "--json")

    told = json.loads(done.stdout)
    assert (done.returncode, cluster.calls_for(plan)) == (0, 1)
    assert [row["source"] for row in told["plans"]] == ["new", "joined"]
    assert (told["totals"]["warm"], told["totals"]["new"]) == (2, 1)


def test_what_has_not_ended_in_time_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    """What was not submitted is told apart from it, and the runs end without us."""
    plans = [cluster.record([GREEN]) for _ in range(2)]
    cluster.replay.latency = 5.0
    done = warm(cluster, tmp_path, plans, "--jobs", "1", "--timeout", "0.5", "--json")
    cluster.replay.latency = 0.0

    rows = json.loads(done.stdout)["plans"]

    assert (done.returncode, [row["status"] for row in rows]) == (6, ["GOES ON", "NOT SUBMITTED"])
    assert runs_of(cluster, plans[1]) == []
    assert cluster.ptc.submit(plans[0]).get(timeout=PATIENCE_SECONDS).status == "SUCCESS"


def test_an_interrupt_leaves_the_runs_going(cluster: Cluster, tmp_path: Path) -> None:
    """It is as that of a single plan."""
    plan = cluster.record([GREEN])
    cluster.replay.latency = 5.0
    process = subprocess.Popen(
        [PROGRAM, "cache", "warm", str(written(tmp_path, [plan]))],
        cwd=tmp_path,
        env=cluster.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: cluster.calls_for(plan) == 1)
    process.send_signal(signal.SIGINT)
    told = process.communicate()[1]
    cluster.replay.latency = 0.0

    assert (process.returncode, "interrupted" in told, "Traceback" in told) == (130, True, False)
    assert cluster.ptc.submit(plan).get(timeout=PATIENCE_SECONDS).status == "SUCCESS"


def test_a_server_that_is_away_is_told(cluster: Cluster, tmp_path: Path) -> None:
    """As for a single plan."""
    plan = cluster.record([GREEN])
    environment = {**cluster.environment, "REDIS_URL": "redis://127.0.0.1:1"}

    done = subprocess.run(
        [PROGRAM, "cache", "warm", str(written(tmp_path, [plan]))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )

    assert (done.returncode, "cannot be reached" in done.stderr) == (5, True)
