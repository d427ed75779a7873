"""`ptc-enqueue` from the outside: what it prints, writes, returns and leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from support import PATIENCE_SECONDS, answer_with, make_plan, replaying, until
from terminal import PROGRAM, lost_stream

from ptc_contracts import PTCArtifactResult
from roma_bridge.client import PTC
from roma_bridge.embedded import embedded_server

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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


def test_what_is_replayed_keeps_its_name(enqueue: Enqueue, tmp_path: Path) -> None:
    """Its files are below a folder of that name, and the table has it."""
    plan = json.loads((DEMO / "plan.json").read_text())
    lines = [json.dumps({**plan, "execution_id": name}) for name in ("one", "two")]
    done = enqueue(*LOCAL, "--output", "out", "-", stdin="\n".join(lines))

    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:3]] == ["one", "two"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one", "two"]


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
        (("--no-wait", "--timeout", "0", str(DEMO / "plan.json")), {}, 2, "--no-wait and --timeout exclude"),
        ((*LOCAL, "--no-wait", str(DEMO / "plan.json")), {}, 2, "exclude each other"),
        (
            (*LOCAL, str(DEMO / "plan.json")),
            {"PTC_SANDBOX": "moon"},
            2,
            "the worker ended: exit code 1: ptc-worker: PTC_SANDBOX",
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


@pytest.mark.parametrize("command", [(), ("cache", "warm")])
def test_a_time_that_is_no_number_is_refused(enqueue: Enqueue, command: tuple[str, ...]) -> None:
    """It would never be over."""
    done = enqueue(*command, "--timeout", "nan", str(DEMO / "plan.json"))

    assert (done.returncode, "'nan' is not a number of seconds" in done.stderr) == (2, True)


def test_settings_that_are_no_text_are_named(enqueue: Enqueue, tmp_path: Path) -> None:
    """Windows writes UTF-16."""
    (tmp_path / ".env").write_text("PTC_EXPIRES=5", encoding="utf-16")
    done = enqueue("--dry-run", str(DEMO / "plan.json"))

    assert (done.returncode, done.stderr) == (2, "ptc-enqueue: .env cannot be read: it is not UTF-8\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("-",), "'-': standard input is closed"), (("cache", "clear"), "elsewhere it needs --yes")],
)
def test_a_closed_standard_input_is_named(
    tmp_path: Path, user: Mapping[str, str], arguments: tuple[str, ...], told: str
) -> None:
    """As a shell's `<&-` leaves it."""
    done = _without("<&-", tmp_path, user, *arguments)

    assert (done.returncode, told in done.stderr) == (2, True), done.stderr


def test_a_closed_standard_error_hears_nothing_and_stops_nothing(
    tmp_path: Path, user: Mapping[str, str]
) -> None:
    """As a shell's `2>&-` leaves it: there is nowhere to draw."""
    done = _without("2>&-", tmp_path, {**user, "TERM": "xterm"}, *LOCAL, str(DEMO / "plan.json"))

    assert (done.returncode, "SUCCESS in" in done.stdout) == (0, True), done.stdout


@pytest.mark.parametrize(
    ("arguments", "code"), [(("--help",), 141), (("--schema",), 141), (("no-such.json",), 2)]
)
def test_a_closed_standard_output_is_told_where_something_was_to_be_printed(
    tmp_path: Path, user: Mapping[str, str], arguments: tuple[str, ...], code: int
) -> None:
    """As a shell's `>&-` leaves it."""
    assert _without(">&-", tmp_path, user, *arguments).returncode == code


def test_a_closed_standard_output_loses_no_files(tmp_path: Path, user: Mapping[str, str]) -> None:
    """Only the summary."""
    done = _without(">&-", tmp_path, user, *LOCAL, "--output", "out", str(DEMO / "plan.json"))

    assert (done.returncode, (tmp_path / "out" / "ledger" / "parse.py").exists()) == (141, True), done.stderr


@pytest.mark.parametrize(
    ("how", "code", "told"),
    [
        ("closed", 141, ""),
        ("full", 7, "ptc-enqueue: standard output cannot be written: No space left on device\n"),
    ],
)
def test_a_lost_standard_output_is_no_traceback(
    tmp_path: Path, user: Mapping[str, str], how: str, code: int, told: str
) -> None:
    """It is left, as by `head`, or full; the exit code says that not all was read."""
    commands = [("--help",), ("--schema",), ("--runs",), ("cache", "stats")]
    with (
        embedded_server(tmp_path / "server", dies_with_us=True) as settings,
        lost_stream(how) as lost,
    ):
        PTC(settings).submit(make_plan())
        environment = {**user, "REDIS_URL": settings.url}
        done = [_ended(command, environment, stdout=lost, stderr=subprocess.PIPE) for command in commands]

    assert done == [(code, told)] * len(commands)


@pytest.mark.parametrize("how", ["closed", "full"])
def test_a_lost_standard_error_changes_nothing(user: Mapping[str, str], how: str) -> None:
    """Neither the exit code nor what is printed: what is said there only goes with it."""
    with lost_stream(how) as lost:
        done = _ended(("no-such.json",), user, stdout=subprocess.PIPE, stderr=lost)

    assert done == (2, None)


