"""What a command writes on: standard output and standard error, either of which may be lost while the work goes on."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import TYPE_CHECKING

from roma_bridge.cli.endings import after_loss

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer


class _Outlet(FileIO):
    """A stream into which all that is written vanishes once it is lost: its reader has left, or it is full."""

    lost: OSError | None = None
    """Why it cannot be written any more."""

    def write(self, data: ReadableBuffer, /) -> int:
        if self.lost is None:
            try:
                return super().write(data)
            except OSError as error:
                self.lost = error
        return memoryview(data).nbytes


@contextmanager
def lasting_outlets() -> Iterator[None]:
    """Let a command do its work whatever becomes of what it writes on; its exit code tells of standard output."""
    output, _ = _outlet("stdout"), _outlet("stderr")
    try:
        yield
    except SystemExit as end:
        if output and output.lost:
            sys.exit(after_loss(output.lost, int(end.code or 0)))
        raise


def _outlet(name: str) -> _Outlet | None:
    """Put one below a standard stream; what its encoding lacks is written as an escape.

    Standard output that was closed from the start is lost with the first word that is written on it. Standard error
    then stays away, for nothing is drawn where there is none.
    """
    stream = getattr(sys, name)
    if isinstance(stream, TextIOWrapper):
        outlet = _Outlet(stream.fileno(), "wb", closefd=False)
        encoding, by_line = stream.encoding, stream.line_buffering
    elif stream is None and name == "stdout":
        outlet, encoding, by_line = _Outlet(_unread_pipe(), "wb"), "utf-8", False
    else:
        return None
    text = TextIOWrapper(BufferedWriter(outlet), encoding, "backslashreplace", line_buffering=by_line)
    setattr(sys, name, text)
    return outlet


def _unread_pipe() -> int:
    """Make a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer
