"""Sandboxes that die under the tests they run: our fault, not the draft's."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import psutil
import pytest
from support import PATIENCE_SECONDS, answer_with, until

from ptc_contracts import ExecutionStatus

if TYPE_CHECKING:
    from cluster import Cluster

SLOW = """
import subprocess
def test_slow():
    subprocess.run(["sleep", "{marker}"], check=True)
"""


def sandbox_of(worker: int, marker: str) -> psutil.Process | None:
    """Find the worker's child below which a command with this marker runs."""
    for child in psutil.Process(worker).children():
        try:
            if any(marker in process.cmdline() for process in child.children(recursive=True)):
                return child
        except psutil.NoSuchProcess:
            continue
    return None


@pytest.mark.parametrize(
    ("lost", "status"), [(1, ExecutionStatus.SUCCESS), (2, ExecutionStatus.PARTIAL_SUCCESS)]
)
def test_a_sandbox_that_dies_costs_no_iteration(cluster: Cluster, lost: int, status: ExecutionStatus) -> None:
    """The tests run in another one; if that dies too, they count as not run, and no model is asked again."""
    marker = f"3.{uuid4().int % 10**9:09}"
    plan = cluster.record([answer_with(tests__test_slow_py=SLOW.format(marker=marker))], max_iterations=3)
    handle = cluster.ptc.submit(plan)
    (worker,) = cluster.workers
    for _ in range(lost):
        until(lambda: sandbox_of(worker.process.pid, marker))
        box = sandbox_of(worker.process.pid, marker)
        assert box is not None
        box.kill()
        box.wait()
    result = handle.get(timeout=PATIENCE_SECONDS)

    assert (result.status, result.iterations_used, cluster.calls_for(plan)) == (status, 1, 1)
    told = [test["outcome"] for test in result.metadata.get("tests", [])]
    assert told == (["passed"] if status is ExecutionStatus.SUCCESS else [])
    assert ("the tests were not run" in (result.error_message or "")) is (lost == 2)
    assert worker.log.read_text().count("sandbox_failed") >= lost