def _ended(
    command: Sequence[str], environment: Mapping[str, str], stdout: int, stderr: int
) -> tuple[int, str | None]:
    """Run a command with these streams; return its exit code and what it said on standard error."""
    done = subprocess.run(
        [PROGRAM, *command],
        env=environment,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        stdout=stdout,
        stderr=stderr,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", [("plan.json",), ("cache", "stats"), ("dead", "list")])
def test_an_interrupt_is_told_alike_from_the_start(
    tmp_path: Path, user: Mapping[str, str], command: tuple[str, ...]
) -> None:
    """Also while the command still reads its settings."""
    settings = tmp_path / ".env"
    os.mkfifo(settings)
    with (
        subprocess.Popen([PROGRAM, *command], cwd=tmp_path, env=user, stderr=subprocess.PIPE) as process,
        settings.open("r+b", buffering=0),  # so that whoever reads it waits for more
    ):
        until(lambda: settings in _open_files(process))
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=PATIENCE_SECONDS)[1]

    assert (process.returncode, told) == (130, b"ptc-enqueue: interrupted\n")


def _open_files(process: subprocess.Popen[bytes]) -> set[Path]:
    return {file.resolve() for file in Path(f"/proc/{process.pid}/fd").iterdir()}


def _without(
    stream: str, folder: Path, user: Mapping[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run the program with one of its streams closed."""
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {stream}', "sh", PROGRAM, *arguments],
        cwd=folder,
        env=user,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def test_names_do_nothing_to_a_terminal(enqueue: Enqueue, tmp_path: Path) -> None:
    """Neither a file's nor those in it: they are told without control characters, and forge no line."""
    evil = "a\x1b]0;title\x07\nforged\x9b2J.json"
    (tmp_path / evil).write_text((DEMO / "plan.json").read_text())
    (tmp_path / f"not-{evil}").write_text(json.dumps({"\x1b[2Jforged": "\x1b[2J", "test_files": {evil: 1}}))
    valid = enqueue("--dry-run", evil, REDIS_URL="redis://127.0.0.1:1")
    broken = enqueue("--dry-run", f"not-{evil}")

    assert (valid.returncode, broken.returncode) == (0, 2)
    assert valid.stdout.startswith("a forged.json: a valid plan\n")
    told = [valid.stdout, broken.stderr]
    assert [text for text in told if any(mark in text for mark in ("\x1b", "\x9b", "\nforged"))] == []
    assert {line.split(":")[0] for line in broken.stderr.splitlines()[1:]} == {"  not-a forged.json"}


def test_a_worker_that_cannot_start_leaves_nothing_for_the_next_one(enqueue: Enqueue) -> None:
    """The run would begin with the next --local, whatever that is for; it can be submitted again at once."""
    wrong = [enqueue("--local", str(DEMO / "plan.json"), PTC_SANDBOX="moon") for _ in range(2)]
    batch = enqueue("--local", str(DEMO / "plan.json"), "-", stdin=_OTHER, PTC_SANDBOX="moon")
    runs = json.loads(enqueue("--local", "--runs", "--json").stdout)

    assert [done.returncode for done in (*wrong, batch)] == [2, 2, 2]
    assert [(run["state"], run["status"]) for run in runs] == [("ended", "FAILURE")] * len(runs)
    assert len(runs) >= 3


_OTHER = '{"execution_id": "other", "scaffolding": {"task_description": "Another thing"}}'


def test_a_timeout_of_the_caller_is_none_of_the_plan(enqueue: Enqueue, tmp_path: Path) -> None:
    """Its exit code differs from the plan's own TIMEOUT."""
    slow = enqueue(*LOCAL, "--timeout", "0", str(DEMO / "plan.json"))

    assert slow.returncode == 6
    assert "has not ended in the time given; it ended with its server, as a replay's do" in slow.stderr
    assert _left_running(tmp_path) == []


def test_a_cache_that_was_warmed_here_answers_here(enqueue: Enqueue, tmp_path: Path) -> None:
    """`--local` keeps its server's data: the next command finds what was warmed, and asks no model."""
    plan = make_plan("Add two numbers", execution_id="first")
    again = plan.model_copy(update={"execution_id": "second"})
    with replaying((plan, [answer_with(tests__test_it_py="def test_it():\n    pass")])) as replay:
        environment = {"ANTHROPIC_BASE_URL": replay.url, "ANTHROPIC_API_KEY": "made-up"}
        warmed = enqueue("cache", "warm", "-", "--local", stdin=plan.model_dump_json(), **environment)
        answered = enqueue("--local", "--json", "-", stdin=again.model_dump_json(), **environment)

    assert (warmed.returncode, "1 of 1 plans are warm" in warmed.stdout) == (0, True), warmed.stderr
    assert PTCArtifactResult.model_validate_json(answered.stdout).status == "CACHE_HIT"
    assert (len(replay.journal), _left_running(tmp_path)) == (1, [])


@pytest.mark.parametrize(
    ("signum", "options", "told"),
    [
        (signal.SIGINT, LOCAL, "ended with its server"),
        (signal.SIGTERM, LOCAL, "ended with its server"),
        (signal.SIGINT, ("--local",), "is left for the next --local"),
    ],
)
def test_an_interrupt_cleans_up(
    tmp_path: Path, user: Mapping[str, str], signum: signal.Signals, options: tuple[str, ...], told: str
) -> None:
    """Server, worker, replay server and their files are gone, and what becomes of the run is told."""
    process = subprocess.Popen(
        [PROGRAM, *options, str(DEMO / "plan.json")],
        cwd=tmp_path,
        env={**user, "TMPDIR": str(tmp_path), "ANTHROPIC_BASE_URL": "http://127.0.0.1:9"},  # nobody answers
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    first_line = process.stderr.readline()
    process.send_signal(signum)
    rest = process.stderr.read()
    process.stderr.close()

    assert (process.wait(), "submitted" in first_line) == (130, True)
    assert f"interrupted: {first_line.split('] ')[1].split(':')[0]} {told}" in rest
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
