"""How the worker of `--local` is said to have ended."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ptc_contracts import ConfigurationError
from ptc_contracts.settings import RedisSettings
from roma_bridge.client import PTC
from roma_bridge.local import LocalStack

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        (
            "os.kill(os.getpid(), 9)",
            "the worker ended: SIGKILL; somebody killed it, or the machine's memory was full",
        ),
        ("os.kill(os.getpid(), 6)", "the worker ended: SIGABRT: the last line"),
        ("sys.exit(3)", "the worker ended: exit code 3: the last line"),
    ],
    ids=["killed", "aborted", "exited"],
)
def test_it_is_told_what_ended_the_worker(tmp_path: Path, ending: str, told: str) -> None:
    """Its signal or exit code; and its last line, where that is about its end."""
    log = tmp_path / "worker.log"
    log.write_text("the first line\nthe last line\n")
    with subprocess.Popen([sys.executable, "-c", f"import os, sys; {ending}"]) as worker:
        worker.wait()

    with pytest.raises(ConfigurationError, match=f"^{re.escape(told)}$"):
        LocalStack(PTC(RedisSettings(url="redis://127.0.0.1:1")), worker, log, lasts=True).check()
