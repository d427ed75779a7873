"""`ptc-daytona-snapshot`, as a user runs it, against the loopback Daytona."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import httpx
import pytest
import structlog
from click.testing import CliRunner
from daytona_faults import Fault
from daytona_server import KEY, SNAPSHOT, DaytonaServer
from packaging.requirements import Requirement
from support import PATIENCE_SECONDS, until

from ptc_worker.dependencies import import_table
from ptc_worker.environments import BASE_REQUIREMENTS
from ptc_worker.sandbox.snapshots import USUAL, snapshot
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = str(Path(sys.executable).with_name("ptc-daytona-snapshot"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DaytonaServer]:
    """A Daytona without sandboxes."""
    with DaytonaServer(WorkerSettings(ptc_cache_dir=tmp_path), tmp_path, events=False) as running:
        yield running


def hear_interrupts() -> None:
    """Take interrupts, also where these tests were started beside other work, and themselves do not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def of_its_own(folder: Path, variables: dict[str, str]) -> dict[str, str]:
    """Give the program these variables, and of ours only what it cannot do without."""
    kept = {name: os.environ[name] for name in ("PATH", "SSL_CERT_FILE") if name in os.environ}
    return {**kept, "HOME": str(folder), **variables}


def started(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start the program in a folder, with these variables and nothing else of ours."""
    return subprocess.Popen(
        [PROGRAM, *arguments],
        cwd=folder,
        env=of_its_own(folder, variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,  # noqa: PLW1509 it calls nothing that may hold a lock
    )


def run(folder: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """Run it to its end as `main` does, but in this process: its SDK takes seconds to load; give exit code, output, errors."""
    logging = structlog.get_config()
    with patch.dict(os.environ, of_its_own(folder, variables), clear=True), chdir(folder):
        try:
            ended = CliRunner(catch_exceptions=False).invoke(snapshot, arguments)
        finally:
            structlog.configure(**logging)
    return ended.exit_code, ended.stdout, ended.stderr


def account(server: DaytonaServer) -> dict[str, str]:
    """The variables that lead to a server."""
    return {"DAYTONA_API_URL": server.url, "DAYTONA_API_KEY": KEY}


def registered(server: DaytonaServer, name: str) -> dict[str, Any]:
    """Ask the server what it knows of a snapshot."""
    key = {"Authorization": f"Bearer {KEY}"}
    facts: dict[str, Any] = httpx.get(f"{server.url}/snapshots/{name}", headers=key).raise_for_status().json()
    return facts


def test_a_snapshot_is_built_and_registered(server: DaytonaServer, tmp_path: Path) -> None:
    """Under the name that workers look for, with room for what tests may hold; the build is shown beside the output."""
    with started(tmp_path, "--json", "--with", "django>=5", "--node", **account(server)) as program:
        output, errors = program.communicate(timeout=PATIENCE_SECONDS)
    known = registered(server, "ptc-sandbox")
    steps = known["buildInfo"]["dockerfileContent"]

    assert program.returncode == 0
    assert json.loads(output)["id"] == known["id"]
    assert (known["state"], known["cpu"], known["mem"], known["disk"]) == ("active", 1, 2, 3)
    assert all(Requirement(package).name in steps for package in (*BASE_REQUIREMENTS, *USUAL, "django"))
    assert "/usr/local/bin/node" in steps
    assert "Step 1/1" in errors


def test_one_that_is_there_is_replaced_only_by_force(server: DaytonaServer, tmp_path: Path) -> None:
    """Otherwise it stays as it is, and that is told; with force its name is free before another one gets it."""
    before = registered(server, SNAPSHOT)
    refused, _, told = run(tmp_path, "--name", SNAPSHOT, **account(server))
    after_refusal = registered(server, SNAPSHOT)
    server.order(Fault(where="snapshot.delete", how="bad-gateway"))
    replaced, output, _ = run(
        tmp_path, "--force", "--memory", "4", PTC_DAYTONA_SNAPSHOT=SNAPSHOT, **account(server)
    )
    after = registered(server, SNAPSHOT)

    assert (refused, replaced) == (3, 0)
    assert "--force" in told
    assert before == after_refusal
    assert (after["mem"], after["id"] == before["id"]) == (4, False)
    assert output == f"{SNAPSHOT} is registered\n"


def test_settings_are_read_from_the_working_directory(server: DaytonaServer, tmp_path: Path) -> None:
    """From .env, as other programs of ours do; the environment goes before."""
    (tmp_path / ".env").write_text(f"DAYTONA_API_KEY=other\nDAYTONA_API_URL={server.url}\n")
    code, _, _ = run(tmp_path, DAYTONA_API_KEY=KEY)

    assert code == 0


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        (Fault(where="snapshot.create", how="error-state"), 1, "the build failed"),
        (Fault(where="snapshot.get", how="unauthorized"), 4, "DAYTONA_API_KEY"),
        (Fault(where="snapshot.create", how="quota"), 4, "limit exceeded"),
        (Fault(where="snapshot.get", how="unavailable", times=None), 5, "unavailable"),
    ],
    ids=lambda value: value.how if isinstance(value, Fault) else "",
)
def test_what_went_wrong_is_told(
    server: DaytonaServer, tmp_path: Path, fault: Fault, code: int, told: str
) -> None:
    """By the exit code and in one line; the key is not in it."""
    server.order(fault)
    ended, output, errors = run(tmp_path, **account(server))

    assert (ended, output) == (code, "")
    assert told in errors
    assert KEY not in errors


@pytest.mark.parametrize("how", ["bad-gateway", "reset"])
def test_a_build_goes_on_where_an_answer_is_lost(server: DaytonaServer, tmp_path: Path, how: str) -> None:
    """Whether it was to the request itself or to a look at it; nothing is built twice."""
    server.order(
        Fault(where="snapshot.create", how=how, done=True), Fault(where="snapshot.get", how=how, after=2)
    )
    code, _, _ = run(tmp_path, **account(server))

    assert code == 0
    assert sum("POST" in request and "snapshots" in request for request in server.requests) == 1


def test_it_needs_a_key(tmp_path: Path) -> None:
    """The message names the variable."""
    code, _, errors = run(tmp_path)

    assert code == 2
    assert "DAYTONA_API_KEY" in errors


def test_an_interrupt_ends_it(server: DaytonaServer, tmp_path: Path) -> None:
    """Without a trace of where it was."""
    server.order(Fault(where="snapshot.create", how="hang"))
    with started(tmp_path, **account(server)) as program:
        until(lambda: any("POST" in request for request in server.requests))
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=PATIENCE_SECONDS)

    assert program.returncode == 130
    assert "Traceback" not in errors


def test_a_dry_run_asks_for_nothing(tmp_path: Path) -> None:
    """It prints what would be built, and needs no key."""
    code, output, _ = run(
        tmp_path, "--dry-run", "--python", "3.13", "--only", "numpy", DAYTONA_API_URL="http://127.0.0.1:9"
    )

    assert code == 0
    assert output.startswith("FROM python:3.13-slim-bookworm\n")
    assert "numpy" in output
    assert "pandas" not in output


def test_the_usual_packages_are_among_those_that_drafts_may_use() -> None:
    """The table that workers install from knows each of them, by this name."""
    assert set(USUAL) - set(import_table().values()) == set()
