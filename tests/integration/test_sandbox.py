"""The local sandbox ends with its worker, and runs nothing that it cannot keep in."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from support import answer_with, until

from ptc_contracts import ExecutionStatus

if TYPE_CHECKING:
    from pathlib import Path

    from cluster import Cluster


def test_a_worker_that_is_killed_takes_its_sandboxes_along(tmp_path: Path) -> None:
    """What it was running dies with it."""
    marker = "31339.25"
    script = (
        "from ptc_worker.sandbox.kinds.local import opened as open_sandbox; from ptc_worker.settings import WorkerSettings\n"
        "from ptc_worker.environments import environment; from ptc_worker.halt import Halt\n"
        "s = WorkerSettings()\n"
        "with environment(s, (), 120, Halt()) as folder, open_sandbox(s, folder) as box:\n"
        f"    box.exec(['/bin/sh', '-c', 'echo; setsid sleep {marker}'], env={{'PATH': '/usr/bin:/bin'}}, cwd='.', timeout=99)\n"
    )
    worker = psutil.Popen([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)})
    until(lambda: survivors(marker) != [])

    worker.send_signal(signal.SIGKILL)
    worker.wait()

    until(lambda: survivors(marker) == [])


def survivors(marker: str) -> list[int]:
    """Find processes that carry a marker in their command line."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if marker in (p.info["cmdline"] or [])]


@pytest.mark.parametrize(
    ("allowed", "status", "told"),
    [
        ("", ExecutionStatus.PARTIAL_SUCCESS, "set PTC_SANDBOX_ALLOW_UNISOLATED=1"),
        ("1", ExecutionStatus.SUCCESS, "without isolation"),
    ],
)
def test_nothing_runs_without_isolation_unless_it_is_allowed(
    empty_cluster: Cluster, allowed: str, status: ExecutionStatus, told: str
) -> None:
    """The refusal says how to allow it; what was allowed is said in every result."""
    settings = {"PTC_SANDBOX_ISOLATION": "none", "PTC_SANDBOX_ALLOW_UNISOLATED": allowed}
    empty_cluster.start_worker(environment={**empty_cluster.environment, **settings})
    result = empty_cluster.run([answer_with(tests__test_it_py="def test_it():\n    pass")])

    assert (result.status, result.iterations_used) == (status, 1)
    assert told in " ".join([result.error_message or "", *result.warnings])
    assert result.metadata.get("isolation") == ("none" if allowed else None)
