"""What the event log of a test run proves: green only if everything collected ran, passed, and ended by itself."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ptc_contracts.progress import Outcome, Verdict
from ptc_contracts.result import TestResult

if TYPE_CHECKING:
    from ptc_worker.sandbox.protocol import ExecResult

EXIT_USAGE, EXIT_NO_TESTS = 4, 5
"""pytest's exit codes for a wrong command line or configuration, and for nothing collected."""

KEPT_STREAM_CHARS = 20_000
"""Characters of each stream that a result keeps: half from its start, half from its end."""

FEEDBACK_TESTS = 8
FEEDBACK_CHARS = 6_000
"""Bounds on what a model is told of a red run: the first failures say most, and context is not free."""


@dataclass
class EventLog:
    """The events of a run, as far as the log can be trusted."""

    phases: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Reports of each test's phases, by its id, in the order of collection."""
    raised: set[tuple[str, str]] = field(default_factory=set)
    """Test and phase of everything that raised, whatever was reported."""
    collect_errors: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None
    """pytest's own exit code; None if the run never came to its end."""
    intact: bool = True
    """Whether every line's MAC holds."""

    @classmethod
    def parse(cls, raw: bytes, key: bytes) -> EventLog:
        """Read a log up to its first line that does not hold; a last line that is cut is a crash, no forgery."""
        log, mac = cls(), ""
        for line in raw.decode(errors="replace").split("\n")[:-1]:
            claimed, _, text = line.partition(" ")
            mac = hmac.new(key, (mac + text).encode(), hashlib.sha256).hexdigest()
            if not hmac.compare_digest(mac.encode(), claimed.encode()) or log.exit_code is not None:
                log.intact = False
                break
            try:
                log._take({name: _clean(value) for name, value in json.loads(text).items()})
            except (ValueError, KeyError, TypeError, AttributeError):
                log.intact = False
                break
        return log

    def _take(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "collected":
                self.phases.setdefault(event["id"], [])
            case "phase":
                self.phases.setdefault(event["id"], []).append(event)
            case "raised":
                self.raised.add((event["id"], event["when"]))
            case "collect_error":
                self.collect_errors.append(event)
            case "end":
                self.exit_code = event["exit"]

    def outcome_of(self, test: str) -> str:
        """Say what became of a test: passed, failed, error, skipped, xfailed, xpassed, notrun or hidden."""
        reports = self.phases[test]
        if any(report["outcome"] == "failed" for report in reports):
            return (
                "failed"
                if any(r["outcome"] == "failed" and r["when"] == "call" for r in reports)
                else "error"
            )
        if not any(report["when"] == "teardown" for report in reports):
            return "notrun"
        xfail = any(report["xfail"] for report in reports)
        if not xfail and any(name == test for name, _ in self.raised):
            return "hidden"
        if any(report["outcome"] == "skipped" for report in reports):
            return "xfailed" if xfail else "skipped"
        return "xpassed" if xfail else "passed"


def _clean(value: Any) -> Any:  # noqa: ANN401 any JSON value
    """Replace what cannot be written as UTF-8 again: a test can raise any text."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def judge(ran: ExecResult, log: EventLog, command: str) -> Verdict:
    """Decide what a run of the tests proves."""
    outcomes = {test: log.outcome_of(test) for test in log.phases}
    counts = Counter(outcomes.values())
    outcome = _outcome(ran, log, counts)
    red = sum(counts[kind] for kind in ("failed", "error", "notrun", "hidden")) + len(log.collect_errors)
    passed = outcome is Outcome.PASSED
    return Verdict(
        outcome=outcome,
        test_results=TestResult(
            test_command=command,
            # Readers take 0 for green: a red run never shows it, whatever the payload made of its exit code.
            exit_code=ran.exit_code if passed or ran.exit_code != 0 else 1,
            stdout=shortened(ran.stdout.decode(errors="replace"), KEPT_STREAM_CHARS),
            stderr=shortened(ran.stderr.decode(errors="replace"), KEPT_STREAM_CHARS),
            tests_passed=counts["passed"] + counts["xpassed"],
            tests_failed=red,
            duration_seconds=ran.duration_seconds,
        ),
        feedback="" if passed else _feedback(outcome, log, outcomes, ran),
        tests=[
            {"id": test, "outcome": became, "seconds": round(sum(r["seconds"] for r in log.phases[test]), 4)}
            for test, became in outcomes.items()
        ],
    )


def _outcome(ran: ExecResult, log: EventLog, counts: Counter[str]) -> Outcome:
    """Choose the class; the order matters: what ended the run comes before what it had found by then."""
    failed = counts["failed"] + counts["error"]
    rules = (
        (ran.timed_out, Outcome.TIMEOUT),
        (ran.output_limited, Outcome.OUTPUT_LIMIT),
        (not log.intact or counts["hidden"] > 0, Outcome.TAMPERED),
        (bool(log.collect_errors), Outcome.COLLECTION_ERROR),
        (ran.exit_code == EXIT_USAGE, Outcome.USAGE_ERROR),
        (log.exit_code is None, Outcome.CRASHED),
        (log.exit_code != ran.exit_code, Outcome.TAMPERED),
        (ran.exit_code == EXIT_NO_TESTS, Outcome.NO_TESTS),
        (failed > 0, Outcome.FAILED),
        (counts["notrun"] > 0, Outcome.CRASHED),
        (counts["passed"] == 0, Outcome.NO_TESTS),
        (ran.exit_code != 0, Outcome.FAILED),
    )
    return next((outcome for holds, outcome in rules if holds), Outcome.PASSED)


_HEADLINES = {
    Outcome.FAILED: "Some tests fail.",
    Outcome.COLLECTION_ERROR: "Some test files cannot be imported.",
    Outcome.NO_TESTS: "No test passed: none was collected, or all were skipped.",
    Outcome.USAGE_ERROR: "pytest refused its configuration (an option, marker or plugin that is not there).",
    Outcome.TIMEOUT: "The tests did not end in time.",
    Outcome.CRASHED: "The test process ended before all collected tests had run.",
    Outcome.OUTPUT_LIMIT: "The tests wrote too much output and were stopped.",
    Outcome.TAMPERED: "A test that raised was reported as if it had not, or the test report was interfered with.",
}


def _feedback(outcome: Outcome, log: EventLog, outcomes: dict[str, str], ran: ExecResult) -> str:
    """Tell a model what is wrong: a headline, then the first failures with the ends of their tracebacks."""
    blocks = [f"{error['id'] or 'collection'}\n{error['text']}" for error in log.collect_errors]
    for test, became in outcomes.items():
        if became in {"failed", "error"}:
            text = "\n".join(report["text"] for report in log.phases[test] if report["text"])
            blocks.append(f"{test} ({became})\n{text}")
    unfinished = [test for test, became in outcomes.items() if became == "notrun"]
    if unfinished:
        blocks.append("Not finished: " + ", ".join(unfinished[:FEEDBACK_TESTS]))
    if not blocks:
        tail = (ran.stdout + b"\n" + ran.stderr).decode(errors="replace")
        blocks.append(shortened(tail.strip(), FEEDBACK_CHARS // 2))
    share = FEEDBACK_CHARS // min(len(blocks), FEEDBACK_TESTS)
    told = [shortened(block, share) for block in dict.fromkeys(blocks[:FEEDBACK_TESTS])]
    more = [f"… and {len(blocks) - FEEDBACK_TESTS} more."] if len(blocks) > FEEDBACK_TESTS else []
    return "\n\n".join([_HEADLINES[outcome], *told, *more])


def shortened(text: str, limit: int) -> str:
    """Cut the middle out of a text that is longer than `limit` characters, and say how much."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"
