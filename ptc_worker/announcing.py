"""What is told of each step of a run, in which words."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from ptc_contracts.bill import ANSWERED, usage_of
from ptc_contracts.events import StreamEventType, usage_told
from ptc_contracts.stages import Stage
from ptc_contracts.verdicts import Severity
from ptc_worker.telling import TestsBegan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ptc_contracts import CodeArtifact
    from ptc_contracts.bill import ModelCall, Request
    from ptc_contracts.events import Addition
    from ptc_contracts.progress import Progress
    from ptc_contracts.verdicts import GateIssue
    from ptc_worker.llm.protocol import Provider
    from ptc_worker.refinement import End
    from ptc_worker.reporting import Reporter
    from ptc_worker.telling import TestTold, Told

MOST_ISSUES = 20
"""Issues of the gate that one message lists."""

MOST_TESTS = 400
"""Green tests, and red ones, that one run of tests tells one by one."""

MOST_TEXT_CHARS = 8_192
"""Most characters of what a model has written that one message quotes: the latest."""

MOST_TEXT_IN_ALL = 512 * 1024
"""Characters of what models write that one stage quotes."""

_OFTEN_SECONDS = 0.5
_SHARE = 0.01
"""What a model writes is told about twice a second, and after a while each time it has taken a hundredth longer."""


# ── stages ─────────────────────────────────────────────────────────────────────────────────────────────────


def stage_begun(report: Reporter) -> None:
    """Tell that a stage begins; one that was deferred has told so before."""
    run = report.run
    if run.waited_for:
        return
    again = ", again: the worker that had begun it died or fell silent" if run.starts > 1 else ""
    report.tell(
        StreamEventType.STAGE_STARTED,
        f"iteration {run.progress.iteration}: {_BEGINS[run.stage]}{again}",
        iteration=run.progress.iteration,
        max_iterations=run.plan.max_iterations,
        start=run.starts,
    )


_BEGINS = {Stage.GENERATE: "a model writes", Stage.SANDBOX: "its tests run"}


def stage_over(report: Reporter, progress: Progress, follows: Stage | End) -> Addition:
    """Tell that a stage is over, and give what was not sent yet: it goes with what moves the run on."""
    run = report.run
    facts: dict[str, Any] = {"iteration": run.progress.iteration}
    message = f"iteration {run.progress.iteration}: {run.stage.value} is over"
    if len(progress.history) > len(run.progress.history):
        note = progress.history[-1]
        counts = f": {note.passed} passed, {note.failed} failed" if note.passed or note.failed else ""
        message = f"iteration {note.iteration}: {note.outcome.value}{counts}"
        facts |= {"outcome": note.outcome.value, "passed": note.passed, "failed": note.failed}
        facts["issues"] = note.issues
    facts["follows"] = follows.value if isinstance(follows, Stage) else "end"
    report.tell(StreamEventType.STAGE_COMPLETED, message, **facts)
    return report.drained()


def deferred(report: Reporter, seconds: float, why: str) -> Addition:
    """Tell, once, that the run has to wait for something."""
    if not report.run.waited_for:
        report.tell(StreamEventType.WARNING, f"waits: {why}", seconds=round(seconds, 1))
    return report.drained()


def handed_back(report: Reporter) -> Addition:
    """Tell that this worker ends."""
    report.tell(StreamEventType.WARNING, "its worker ends; another one takes the run on")
    return report.drained()


# ── the gate and the tests ─────────────────────────────────────────────────────────────────────────────────


def files_ready(report: Reporter, files: Sequence[CodeArtifact], before: Sequence[CodeArtifact]) -> None:
    """Tell of each file of a draft that is new or has changed."""
    known = {file.file_path: file.content for file in before}
    for file in files:
        if known.get(file.file_path) != file.content:
            report.tell(
                StreamEventType.CODE_BLOCK_READY,
                file.file_path,
                path=file.file_path,
                language=file.language,
                bytes=len(file.content.encode(errors="replace")),
                new=file.file_path not in known,
            )


def gate_begun(report: Reporter, files: Sequence[CodeArtifact]) -> None:
    """Tell that a draft is looked at."""
    report.tell(StreamEventType.VALIDATION_STARTED, f"{len(files)} files are examined", files=len(files))


def gate_over(report: Reporter, issues: Sequence[GateIssue]) -> None:
    """Tell what was found in a draft without running it."""
    errors = sum(issue.severity is Severity.ERROR for issue in issues)
    kind = (
        StreamEventType.VALIDATION_FAILED
        if errors
        else StreamEventType.VALIDATION_WARNING
        if issues
        else StreamEventType.VALIDATION_PASSED
    )
    told = [issue.model_dump(mode="json", exclude={"stage"}) for issue in issues[:MOST_ISSUES]]
    report.tell(
        kind, f"{errors} errors, {len(issues) - errors} warnings" if issues else "nothing found", issues=told
    )


_KINDS = {
    **dict.fromkeys(("passed", "xfailed", "xpassed"), StreamEventType.TEST_PASSED),
    "skipped": StreamEventType.PROGRESS,
}


class TestNews:
    """Tells of each test as it ends, within bounds; given as the listener of a run of tests."""

    __test__: ClassVar[bool] = False  # pytest collects by name

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self._told: Counter[str] = Counter()

    def __call__(self, what: Told) -> None:
        """Tell that a runner begins, or how a test ended."""
        if isinstance(what, TestsBegan):
            self._told.clear()
            self._report.tell(
                StreamEventType.TEST_STARTED,
                f"{what.runner} begins: {what.collected} tests",
                runner=what.runner,
                collected=what.collected,
            )
        else:
            self._end(what)

    def _end(self, test: TestTold) -> None:
        kind = _KINDS.get(test.outcome, StreamEventType.TEST_FAILED)
        colour = "red" if kind is StreamEventType.TEST_FAILED else "green"
        self._told[colour] += 1
        if self._told[colour] <= MOST_TESTS:
            self._report.tell(
                kind,
                f"{test.test} {test.outcome}",
                test=test.test,
                outcome=test.outcome,
                seconds=test.seconds,
            )
        elif self._told[colour] == MOST_TESTS + 1:
            self._report.tell(StreamEventType.PROGRESS, f"further {colour} tests are not told one by one")


# ── models ─────────────────────────────────────────────────────────────────────────────────────────────────


class ModelNews:
    """Tells of the calls of models: whom was asked, what it writes, what it cost. See `llm.calls.Listener`."""

    def __init__(self, report: Reporter, earlier: Sequence[ModelCall]) -> None:
        self._report = report
        self._calls = [*earlier]
        self._quotable = MOST_TEXT_IN_ALL
        self._reset()

    def asked(self, provider: Provider, request: Request) -> None:
        """Tell that a model is asked."""
        self._reset()
        self._report.tell(
            StreamEventType.CODE_GENERATING,
            f"{provider.name} {provider.model} is asked for a {request.value.replace('_', ' ')}",
            provider=provider.name,
            model=provider.model,
            request=request.value,
        )

    def wrote(self, text: str) -> None:
        """Take what a model has written, and tell of it, and of its thinking, now and then."""
        if self._report.output:
            self._written.append(text)
        self._chars += len(text)
        self._tell_if_due()

    def billed(self, call: ModelCall) -> None:
        """Tell how a call ended, and what the run has used by now."""
        self._tell_text(last=True)
        self._calls.append(call)
        answered = call.outcome in ANSWERED
        self._report.tell(
            StreamEventType.CODE_GENERATED if answered else StreamEventType.WARNING,
            f"{call.provider} {call.model}: {call.outcome}"
            + (" (kept from before)" if call.from_cache else ""),
            provider=call.provider,
            model=call.model,
            request=call.request.value,
            outcome=call.outcome,
            seconds=round(call.seconds, 2),
            from_cache=call.from_cache,
            usage=usage_told(usage_of(self._calls)),
        )

    def _reset(self) -> None:
        self._written: list[str] = []
        self._chars = self._told_chars = 0
        self._began = self._last = time.monotonic()

    def _tell_if_due(self) -> None:
        now = time.monotonic()
        if now - self._last >= max(_OFTEN_SECONDS, _SHARE * (now - self._began)):
            self._last = now
            self._tell_text(last=False)

    def _tell_text(self, *, last: bool) -> None:
        """Tell what was written since, in whole lines: a secret that is parted would not be found."""
        text = "".join(self._written)
        if last and not text and self._told_chars == self._chars:
            return
        self._told_chars = self._chars
        end = len(text) if last else self._report.redactor.parted(text)
        self._written = [text[end:]] if end < len(text) else []
        self._report.tell(
            StreamEventType.CODE_GENERATING,
            f"{self._chars:,} characters so far",
            text=self._quoted(text[:end]),
            chars=self._chars,
        )

    def _quoted(self, text: str) -> str:
        quoted = (
            self._report.redactor.text(text)[-min(MOST_TEXT_CHARS, self._quotable) :]
            if self._quotable
            else ""
        )
        self._quotable -= len(quoted)
        return quoted
