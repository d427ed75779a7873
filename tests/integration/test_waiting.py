"""Runs that wait in their queue for something that cannot be had just now."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support import make_plan, until

from ptc_contracts.keys import run_key
from ptc_contracts.progress import Progress
from ptc_contracts.result import CodeArtifact
from ptc_contracts.run import Run
from ptc_contracts.stages import Stage
from ptc_contracts.work import WorkStore
from roma_bridge.embedded import embedded_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ptc_contracts.stages import Unsent

DRAFT = CodeArtifact(file_path="app.py", content="x = 1", language="python")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WorkStore]:
    """An empty store."""
    with embedded_server(tmp_path) as settings:
        yield WorkStore.connect(settings)


def begun(store: WorkStore, run_id: str, stage: Stage, sending: int) -> Run:
    """Begin a stage as its message asks."""
    run = store.begin(run_id, stage, sending)
    assert isinstance(run, Run)
    return run


def swept(store: WorkStore) -> Unsent:
    """Sweep until a message is owed."""
    owed: list[Unsent] = []

    def found() -> bool:
        owed.extend(store.sweep().owed)
        return bool(owed)

    until(found)
    return owed[0]


def waiting(store: WorkStore) -> Run:
    """Hold a run that has a draft and is in the sandbox stage."""
    run_id = store.submit(make_plan()).run_id
    run = begun(store, run_id, Stage.GENERATE, 1)
    owed = store.hand_over(run, Stage.SANDBOX, Progress(draft=[DRAFT]))
    return begun(store, run_id, Stage.SANDBOX, owed.sending)


def test_a_run_that_is_deferred_fifty_times_was_begun_once(store: WorkStore) -> None:
    """Waiting is no sign that it kills its workers."""
    run = waiting(store)
    for _ in range(50):
        store.defer(run, 0, "no room")
        store.redis.delete("ptc:sweeps")  # the next sweep need not wait for its turn
        run = begun(store, run.run_id, Stage.SANDBOX, swept(store).sending)

    assert (run.starts, run.waited_for) == (1, "no room")


def test_who_waits_in_vain_is_told_for_what_and_keeps_its_files(store: WorkStore) -> None:
    """Nobody need begin it for that: it waits to its deadline at most, and a sweep ends it there."""
    run_id = store.submit(make_plan()).run_id
    store.redis.hset(run_key(run_id), "timeout_ms", 300)
    run = begun(store, run_id, Stage.GENERATE, 1)
    owed = store.hand_over(run, Stage.SANDBOX, Progress(draft=[DRAFT]))
    run = begun(store, run_id, Stage.SANDBOX, owed.sending)
    store.defer(run, 1000, "no sandbox can be had: the account is full")
    until(lambda: run_id in store.sweep().over)
    result = store.end_if_over(run_id, grace_ms=0)

    assert result is not None
    assert result.status == "TIMEOUT"
    assert result.error_message == (
        "timeout_seconds=0.3 ran out while it waited: no sandbox can be had: the account is full"
    )
    assert result.artifacts == [DRAFT]


def test_the_next_stage_has_waited_for_nothing(store: WorkStore) -> None:
    """What one stage could not have says nothing of another."""
    run = waiting(store)
    store.defer(run, 0, "no room")
    run = begun(store, run.run_id, Stage.SANDBOX, swept(store).sending)
    owed = store.hand_over(run, Stage.GENERATE, run.progress)

    assert begun(store, run.run_id, Stage.GENERATE, owed.sending).waited_for == ""
