"""`ptc-enqueue --local` on what an earlier one left with its server: looked at without a worker."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import pytest
from support import PATIENCE_SECONDS, make_plan

from ptc_contracts import ExecutionStatus
from ptc_contracts.blobs import Blobs
from ptc_contracts.listing import list_runs
from ptc_contracts.progress import StopReason
from ptc_contracts.run import Run
from ptc_contracts.stages import Stage
from ptc_contracts.work import WorkStore
from roma_bridge.embedded import embedded_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support import Enqueue

PLAN = make_plan(cache_strategy="never")


@pytest.fixture
def work(tmp_path: Path, user: object) -> Iterator[WorkStore]:  # noqa: ARG001 whose home must be there
    """The records of that user's own server."""
    with embedded_server(tmp_path / "home" / ".local" / "state" / "ptc") as settings:
        yield WorkStore.connect(settings, Blobs(), patience=PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("asked", "hinted"),
    [(("--result",), "--watch"), (("--dry-run", "--continue"), "--cancel")],
    ids=["result", "continue"],
)
def test_a_run_that_was_left_is_not_said_to_go_on(
    enqueue: Enqueue, work: WorkStore, asked: tuple[str, ...], hinted: str
) -> None:
    """No worker is there; the command that is hinted at reaches the same server."""
    run_id = work.submit(PLAN).run_id
    done = enqueue("--local", *asked, run_id)

    command = shlex.split(done.stderr.rpartition(": ")[2])
    assert (done.returncode, "goes on" in done.stderr) == (6, False)
    assert command == ["ptc-enqueue", "--local", hinted, run_id]


def test_a_command_that_does_not_wait_any_longer_says_how_to_go_on(enqueue: Enqueue, work: WorkStore) -> None:
    """With the worker of the next --local: this one's ends."""
    done = enqueue("--local", "--timeout", "0", "-", stdin=PLAN.model_dump_json())

    (run,) = list_runs(work.redis).runs
    assert (done.returncode, "goes on" in done.stderr) == (6, False)
    assert f"to go on with it: ptc-enqueue --local --watch {run.run_id}" in done.stderr


def test_a_run_that_was_given_up_here_is_reached_here(enqueue: Enqueue, work: WorkStore) -> None:
    """It is listed, shown, and sent again for the next --local."""
    run_id = work.submit(PLAN).run_id
    run = work.begin(run_id, Stage.GENERATE, 1)
    assert isinstance(run, Run)
    work.finish(
        run,
        ExecutionStatus.FAILURE,
        error_message="it kills its workers",
        given_up=True,
        stop_reason=StopReason.NO_ANSWER,
    )
    listed = json.loads(enqueue("dead", "list", "--local", "--json").stdout)
    shown = enqueue("dead", "show", "--local", run_id)
    again = enqueue("dead", "retry", "--local", run_id)

    assert [each["run_id"] for each in listed] == [run_id]
    assert "it kills its workers" in shown.stdout
    assert f"ptc-enqueue --local --watch {again.stdout.strip()}\n" in again.stderr
    assert work.status(again.stdout.strip()).state == "queued"
