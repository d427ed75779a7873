"""Starts workers from a process that has imported what all of them need: that is most of what a start takes."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping, Sequence

_IMPORTED_BEFORE = [
    "anthropic",
    "openai",
    "celery.__main__",
    "celery.apps.worker",
    "celery.concurrency.thread",
]
"""Others' packages alone: ours may read the environment, which is each worker's own."""

_processes = get_context("forkserver")
_processes.set_forkserver_preload(_IMPORTED_BEFORE)


class Forked:
    """A process that is as `python -m celery ARGUMENTS` would be; what it is asked for is named as by `subprocess.Popen`."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], cwd: Path | None, log: Path
    ) -> None:
        self._process = _processes.Process(
            target=_be_celery, args=(list(arguments), dict(environment), cwd or Path.cwd(), log)
        )
        self._process.start()
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        """Return how it ended; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return how it ended."""
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("celery", timeout or 0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it."""
        self._process.kill()


def _be_celery(arguments: list[str], environment: dict[str, str], cwd: Path, log: Path) -> None:
    """Become what a shell would have started, and end as an interpreter does: `multiprocessing` leaves some of it out."""
    import atexit
    import threading

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    with log.open("wb") as said, Path(os.devnull).open("rb") as nothing:
        for file, number in ((nothing, 0), (said, 1), (said, 2)):
            os.dup2(file.fileno(), number)
    sys.argv[:] = ["celery", *arguments]
    sys.path[0] = str(cwd)
    from celery.__main__ import main

    try:
        main()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
