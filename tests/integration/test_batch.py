"""`ptc-enqueue` with several plans against real workers: what is submitted, told, written and returned."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from support import PATIENCE_SECONDS, answer_with, make_plan, until
from terminal import CTRL_C, PROGRAM, lost_stream, run, terminal

from ptc_contracts import PTCArtifactResult
from ptc_contracts.keys import cache_key, content_id, events_key, run_key
from roma_bridge import PTC, PlanHandle
from roma_bridge.cli.jobs import Jobs
from roma_bridge.cli.plans import Given

if TYPE_CHECKING:
    from cluster import Cluster

    from ptc_contracts import PTCExecutionPlan

DEMO = Path(__file__).parents[2] / "deploy" / "demo"

GREEN = answer_with(tests__test_it_py="def test_it():\n    pass")
RED = answer_with(tests__test_it_py="def test_it():\n    assert False")


def enqueue(
    cluster: Cluster, folder: Path, *arguments: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the program as a user of the cluster."""
    return run(folder, {**cluster.environment, "PTC_EXPIRES": ""}, *arguments, **options)


def write(folder: Path, **plans: PTCExecutionPlan) -> None:
    """Write each plan into a file of its name, in `plans`."""
    (folder / "plans").mkdir(exist_ok=True)
    for name, plan in plans.items():
        (folder / "plans" / f"{name}.json").write_text(plan.model_dump_json(indent=2))


def runs_of(cluster: Cluster, plan: PTCExecutionPlan) -> list[bytes]:
    """List the run records of a plan."""
    return list(cluster.ptc.store.redis.scan_iter(f"ptc:run:{cache_key(plan)}-*"))


def test_files_globs_lines_and_standard_input_go_together(cluster: Cluster, tmp_path: Path) -> None:
    """Each plan's files go below a directory of its name, and the table has a row for each."""
    a, b, c, d = (cluster.record([GREEN]) for _ in range(4))
    write(tmp_path, a=a, b=b)
    (tmp_path / "more.jsonl").write_text(c.model_dump_json() + "\n\n")
    done = enqueue(
        cluster, tmp_path, "plans/*.json", "more.jsonl", "-", "--output", "out", stdin=d.model_dump_json()
    )

    assert done.returncode == 0, done.stderr
    assert [plan.execution_id for plan in (a, b, c, d)] == [
        line.split()[0] for line in done.stdout.splitlines()[1:-1]
    ]
    assert "4 of 4 plans are green: 4 new" in done.stdout
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.glob("out/*/tests/*.py")) == sorted(
        f"out/{plan.execution_id}/tests/test_it.py" for plan in (a, b, c, d)
    )


def test_the_worst_plan_decides_how_the_command_ends(cluster: Cluster, tmp_path: Path) -> None:
    """By the order that --help tells; the good ones have their files all the same."""
    write(tmp_path, a=cluster.record([GREEN]), b=cluster.record([RED], max_iterations=1))
    done = enqueue(cluster, tmp_path, "plans/a.json", "plans/b.json")

    assert done.returncode == 1
    assert "1 of 2 plans are green" in done.stdout
    assert len(list(tmp_path.glob("*/tests/test_it.py"))) == 2


def test_json_is_one_result_a_line(cluster: Cluster, tmp_path: Path) -> None:
    """As they end, for jq; the table goes to standard error, and no files are written."""
    plans = {name: cluster.record([GREEN]) for name in ("a", "b")}
    write(tmp_path, **plans)
    done = enqueue(cluster, tmp_path, "plans/*.json", "--json")

    results = [PTCArtifactResult.model_validate_json(line) for line in done.stdout.splitlines()]
    assert {result.execution_id for result in results} == {plan.execution_id for plan in plans.values()}
    assert "2 of 2 plans are green" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["plans"]


def test_what_did_not_end_in_time_has_a_line_too(cluster: Cluster, tmp_path: Path) -> None:
    """Whoever reads the lines finds every plan, and learns the runs that go on."""
    write(tmp_path, a=cluster.record([GREEN]), b=cluster.record([GREEN]))
    done = enqueue(cluster, tmp_path, "plans/*.json", "--json", "--jobs", "1", "--timeout", "0")

    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, [line["status"] for line in lines]) == (6, ["NOT SUBMITTED", "NOT SUBMITTED"])


def test_a_plan_that_is_given_twice_costs_once(cluster: Cluster, tmp_path: Path) -> None:
    """The second one has joined the first one's run."""
    write(tmp_path, p0=cluster.record([GREEN]))
    done = enqueue(cluster, tmp_path, "plans/p0.json", "./plans/p0.json", "-q")

    assert "2 of 2 plans are green: 1 new, 1 joined, 0 from earlier runs" in done.stdout


