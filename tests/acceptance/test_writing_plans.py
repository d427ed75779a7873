"""`ptc-enqueue` where plans are written, changed and checked: no server, no worker."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import pytest

from ptc_contracts import ExecutionStatus, PTCExecutionPlan
from ptc_contracts.run import RunState
from ptc_contracts.stages import Priority
from roma_bridge.cli.main import enqueue as command

if TYPE_CHECKING:
    from pathlib import Path

    from support import Enqueue

PLAN = '{"execution_id": "x", "scaffolding": {"task_description": "Count words"}}'


def test_a_sentence_becomes_a_plan_file(enqueue: Enqueue, tmp_path: Path) -> None:
    """Named after it, or as is asked; its name is all that standard output holds."""
    named = enqueue("--new", "Build a CLI that counts words")
    asked = enqueue(
        "--new", "Build it", "mine.json", "--set", "max_iterations=5", "--set", "primary_llm=kimi"
    )
    shown = enqueue("--new", "Build it", "-")

    plan = PTCExecutionPlan.model_validate_json((tmp_path / "build-a-cli-that-counts-words.json").read_text())
    mine = PTCExecutionPlan.model_validate_json((tmp_path / "mine.json").read_text())
    assert (named.returncode, named.stdout) == (0, "build-a-cli-that-counts-words.json\n")
    assert plan.scaffolding.task_description == "Build a CLI that counts words"
    assert (asked.stdout, mine.max_iterations, mine.primary_llm) == ("mine.json\n", 5, "kimi")
    assert json.loads(shown.stdout)["scaffolding"]["task_description"] == "Build it"


def test_the_command_that_is_hinted_at_can_be_typed(enqueue: Enqueue, tmp_path: Path) -> None:
    """Whatever the file's name; one that names a directory is refused, not shortened."""
    spaced = enqueue("--new", "Build it", "my plan.json")
    dashed = enqueue("--new", "Build it", "--", "-dash.json")
    folder = enqueue("--new", "Build it", "plans/")

    hints = [done.stderr.rpartition("then: ")[2] for done in (spaced, dashed)]
    assert hints == ["ptc-enqueue 'my plan.json'\n", "ptc-enqueue ./-dash.json\n"]
    assert [enqueue("--dry-run", *shlex.split(hint)[1:]).returncode for hint in hints] == [0, 0]
    assert (folder.returncode, folder.stdout, (tmp_path / "plans").exists()) == (7, "", False)
    assert "plans/ was not written: it names a directory" in folder.stderr


def test_a_plan_file_that_exists_is_kept(enqueue: Enqueue, tmp_path: Path) -> None:
    """Unless it is said that it may go."""
    (tmp_path / "mine.json").write_text("mine")
    refused, kept = enqueue("--new", "Build it", "mine.json"), (tmp_path / "mine.json").read_text()
    forced = enqueue("--new", "Build it", "mine.json", "--force")

    assert (refused.returncode, kept, forced.returncode) == (7, "mine", 0)
    assert "mine.json exists already: use --force to replace it" in refused.stderr


def test_fields_are_changed_before_a_plan_is_checked(enqueue: Enqueue) -> None:
    """JSON where the field takes more than text, text where it takes that; parts of objects too."""
    changes = [
        'scaffolding={"task_description": "Mend it", "context": "old"}',
        "execution_id=7",
        "max_iterations=5",
        'scaffolding.requirements=["fast"]',
        "scaffolding.context=null",
        "test_files.tests/test_a.py=def test_a(): pass",
        "metadata.who.name=[1]",
    ]
    options = [part for change in changes for part in ("--set", change)]
    done = enqueue("--new", "Build it", "-", *options)

    plan = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert (plan["execution_id"], plan["max_iterations"]) == ("7", 5)
    assert (plan["scaffolding"]["requirements"], plan["scaffolding"]["context"]) == (["fast"], None)
    assert plan["scaffolding"]["task_description"] == "Mend it"
    assert plan["test_files"] == {"tests/test_a.py": "def test_a(): pass"}
    assert plan["metadata"] == {"who": {"name": [1]}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("max_iteration=5", "a plan has no such field; did you mean max_iterations?"),
        ("description=x", "did you mean scaffolding.task_description?"),
        ("context=x", "did you mean scaffolding.context?"),
        ("zzz=1", "there are cache_strategy, cache_ttl,"),
        ("max_iterations.x=1", "max_iterations has no parts"),
        ("scaffolding.zzz=1", "a plan has no such field"),
        ("scaffolding=x", "standard input: scaffolding: Input should be an object"),
        ('scaffolding={"context": "x"}', "standard input: scaffolding.task_description: Field required"),
        ("max_iterations", "give it as FIELD=VALUE"),
        ("max_iterations=99", "standard input: max_iterations: Input should be less than or equal to 10"),
        ("max_iterations=many", "standard input: max_iterations: Input should be a valid integer"),
    ],
)
def test_a_change_that_does_not_fit_is_refused(enqueue: Enqueue, change: str, told: str) -> None:
    """With the names that are close."""
    done = enqueue("--dry-run", "--set", change, "-", stdin=PLAN)

    assert (done.returncode, told in done.stderr) == (2, True), done.stderr


