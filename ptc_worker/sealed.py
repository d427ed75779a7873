"""The lines of a log that each carry a MAC over all lines so far, taken out of pieces that end anywhere."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOST_LINE_BYTES = 2**20
"""No test run writes a longer line, but with ids of a megabyte. What a line says may take forty times its room."""


class ForgedError(Exception):
    """The log was written to, cut or exchanged."""


class LongLineError(ValueError):
    """A line is longer than can be looked at."""


class SealedLines:
    """What is left to check of a log: its next MAC, and the start of a line whose end is not there yet."""

    def __init__(self, seal: Callable[[bytes], bytes]) -> None:
        self._seal = seal
        """Adds a text to all before it, and returns the MAC that its line must carry."""
        self._start: list[bytes] = []
        self._size = 0

    def ended_by(self, piece: bytes) -> Iterator[bytes]:
        """Yield the texts of the lines whose ends are in the next piece of the log.

        Raises:
            ForgedError: a line does not hold; nothing after it does.
            LongLineError: a line is too long; it, and what comes after it, is not looked at.
        """
        self._start.append(piece)
        self._size += len(piece)
        if b"\n" in piece:  # the parts of a line are put together once
            *lines, start = b"".join(self._start).split(b"\n")
            self._start, self._size = [start], len(start)
            yield from map(self._text, lines)
        if self._size > MOST_LINE_BYTES:
            raise LongLineError

    def _text(self, line: bytes) -> bytes:
        if len(line) > MOST_LINE_BYTES:
            raise LongLineError
        claimed, _, text = line.partition(b" ")
        if not hmac.compare_digest(self._seal(text), claimed):
            raise ForgedError
        return text