def test_quiet_says_nothing_on_the_way(cluster: Cluster, tmp_path: Path) -> None:
    """The table is what was asked for, and comes."""
    write(tmp_path, a=cluster.record([GREEN]), b=cluster.record([GREEN]))
    several = enqueue(cluster, tmp_path, "-q", "plans/a.json", "plans/b.json")
    one = enqueue(cluster, tmp_path, "-q", "plans/a.json", "--output", "again", "--set", "execution_id=again")

    assert (several.returncode, several.stderr, "2 of 2" in several.stdout) == (0, "", True)
    assert (one.returncode, one.stderr, "CACHE_HIT" in one.stdout) == (0, "", True)


def test_every_wrong_file_is_told_before_anything_is_submitted(cluster: Cluster, tmp_path: Path) -> None:
    """With file, line and field."""
    good = cluster.record([GREEN])
    write(tmp_path, good=good)
    (tmp_path / "plans" / "bad.json").write_text('{"execution_id": "x",\n "scaffolding": {}\n}')
    (tmp_path / "plans" / "broken.json").write_text('{\n  "execution_id": "x"\n  "scaffolding": {}\n}')
    (tmp_path / "lines.jsonl").write_text(good.model_dump_json() + '\n{"execution_id": " "}\n')
    done = enqueue(cluster, tmp_path, "plans/*.json", "lines.jsonl", "no-such.json", "none/*.json", "plans")

    assert (done.returncode, runs_of(cluster, good)) == (2, [])
    assert [
        told
        for told in (
            "plans/bad.json: scaffolding.task_description: Field required",
            "plans/broken.json: plan: Invalid JSON: expected `,` or `}` at line 3",
            "lines.jsonl, line 2: execution_id: execution_id cannot be empty",
            "'no-such.json': No such file or directory",
            "'none/*.json' matches no file",
            "'plans' is a directory: give its plans, such as 'plans/*.json'",
        )
        if told not in done.stderr
    ] == []


def test_a_plan_that_cannot_be_written_keeps_no_other_from_being(cluster: Cluster, tmp_path: Path) -> None:
    """It is told, and the exit code says so."""
    a, b = cluster.record([GREEN]), cluster.record([GREEN])
    write(tmp_path, a=a, b=b)
    mine = tmp_path / a.execution_id / "tests" / "test_it.py"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    done = enqueue(cluster, tmp_path, "plans/*.json")

    assert (done.returncode, mine.read_text()) == (7, "mine")
    assert "exists already" in done.stderr
    assert (tmp_path / b.execution_id / "tests" / "test_it.py").exists()


def test_runs_are_submitted_without_waiting(cluster: Cluster, tmp_path: Path) -> None:
    """One id a line, or one object."""
    a, b = cluster.record([GREEN]), cluster.record([GREEN])
    write(tmp_path, a=a, b=b)
    ids = enqueue(cluster, tmp_path, "plans/*.json", "--no-wait").stdout.split()
    again = enqueue(cluster, tmp_path, "plans/*.json", "--no-wait", "--json").stdout.splitlines()

    assert [each.split("-")[0] for each in ids] == [cache_key(a), cache_key(b)]
    assert [json.loads(line)["run_id"] for line in again] == ids


@pytest.mark.parametrize(
    ("key", "word", "status"), [("\r", "GOES ON", "SUCCESS"), ("c\r", "CANCELLED", "FAILURE")]
)
def test_ctrl_c_asks_once_for_all_runs(
    cluster: Cluster, tmp_path: Path, key: str, word: str, status: str
) -> None:
    """They go on unless whoever sits there says otherwise; the table tells what became of each."""
    plans = [cluster.record([GREEN]) for _ in range(3)]
    write(tmp_path, **{f"p{number}": plan for number, plan in enumerate(plans)})
    cluster.replay.latency = 15.0
    with terminal(tmp_path, cluster.environment, "plans/*.json", "--jobs", "2") as screen:
        until(lambda: all(cluster.calls_for(plan) for plan in plans[:2]))
        handles = [cluster.ptc.submit(plan) for plan in plans[:2]]
        screen.type(CTRL_C)
        screen.until("Cancel the 2 runs under way (c), or let them go on (Enter)?")
        screen.type(key)
        code = screen.end()
    cluster.replay.latency = 0.0

    assert (code, screen.shown.count("Cancel the")) == (130, 1), screen.shown
    words = [word, word, "NOT SUBMITTED"]
    assert [
        f"{plan.execution_id}  {told}" in screen.shown for plan, told in zip(plans, words, strict=True)
    ] == [True] * 3
    assert [handle.get(timeout=PATIENCE_SECONDS).status for handle in handles] == [status, status]
    assert runs_of(cluster, plans[2]) == []


