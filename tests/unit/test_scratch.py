"""Folders for the time of one command."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = """
import sys
from roma_bridge.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "worker.log").write_text("busy")
    print(folder, flush=True)
    sys.stdin.read()
"""


@contextmanager
def command(temporary: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Run a command that has a folder; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())


def test_what_a_killed_command_leaves_goes_with_the_next_one(tmp_path: Path) -> None:
    """And what another one still uses stays; nobody else's folders are touched."""
    others = tmp_path / "ptc-local-of-something-else"
    others.mkdir()
    with command(tmp_path) as (killed, left):
        killed.kill()
    before = left.exists()
    with command(tmp_path) as (_, first), command(tmp_path) as (_, second):
        during = {first.exists(), second.exists()}

    assert (before, during, left.exists()) == (True, {True}, False)
    assert [*tmp_path.iterdir()] == [others]
