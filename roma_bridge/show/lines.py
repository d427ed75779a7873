"""Words a run line by line, for whoever has no terminal: what is worth telling, and no more than fits a log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from ptc_contracts.events import StreamEventType
from roma_bridge.show.view import count, examined_in, few, issues, mark_in, number, text
from roma_bridge.terminal import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from ptc_contracts.events import StreamMessage
    from roma_bridge.show.view import Examined, Facts, RunView

MOST_FAILURES = 20
"""Failing tests of a draft that get a line of their own."""

MOST_ISSUES = 10
"""Issues of a draft that get a line of their own."""

MOST_NAMES = 6
"""Files of a draft that are named."""

COUNT_SECONDS = 10.0
"""How often running tests are counted up."""


@dataclass
class Lines:
    """Makes lines of a run's messages, which its view has to take first."""

    view: RunView
    _stage: str = ""
    _files_owed: bool = False
    _told: set[int] = field(default_factory=set)
    _counted_at: datetime | None = None

    def of(self, message: StreamMessage) -> Iterator[str]:
        """Word what is new with a message that the view has just taken."""
        if self._files_owed and message.event_type is not StreamEventType.CODE_BLOCK_READY:
            self._files_owed = False
            files = self.view.file_count
            yield self._placed(f"{files} file{'s' * (files != 1)}: {few(self.view.files, files, MOST_NAMES)}")
        if step := _STEPS.get(message.event_type):
            yield from step(self, message, message.data or {})

    def verdict(self, examined: Examined) -> Iterator[str]:
        """Tell what became of an iteration, once."""
        if examined.iteration not in self._told:
            self._told.add(examined.iteration)
            words = click.style(str(examined), fg="green" if examined.green else "red")
            yield f"iteration {examined.iteration}: {words}"

    def _placed(self, words: str) -> str:
        return f"iteration {self.view.iteration}: {words}"

    def _begins_stage(self, message: StreamMessage, facts: Facts) -> Iterator[str]:
        self._counted_at = message.timestamp
        start = count(facts, "start")
        again = f" (start {start})" if start > 1 else ""
        line = f"iteration {self.view.iteration} of {self.view.max_iterations}: {self.view.doing}{again}"
        if line != self._stage:
            self._stage = line
            yield line

    def _answered(self, _: StreamMessage, facts: Facts) -> Iterator[str]:
        model = " ".join(filter(None, (text(facts, "provider"), text(facts, "model")))) or "a model"
        seconds = number(facts, "seconds")
        kept = " from before" if facts.get("from_cache") else ""
        took = f" in {seconds:.1f} s" if seconds is not None and not kept else ""
        cut = " (cut off)" if text(facts, "outcome") == "truncated" else ""
        used = f"; {self.view.usage} so far" if self.view.usage.calls else ""
        yield self._placed(f"{model} answered{kept}{took}{cut}{used}")

    def _has_file(self, _: StreamMessage, __: Facts) -> Iterator[str]:
        self._files_owed = True
        yield from ()

    def _has_issues(self, _: StreamMessage, facts: Facts) -> Iterator[str]:
        found = issues(facts)
        yield from (self._placed(f"gate: {issue}") for issue in found[:MOST_ISSUES])
        if len(found) > MOST_ISSUES:
            yield self._placed(f"gate: … and {len(found) - MOST_ISSUES} more")

    def _tests(self, message: StreamMessage, facts: Facts) -> Iterator[str]:
        mark = mark_in(facts)
        if mark and message.event_type is StreamEventType.TEST_FAILED:
            yield from self._fails(f"{mark.test} ({mark.outcome})")
        since = self._counted_at or message.timestamp
        if (message.timestamp - since).total_seconds() >= COUNT_SECONDS:
            self._counted_at = message.timestamp
            yield self._placed(f"{self.view.tests} so far")

    def _fails(self, words: str) -> Iterator[str]:
        failed = self.view.tests.failed
        if failed <= MOST_FAILURES:
            yield self._placed(click.style("failing: ", fg="red") + words)
        elif failed == MOST_FAILURES + 1:
            yield self._placed("more tests fail: from here on they are counted")

    def _moves(self, message: StreamMessage, facts: Facts) -> Iterator[str]:
        if "test" in facts:
            yield from self._tests(message, facts)
        elif message.message:
            yield self._placed(one_line(message.message))

    def _is_held_up(self, message: StreamMessage, _: Facts) -> Iterator[str]:
        if words := one_line(message.message or message.error or ""):
            yield click.style("warning: ", fg="yellow") + words

    def _ends_stage(self, _: StreamMessage, facts: Facts) -> Iterator[str]:
        if examined := examined_in(facts):
            yield from self.verdict(examined)


_STEPS: dict[StreamEventType, Callable[[Lines, StreamMessage, Facts], Iterator[str]]] = {
    StreamEventType.STAGE_STARTED: Lines._begins_stage,  # noqa: SLF001 its own table
    StreamEventType.STAGE_COMPLETED: Lines._ends_stage,  # noqa: SLF001
    StreamEventType.CODE_GENERATED: Lines._answered,  # noqa: SLF001
    StreamEventType.CODE_BLOCK_READY: Lines._has_file,  # noqa: SLF001
    StreamEventType.VALIDATION_WARNING: Lines._has_issues,  # noqa: SLF001
    StreamEventType.VALIDATION_FAILED: Lines._has_issues,  # noqa: SLF001
    StreamEventType.TEST_PASSED: Lines._tests,  # noqa: SLF001
    StreamEventType.TEST_FAILED: Lines._tests,  # noqa: SLF001
    StreamEventType.PROGRESS: Lines._moves,  # noqa: SLF001
    StreamEventType.WARNING: Lines._is_held_up,  # noqa: SLF001
    StreamEventType.ERROR: Lines._is_held_up,  # noqa: SLF001
}