def test_a_second_ctrl_c_lets_the_run_go_on(cluster: Cluster, tmp_path: Path) -> None:
    """Who presses it again does not want to be asked; how to come back is said."""
    plan = cluster.record([GREEN])
    write(tmp_path, a=plan)
    cluster.replay.latency = 15.0
    with terminal(tmp_path, cluster.environment, "plans/a.json") as screen:
        until(lambda: cluster.calls_for(plan) == 1)
        screen.type(CTRL_C)
        screen.until("Cancel the run (c), or let it go on (Enter)?")
        screen.type(CTRL_C)
        code = screen.end()
    cluster.replay.latency = 0.0

    assert (code, "see it with: ptc-enqueue --watch" in screen.shown) == (130, True), screen.shown
    assert cluster.ptc.submit(plan).get(timeout=PATIENCE_SECONDS).status == "SUCCESS"


def test_a_terminal_that_closes_ends_the_command_as_ctrl_c_does(
    empty_cluster: Cluster, tmp_path: Path
) -> None:
    """Nobody is asked, the run goes on, and that nothing can be drawn any more is no error."""
    plan = make_plan("a")
    write(tmp_path, a=plan)
    with terminal(tmp_path, empty_cluster.environment, "plans/a.json") as screen:
        until(lambda: runs_of(empty_cluster, plan))
        code = screen.hang_up()

    assert (code, [run.state for run in empty_cluster.ptc.list_runs().runs]) == (130, ["queued"])


def test_plans_with_jobs_are_bounded(cluster: Cluster, tmp_path: Path) -> None:
    """A cluster that others use is not flooded."""
    plans = [cluster.record([GREEN]) for _ in range(4)]
    write(tmp_path, **{f"p{number}": plan for number, plan in enumerate(plans)})
    cluster.replay.latency = 0.5
    done = enqueue(cluster, tmp_path, "plans/*.json", "--jobs", "1")
    cluster.replay.latency = 0.0

    keys = {content_id(plan) for plan in plans}
    ours = [call for call in cluster.replay.journal if call.turn.plan in keys]
    assert (done.returncode, len(ours)) == (0, 4)
    assert max(sum(a.started <= b.started < (a.ended or 0) for a in ours) for b in ours) == 1


