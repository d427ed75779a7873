"""One run, followed by many: what each of them sees is the same."""

from __future__ import annotations

import asyncio
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from cluster import cluster_in
from support import PATIENCE_SECONDS, answer_with
from terminal import PROGRAM, run

from roma_bridge import PlanHandle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cluster import Cluster

DRAFT = answer_with(
    add_py="def add(a, b):\n    return a - b",
    tests__test_add_py="from add import add\n\ndef test_add():\n    assert add(1, 2) == 3",
)
MENDED = DRAFT.replace("a - b", "a + b")


@pytest.fixture
def at_work(tmp_path: Path, cache: Path) -> Iterator[Cluster]:
    """A cluster whose model takes its time."""
    with cluster_in(tmp_path, cache) as running:
        running.replay.chunk_chars, running.replay.chunk_seconds = 20, 0.1
        running.start_worker()
        yield running


def lines(shown: str) -> list[str]:
    """Take the times and the submission off what `--watch` shows."""
    return [re.sub(r"^\[ *[\d.]+ s\] ", "", line) for line in shown.splitlines()[1:]]


def test_all_who_follow_a_run_see_the_same(at_work: Cluster, tmp_path: Path) -> None:
    """From Python, with and without an event loop, and at terminals: at once, late, killed and started again."""
    handle = at_work.ptc.submit(at_work.record([DRAFT, MENDED]))
    watch = ("--watch", handle.run_id)

    def follow() -> list[str]:
        return [message.id for message in handle.events(timeout=PATIENCE_SECONDS)]

    async def follow_elsewhere() -> list[str]:
        other = PlanHandle.of(handle.run_id, at_work.ptc)
        return [message.id async for message in other.events(timeout=PATIENCE_SECONDS)]

    killed = subprocess.Popen(
        [PROGRAM, *watch], env=at_work.environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with ThreadPoolExecutor() as pool:
        python = [pool.submit(follow), pool.submit(lambda: asyncio.run(follow_elsewhere()))]
        at_once = pool.submit(run, tmp_path, at_work.environment, *watch)
        assert killed.stderr is not None
        assert any("a model writes" in line for line in killed.stderr)
        killed.kill()
        killed.communicate(timeout=PATIENCE_SECONDS)
        again = pool.submit(run, tmp_path, at_work.environment, *watch)
        ids = [future.result() for future in python]
    late = run(tmp_path, at_work.environment, *watch)
    terminals = [future.result() for future in (at_once, again)] + [late]

    assert ids[0] == ids[1]
    assert [terminal.returncode for terminal in terminals] == [0, 0, 0]
    assert len({terminal.stdout for terminal in terminals}) == 1
    seen = [lines(terminal.stderr) for terminal in terminals]
    assert seen[0] == seen[1] == seen[2]
    assert "iteration 1: failed: 0 passed, 1 failed" in seen[0]
    assert "iteration 2: passed: 1 passed, 0 failed" in seen[0]
