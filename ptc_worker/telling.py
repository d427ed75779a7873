"""What is told of tests while they run: their own word, before there is a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import structlog

from ptc_worker.verdict import KEPT_ID_CHARS, shortened

if TYPE_CHECKING:
    from ptc_worker.verdict import EventLog

log = structlog.get_logger(__name__)

Runner = Literal["pytest", "node"]


@dataclass(frozen=True)
class TestsBegan:
    """A runner begins with a draft's tests. What was told of the same runner before holds no more: its sandbox failed."""

    __test__: ClassVar[bool] = False  # pytest collects by name

    runner: Runner
    collected: int
    """How many tests pytest has found; how many Node is sure to find, for it finds them as they run."""


@dataclass(frozen=True)
class TestTold:
    """A test has ended, or its file cannot be collected."""

    __test__: ClassVar[bool] = False  # pytest collects by name

    test: str
    """Its id, as results name it; a file where that cannot be collected."""
    outcome: str
    """As `EventLog.outcome_of` says."""
    seconds: float


Told = TestsBegan | TestTold
Listener = Callable[[Told], None]
"""Whoever is told. The tests' output is not read meanwhile, nor is their time looked at: it must not wait for anything."""


def nobody(_: Told) -> None:
    """Be told, and do nothing."""


class Teller:
    """Tells a listener of one run of a test runner: of its begin first, and of each test once."""

    def __init__(self, listener: Listener, runner: Runner) -> None:
        self._listener = listener
        self._runner = runner
        self._begun = False
        self._ended: set[str] = set()

    def begin(self, collected: int) -> None:
        """Tell that so many tests are to run, unless that was told."""
        if not self._begun:
            self._begun = True
            self._tell(TestsBegan(self._runner, collected))

    def end(self, test: str, outcome: str, seconds: float = 0.0) -> None:
        """Tell what became of a test, unless that was told."""
        if test not in self._ended:
            self._ended.add(test)
            self._tell(TestTold(shortened(test, KEPT_ID_CHARS), outcome, round(seconds, 4)))

    def end_as_in(self, events: EventLog, test: str) -> None:
        """Tell what became of a test by the events that there are of it, if it has ended."""
        if test not in self._ended and (became := events.outcome_of(test)) != "notrun":
            self.end(test, became, events.seconds_of(test))

    def _tell(self, what: Told) -> None:
        """Tell it; a listener that fails is told nothing more: the tests are none of its business."""
        try:
            self._listener(what)
        except Exception:
            log.warning("listener_failed", exc_info=True)
            self._listener = nobody