def test_a_lost_result_is_no_loss_of_the_others(cluster: Cluster, tmp_path: Path) -> None:
    """It has a row and a line, and decides how the command ends; the others' files are written."""
    lost, good = cluster.record([GREEN], cache_strategy="never"), cluster.record([GREEN])
    handle = cluster.ptc.submit(lost)
    handle.get(timeout=PATIENCE_SECONDS)
    cluster.ptc.store.redis.hset(run_key(handle.run_id), "result", b"\xff")
    write(tmp_path, a=lost, b=good)
    done = enqueue(cluster, tmp_path, "plans/*.json", "--json", "--output", "out")

    lines = {line["execution_id"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert (done.returncode, lines[lost.execution_id]["status"]) == (2, "LOST"), done.stderr
    assert lines[lost.execution_id]["run_id"] == handle.run_id
    assert (tmp_path / "out" / good.execution_id / "tests" / "test_it.py").exists()


def test_a_run_that_expired_is_no_loss_of_the_others(empty_cluster: Cluster) -> None:
    """Its record is gone while another plan's run goes on."""

    def lose() -> None:
        if len(batch.under_way) == 2:
            lost, other = batch.under_way
            lost.ptc.store.redis.delete(run_key(lost.run_id))
            other.cancel()

    batch = jobs(empty_cluster.ptc, make_plan("a"), make_plan("b"))
    batch.run(PATIENCE_SECONDS, lose)

    assert [row.status for row in batch.all_rows] == ["LOST", "FAILURE"]
    assert "is not known" in (batch.all_rows[0].error_message or "")


def test_a_run_that_cannot_be_heard_is_followed_by_its_record(empty_cluster: Cluster, tmp_path: Path) -> None:
    """What is drawn of it on a terminal is no reason to lose its end, or that of others."""
    plans = [make_plan(name, execution_id=name) for name in "ab"]
    handles = empty_cluster.ptc.submit_many(plans)
    redis, told = empty_cluster.ptc.store.redis, events_key(handles[0].run_id)
    redis.set(told, "no stream")
    write(tmp_path, a=plans[0], b=plans[1])
    with terminal(tmp_path, empty_cluster.environment, "plans/*.json") as screen:
        screen.until("no worker answers")
        redis.delete(told)
        for handle in handles:
            handle.cancel()
        code = screen.end()

    assert (code, "0 of 2 plans are green" in screen.shown) == (3, True), screen.shown


def test_a_plan_is_in_one_row_while_it_is_delivered(empty_cluster: Cluster) -> None:
    """Whoever is interrupted then is told how it ended, and of the other that it goes on."""
    seen: list[tuple[list[str], int]] = []

    def cancel_first() -> None:
        if len(batch.under_way) == 2:
            batch.under_way[0].cancel()

    def interrupt(*_: object) -> None:
        seen.append(([row.status for row in batch.all_rows], len(batch.under_way)))
        raise KeyboardInterrupt

    batch = jobs(empty_cluster.ptc, *map(make_plan, "abc"), deliver=interrupt)
    with pytest.raises(KeyboardInterrupt):
        batch.run(PATIENCE_SECONDS, cancel_first)

    assert seen == [(["FAILURE", "GOES ON", "NOT SUBMITTED"], 1)]
    assert [row.status for row in batch.all_rows] == ["FAILURE", "GOES ON", "NOT SUBMITTED"]


def test_an_interrupt_while_a_plan_is_submitted_waits_until_its_run_is_known(empty_cluster: Cluster) -> None:
    """Its run may begin, so it is among those that go on."""

    class Interrupted(PTC):
        """Hears Ctrl-C when the server has the plan and the caller has no answer."""

        def submit(self, *arguments: Any, **options: Any) -> PlanHandle:
            handle = super().submit(*arguments, **options)
            signal.raise_signal(signal.SIGINT)
            return handle

    batch = jobs(Interrupted(empty_cluster.settings), make_plan("a"), make_plan("b"))
    with pytest.raises(KeyboardInterrupt):
        batch.run(PATIENCE_SECONDS, lambda: None)
    runs = empty_cluster.ptc.list_runs().runs

    assert [(row.status, row.run_id) for row in batch.all_rows] == [
        ("GOES ON", runs[0].run_id),
        ("NOT SUBMITTED", ""),
    ]
    assert [handle.run_id for handle in batch.under_way] == [run.run_id for run in runs]


def jobs(ptc: PTC, *plans: PTCExecutionPlan, deliver: Any = lambda *_: None) -> Jobs:
    """Make a batch with two plans under way at a time; it prints nothing."""
    return Jobs(ptc, [Given("plans", None, plan) for plan in plans], 2, deliver, quiet=True)


@pytest.mark.parametrize(
    ("plans", "form", "how", "code"),
    [
        (1, (), "closed", 141),
        (2, (), "full", 7),
        (2, ("--json",), "closed", 141),
        (1, ("--json",), "full", 7),
    ],
)
def test_streams_that_are_lost_lose_no_files(
    cluster: Cluster, tmp_path: Path, plans: int, form: tuple[str, ...], how: str, code: int
) -> None:
    """Both, as `2>&1 | head` does; the exit code says that not all was read."""
    write(tmp_path, **{f"p{number}": cluster.record([GREEN]) for number in range(plans)})
    names = [f"plans/p{number}.json" for number in range(plans)]
    with lost_stream(how) as lost:
        done = subprocess.run(
            [PROGRAM, *names, "--jobs", "1", "--output", "out", *form],
            cwd=tmp_path,
            env=cluster.environment,
            stdout=lost,
            stderr=lost,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    assert done.returncode == code
    assert len(list(tmp_path.glob("out/**/test_it.py"))) == plans


def test_what_was_submitted_before_an_outage_is_printed(empty_cluster: Cluster, tmp_path: Path) -> None:
    """With `--no-wait`, an id for each run, before it is said that not all were submitted."""
    redis = empty_cluster.ptc.store.redis
    plans = [make_plan(f"plan {n}", context=Random(n).randbytes(25_000).hex()) for n in range(120)]  # noqa: S311
    (tmp_path / "many.jsonl").write_text("\n".join(plan.model_dump_json() for plan in plans))
    redis.config_set("maxmemory", redis.info("memory")["used_memory"] + 4_000_000)  # full half-way
    done = enqueue(empty_cluster, tmp_path, "many.jsonl", "--no-wait")
    redis.config_set("maxmemory", 0)
    runs = {run.run_id for run in empty_cluster.ptc.list_runs(limit=200).runs}

    assert (done.returncode, "of 120 plans may not have been submitted" in done.stderr) == (5, True)
    assert 0 < len(runs) < 120
    assert set(done.stdout.split()) == runs


def test_a_replay_that_continues_a_run_is_kept_from_the_cache(cluster: Cluster, tmp_path: Path) -> None:
    """It is a run of its own, as any replay: the server may be the user's."""
    red = cluster.ptc.submit(cluster.record([RED], max_iterations=1))
    red.get(timeout=PATIENCE_SECONDS)
    enqueue(
        cluster, tmp_path, "--continue", red.run_id, "--local", "--replay", str(DEMO), "--timeout", "0", "-q"
    )
    (newest,) = cluster.ptc.list_runs(limit=1).runs
    plan = PlanHandle.of(newest.run_id, cluster.ptc).plan

    assert plan.execution_id.startswith(red.plan.execution_id)
    assert newest.run_id != red.run_id
    assert plan.cache_strategy == "never"
