"""The local sandbox ends with its worker."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import psutil
from support import until

if TYPE_CHECKING:
    from pathlib import Path


def test_a_worker_that_is_killed_takes_its_sandboxes_along(tmp_path: Path) -> None:
    """The supervisor notices the death of its parent."""
    marker = "31339.25"
    script = (
        "from ptc_worker.sandbox import open_sandbox; from ptc_worker.settings import WorkerSettings\n"
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
