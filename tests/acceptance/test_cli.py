"""`ptc-enqueue` from the outside: what it prints, writes, returns and leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from support import answer_with, make_plan, replaying

from ptc_contracts import PTCArtifactResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from support import Enqueue

DEMO = Path(__file__).parents[2] / "deploy" / "demo"
LOCAL = ("--local", "--replay", str(DEMO))


def test_one_command_does_the_whole_job(enqueue: Enqueue, tmp_path: Path) -> None:
    """Server, worker and models come up, the first draft is red, the second green, the files are there."""
    done = enqueue(*LOCAL, str(DEMO / "plan.json"))

    (folder,) = tmp_path.glob("c6df9d094cb6b702-*")
    assert done.returncode == 0, done.stderr
    assert "iteration 1: failed: 5 passed, 4 failed" in done.stderr
    assert "iteration 2: passed: 9 passed, 0 failed" in done.stderr
    assert "SUCCESS in" in done.stdout
    assert f"files     5 in {folder.name}/" in done.stdout
    assert "replay/claude-sonnet-5-5" in done.stdout
    assert (folder / "ledger" / "summary.py").read_text().count("reverse=True") == 1
    assert _left_running(tmp_path) == []


def test_colours_are_for_terminals(enqueue: Enqueue) -> None:
    """A pipe gets plain text."""
    done = enqueue(str(DEMO / "none.json"))

    assert "\x1b" not in done.stderr + done.stdout


def test_json_prints_the_result_and_nothing_else(enqueue: Enqueue, tmp_path: Path) -> None:
    """Standard output is one document; files are written only on request."""
    done = enqueue(*LOCAL, "--json", "-", stdin=(DEMO / "plan.json").read_text())

    result = PTCArtifactResult.model_validate_json(done.stdout)
    assert (done.returncode, result.status, len(result.artifacts)) == (0, "SUCCESS", 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_existing_files_are_kept_unless_forced(enqueue: Enqueue, tmp_path: Path) -> None:
    """The message names the file and the way out; the exit code is its own."""
    (tmp_path / "out" / "ledger").mkdir(parents=True)
    (tmp_path / "out" / "ledger" / "parse.py").write_text("mine")
    arguments = (*LOCAL, "--output", "out", str(DEMO / "plan.json"))

    refused, kept = enqueue(*arguments), (tmp_path / "out" / "ledger" / "parse.py").read_text()
    forced = enqueue(*arguments, "--force")

    assert (refused.returncode, kept, forced.returncode) == (7, "mine", 0)
    assert "parse.py exists already: use --force" in refused.stderr


def test_a_missing_provider_is_named_with_its_variables(enqueue: Enqueue) -> None:
    """Nobody is asked, nothing is replayed in secret."""
    done = enqueue("--local", str(DEMO / "plan.json"))

    assert done.returncode == 3
    assert "set ANTHROPIC_API_KEY or ANTHROPIC_BASE_URL for claude" in done.stdout
    assert "KIMI_API_KEY or KIMI_BASE_URL for kimi" in done.stdout


def test_a_plan_that_ended_a_short_while_ago_is_not_said_to_be_submitted(enqueue: Enqueue) -> None:
    """Whoever has mended what was wrong learns why the old result comes, and how to get a new one."""
    first, again = (enqueue("--local", str(DEMO / "plan.json")) for _ in range(2))

    assert (first.returncode, again.returncode) == (3, 3)
    assert ": submitted" in first.stderr
    assert ": submitted" not in again.stderr
    assert "give the plan another one for a new run" in again.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ["plan: Invalid JSON"]),
        ("[]", ["plan: Input should be an object"]),
        ("{}", ["execution_id: Field required", "scaffolding: Field required"]),
        (
            json.dumps(
                {
                    "execution_id": "x",
                    "scaffolding": {"task_description": "x", "requirements": ["a", 2]},
                    "max_iterations": 99,
                    "primary_llm": "gpt",
                    "test_files": {"/x.py": ""},
                }
            ),
            [
                "scaffolding.requirements[1]: Input should be a valid string",
                "max_iterations: Input should be less than or equal to 10",
                "primary_llm: Input should be 'claude', 'kimi', 'openai' or 'openrouter'",
                " test_files: '/x.py' is not allowed: it is absolute",
            ],
        ),
        (
            '{"execution_id": "x", "scaffolding": {"task_description": " "}}',
            ["scaffolding.task_description cannot be empty"],
        ),
    ],
)
def test_an_invalid_plan_gets_every_error_with_its_field(
    enqueue: Enqueue, text: str, told: list[str]
) -> None:
    """Before anything is started or reached."""
    done = enqueue("-", stdin=text)

    assert done.returncode == 2
    assert [line for line in told if line not in done.stderr] == []
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "message"),
    [
        (("no-such.json",), {}, 2, "'no-such.json': No such file or directory"),
        (
            (str(DEMO / "plan.json"),),
            {"REDIS_URL": "redis://127.0.0.1:1"},
            5,
            "Redis at redis://127.0.0.1:1 cannot be reached",
        ),
        ((str(DEMO / "plan.json"),), {"REDIS_PORT": "many"}, 2, "REDIS_PORT must be a whole number"),
        (
            ("--local", str(DEMO / "plan.json")),
            {"XDG_STATE_HOME": "/proc/nowhere"},
            2,
            "/proc/nowhere/ptc, where the embedded server keeps its data, cannot be used",
        ),
        (("--replay", str(DEMO), str(DEMO / "plan.json")), {}, 2, "--replay needs --local"),
        (("--jobs", "2", str(DEMO / "plan.json")), {}, 2, "--jobs needs --warm"),
        (("--warm", "-", "--output", "x"), {}, 2, "--warm and --output exclude each other"),
        (("--warm", "-", "--local", "--replay", str(DEMO)), {}, 2, "--warm and --replay exclude each other"),
        (("--warm", "-"), {}, 2, "there is none"),
        ((*LOCAL, "--no-wait", str(DEMO / "plan.json")), {}, 2, "exclude each other"),
        (
            (*LOCAL, str(DEMO / "plan.json")),
            {"PTC_SANDBOX": "moon"},
            2,
            "the worker ended: ptc-worker: PTC_SANDBOX",
        ),
        (
            ("--local", "--replay", str(DEMO / "answer-1.md"), str(DEMO / "plan.json")),
            {},
            2,
            "cannot be read",
        ),
    ],
)
def test_what_is_wrong_is_said_with_a_way_out(
    enqueue: Enqueue, arguments: tuple[str, ...], environment: dict[str, str], code: int, message: str
) -> None:
    """A message and an exit code, no traceback."""
    done = enqueue(*arguments, **environment)

    assert (done.returncode, message in done.stderr, "Traceback" in done.stderr) == (code, True, False), (
        done.stderr
    )


def test_a_timeout_of_the_caller_leaves_the_run_going(enqueue: Enqueue, tmp_path: Path) -> None:
    """Its exit code differs from the plan's own TIMEOUT."""
    slow = enqueue(*LOCAL, "--timeout", "0", str(DEMO / "plan.json"))

    assert slow.returncode == 6
    assert "it goes on" in slow.stderr
    assert _left_running(tmp_path) == []


