"""`ptc-enqueue` as a program: run to its end, or on a terminal on which tests type."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from support import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PROGRAM = str(Path(sys.executable).with_name("ptc-enqueue"))

CTRL_C = "\x03"


def run(
    folder: Path, environment: Mapping[str, str], *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run it in a directory, without a terminal."""
    return subprocess.run(
        [PROGRAM, *arguments],
        cwd=folder,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


@contextmanager
def lost_stream(how: str) -> Iterator[int]:
    """Give what nobody can write on: a pipe whose reader has left (`closed`), or a disk without room (`full`)."""
    if how == "full":
        stream = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, stream = os.pipe()
        os.close(reader)
    try:
        yield stream
    finally:
        os.close(stream)


@dataclass
class Terminal:
    """A terminal, and what it has shown so far."""

    process: subprocess.Popen[bytes]
    _master: int
    shown: str = ""

    def until(self, text: str) -> None:
        """Wait until it shows a text.

        Raises:
            TimeoutError: it never does.
        """
        end = time.monotonic() + PATIENCE_SECONDS
        while text not in self.shown:
            if time.monotonic() > end or not self._read(end):
                raise TimeoutError(f"{text!r} is not in:\n{self.shown}")

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def hang_up(self) -> int:
        """Close the terminal, and return the exit code."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, self._master)
        os.close(nowhere)
        return self.process.wait(PATIENCE_SECONDS)

    def end(self) -> int:
        """Read what is left, and return the exit code."""
        while self._read(time.monotonic() + PATIENCE_SECONDS):
            pass
        return self.process.wait(PATIENCE_SECONDS)

    def _read(self, end: float) -> bool:
        if not select.select([self._master], [], [], max(0.0, end - time.monotonic()))[0]:
            return False
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # what Linux says once nobody is left on the other side
            return False
        self.shown += piece.decode(errors="replace")
        return bool(piece)


@contextmanager
def terminal(folder: Path, environment: Mapping[str, str], *arguments: str) -> Iterator[Terminal]:
    """Start it on a terminal of its own; it is killed if it outlives the block."""
    master, slave = pty.openpty()

    def take() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [PROGRAM, *arguments],
        cwd=folder,
        env={"TERM": "xterm", "COLUMNS": "160", "LINES": "50", **environment},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=take,  # noqa: PLW1509 it takes no lock: two calls of the system
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)
