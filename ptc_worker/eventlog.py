"""Reads the event log of a pytest run while it is written, and tells of each test as it ends."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from ptc_worker.reported import checked
from ptc_worker.sealed import ForgedError, LongLineError, SealedLines
from ptc_worker.telling import Teller, nobody
from ptc_worker.verdict import EventLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from ptc_worker.telling import Listener

_TOO_LONG = "the test report has a line of more than a megabyte: tests with parameters that long need ids of their own"


class EventLogReader:
    """What a log proves so far; what comes after a line that does not hold is not looked at."""

    def __init__(self, key: bytes, told: Listener = nobody) -> None:
        self.log = EventLog()
        self._lines = SealedLines(_chained(key))
        self._teller = Teller(told, "pytest")
        self._over = False

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the log; a last line that is cut is a crash, no forgery."""
        if self._over:
            return
        try:
            for text in self._lines.ended_by(piece):
                if self.log.exit_code is not None:
                    raise ForgedError  # noqa: TRY301 the end is the last line
                self._take(checked(json.loads(text)))
        except ForgedError:
            self._stop("the test report was written to, cut or exchanged")
        except LongLineError:
            self._stop(_TOO_LONG)
        except (ValueError, KeyError, TypeError, RecursionError):
            self._stop("the test report cannot be read")

    def _take(self, event: dict[str, Any]) -> None:
        self.log.take(event)
        match event["event"]:
            case "phase":
                self._teller.begin(len(self.log.places))
                if event["when"] == "teardown":
                    self._teller.end_as_in(self.log, event["id"])
            case "collect_error":
                self._teller.begin(len(self.log.places))
                self._teller.end(event["id"] or "collection", "error")
            case "end":
                self._teller.begin(len(self.log.places))

    def _stop(self, why: str) -> None:
        self._over = True
        self.log.meddling.append(why)


def _chained(key: bytes) -> Callable[[bytes], bytes]:
    chain = blake2b(key=key, digest_size=16)

    def seal(text: bytes) -> bytes:
        chain.update(text)
        return chain.hexdigest().encode()

    return seal