def test_a_cache_that_was_warmed_here_answers_here(enqueue: Enqueue, tmp_path: Path) -> None:
    """`--local` keeps its server's data: the next command finds what was warmed, and asks no model."""
    plan = make_plan("Add two numbers", execution_id="first")
    again = plan.model_copy(update={"execution_id": "second"})
    with replaying((plan, [answer_with(tests__test_it_py="def test_it():\n    pass")])) as replay:
        environment = {"ANTHROPIC_BASE_URL": replay.url, "ANTHROPIC_API_KEY": "made-up"}
        warmed = enqueue("--warm", "-", "--local", stdin=plan.model_dump_json(), **environment)
        answered = enqueue("--local", "--json", "-", stdin=again.model_dump_json(), **environment)

    assert (warmed.returncode, "1 of 1 plans are warm" in warmed.stdout) == (0, True), warmed.stderr
    assert PTCArtifactResult.model_validate_json(answered.stdout).status == "CACHE_HIT"
    assert (len(replay.journal), _left_running(tmp_path)) == (1, [])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_cleans_up(tmp_path: Path, user: Mapping[str, str], signum: signal.Signals) -> None:
    """Server, worker, replay server and their files are gone."""
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("ptc-enqueue")), *LOCAL, str(DEMO / "plan.json")],
        cwd=tmp_path,
        env={**user, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    first_line = process.stderr.readline()
    process.send_signal(signum)
    rest = process.stderr.read()
    process.stderr.close()

    assert (process.wait(), "submitted" in first_line, "interrupted" in rest) == (130, True, True)
    assert _left_running(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_help_lists_options_and_exit_codes(enqueue: Enqueue) -> None:
    """What a script needs to know is in --help."""
    text = enqueue("--help").stdout

    assert [
        word
        for word in ("--output", "--no-wait", "--json", "--local", "130", "PARTIAL_SUCCESS")
        if word not in text
    ] == []


def _left_running(home: Path) -> list[str]:
    """Name every process that was started below a test's directory and still runs."""
    return [
        " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["cmdline", "environ", "status"])
        if process.pid != os.getpid()
        and process.info["status"] != psutil.STATUS_ZOMBIE
        and (process.info["environ"] or {}).get("HOME") == str(home / "home")
    ]