def test_the_schema_is_the_contracts(enqueue: Enqueue) -> None:
    """For editors that complete plans."""
    assert json.loads(enqueue("--schema").stdout) == PTCExecutionPlan.model_json_schema()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_learns_to_complete(enqueue: Enqueue, shell: str) -> None:
    """The script asks the program, which knows options, their values, and commands."""
    script = enqueue("--completion", shell)
    asked = [
        enqueue(_PTC_ENQUEUE_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))
        for words in (
            "ptc-enqueue --dr",
            "ptc-enqueue ca",
            "ptc-enqueue cache inv",
            "ptc-enqueue --runs --state q",
        )
    ]

    assert (script.returncode, "_PTC_ENQUEUE_COMPLETE" in script.stdout) == (0, True)
    assert [done.stdout.strip() for done in asked] == [
        "plain,--dry-run",
        "plain,cache",
        "plain,invalidate",
        "plain,queued",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give PLANS: files, quoted globs, or - for standard input"),
        (("--runs", "--cancel", "x"), "--runs and --cancel exclude each other"),
        (("--state", "ended", "-"), "--state needs --runs"),
        (("--caller", "me", "-"), "--caller needs --cancel"),
        (("--cancel", "x", "--output", "y"), "--output and --cancel exclude each other"),
        (("--watch", "x", "plan.json"), "--watch and PLANS exclude each other"),
        (("--continue", "x", "plan.json"), "--continue and PLANS exclude each other"),
        (("--no-wait", "--output", "x", "-"), "--no-wait and --output exclude each other"),
        (("--dry-run", "--no-wait", "-"), "--no-wait and --dry-run exclude each other"),
        (("--new", "x", "a.json", "b.json"), "--new writes one file"),
        (("--jobs", "0", "-"), "0 is not in the range x>=1"),
        (("--priority", "urgent", "-"), "'urgent' is not one of 'high', 'normal', 'low'"),
        (("--runs", "--project", ""), "Invalid value for '--project': it must not be empty"),
        (("--runs", "--key", ""), "Invalid value for '--key': it must not be empty"),
        (("--bogus",), "No such option '--bogus'"),
        (("cache", "bogus"), "No such command 'bogus'"),
        (("cache", "warm"), "Missing argument"),
        (("--new", " "), "scaffolding.task_description cannot be empty"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    enqueue: Enqueue, arguments: tuple[str, ...], message: str
) -> None:
    """None of them is silently ignored."""
    done = enqueue(*arguments, stdin=PLAN)

    assert (done.returncode, message in done.stderr, done.stdout) == (2, True, ""), done.stderr


def test_the_values_that_options_offer_are_the_contracts() -> None:
    """They stand in the command line's own file, for --help must not wait for the contracts to be imported."""
    offered = {param.name: getattr(param.type, "choices", ()) for param in command.params}

    assert set(offered["state"]) == {state.value for state in RunState}
    assert {*offered["status"], "CACHE_HIT"} == {status.value for status in ExecutionStatus}
    assert set(offered["priority"]) == {priority.value for priority in Priority}


@pytest.mark.parametrize("task", [(), ("--dry-run",)])
def test_a_plan_that_is_too_large_is_named_before_anything_is_submitted(
    enqueue: Enqueue, tmp_path: Path, task: tuple[str, ...]
) -> None:
    """With its file and its line; no server is asked for, and the small plan beside it has to wait."""
    files = json.dumps({**json.loads(PLAN), "initial_files": {"a.py": "x" * 400_000}})
    (tmp_path / "big.jsonl").write_text(f"{PLAN}\n{PLAN.replace('Count', 'x' * 2**20)}\n{files}\n")
    (tmp_path / "small.json").write_text(PLAN)
    nowhere = {"REDIS_URL": "redis://127.0.0.1:1", "PTC_MAX_PAYLOAD_MB": "1"}
    done = enqueue(*task, "big.jsonl", "small.json", **nowhere)

    head, large, heavy = done.stderr.splitlines()
    assert (done.returncode, done.stdout, "not valid, so nothing was done" in head) == (2, "", True)
    assert large.startswith("  big.jsonl, line 2: plan: it has 1,049,")
    assert heavy.startswith("  big.jsonl, line 3: initial_files: they have 400,000 bytes")
