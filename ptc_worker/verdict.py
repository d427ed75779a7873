"""What the event log of a test run proves: green only if everything collected ran, passed, and ended by itself."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from ptc_contracts.result import TestResult
from ptc_contracts.verdicts import Outcome, Verdict
from ptc_worker.expected import Expected, without_parameters
from ptc_worker.failures import Failure, grouped, last_lines, normalised, signature_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ptc_worker.sandbox.protocol import ExecResult

EXIT_INTERRUPTED, EXIT_INTERNAL, EXIT_USAGE, EXIT_NO_TESTS = 2, 3, 4, 5
"""pytest's exit codes: stopped, died of an error of its own or of a plugin, wrong configuration, nothing collected."""

KEPT_STREAM_CHARS = 20_000
"""Characters of each stream that a result keeps: half from its start, half from its end."""

KEPT_TESTS = 500
KEPT_ID_CHARS = 200
"""Bounds on what a result tells test by test; those that are not green go first."""

FEEDBACK_TESTS = 8
FEEDBACK_CHARS = 6_000
"""Bounds on what a model is told of a red run: the first failures say most, and context is not free."""
COMPARED_FAILURES = 50
"""Failures, and suspicions, whose texts are compared; it takes milliseconds each. Of more only the names count."""
COMPARED_TEXTS = 4
COMPARED_CHARS = 25_000
"""Bounds on what of one failure is compared: what its phases reported, and the first of its subtests."""
_BETWEEN = 2
_CUT_CHARS = 80
"""Characters between two blocks, and of the words that say how much was cut out of one."""


_RAN = {"passed", "xpassed", "failed", "error"}
"""What becomes of a test that was not left out."""


@dataclass
class EventLog:
    """The events of a run, as far as the log can be trusted."""

    places: dict[str, tuple[str | None, int | None]] = field(default_factory=dict)
    """File and first line of each collected test's function, by the test's id; None for tests of other kinds."""
    phases: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Reports of each test's phases, by its id, in the order of collection."""
    ran: set[str] = field(default_factory=set)
    """Tests whose functions were seen to run to their end."""
    raised: set[str] = field(default_factory=set)
    """Tests in which something was seen to raise, whatever was reported."""
    collect_errors: list[dict[str, Any]] = field(default_factory=list)
    skipped_files: set[str] = field(default_factory=set)
    """Files that were left out as a whole."""
    meddling: list[str] = field(default_factory=list)
    """What was done to pytest or to the log, in sentences."""
    exit_code: int | None = None
    """pytest's own exit code; None if the run never came to its end."""

    def take(self, event: dict[str, Any]) -> None:
        """Add an event."""
        match event["event"]:
            case "collected":
                self._collect(event["id"], event["file"], event["line"])
            case "phase":
                self._report(event["id"], event)
            case "ran":
                self.ran.add(event["id"])
            case "raised":
                self.raised.add(event["id"])
            case "collect_error":
                self.collect_errors.append(event)
            case "skipped_file":
                self.skipped_files.add(event["id"])
            case "meddled":
                self.meddling.append(event["text"])
            case "end":
                self.exit_code = event["exit"]

    def _collect(self, test: str, file: str | None, line: int | None) -> None:
        if test in self.places:
            self.meddling.append(f"two tests are named {test}")
        self.places[test] = (file, line)
        self.phases.setdefault(test, [])

    def _report(self, test: str, event: dict[str, Any]) -> None:
        if test not in self.places:
            self.meddling.append(f"{test} was reported, and never collected")
        self.phases.setdefault(test, []).append(event)

    def outcome_of(self, test: str) -> str:
        """Say what became of a test: passed, failed, error, skipped, xfailed, xpassed, notrun or hidden."""
        reports = self.phases[test]
        failed = [report["when"] for report in reports if report["outcome"] == "failed"]
        if failed:
            return "failed" if "call" in failed else "error"
        if not any(report["when"] == "teardown" for report in reports):
            return "notrun"
        xfail = any(report["xfail"] for report in reports)
        if not xfail and test in self.raised:
            return "hidden"
        if any(report["outcome"] == "skipped" for report in reports):
            return "xfailed" if xfail else "skipped"
        if self.places.get(test, (None, None))[0] and test not in self.ran:
            return "hidden"
        return "xpassed" if xfail else "passed"

    def seconds_of(self, test: str) -> float:
        """Return how long all phases of a test took."""
        return float(sum(report["seconds"] for report in self.phases[test]))


def judge(
    ran: ExecResult, log: EventLog, command: str, expected: Expected | None = None, root: str = ""
) -> Verdict:
    """Decide what a run of the tests proves, given what the draft's files promise.

    `root` is the sandbox's directory, the project's parent: paths are told relative to the project.
    """
    facts = _Facts(ran, log, expected or Expected(), root)
    outcome = facts.outcome
    passed = outcome is Outcome.PASSED
    return Verdict(
        outcome=outcome,
        test_results=TestResult(
            test_command=command,
            # Readers take 0 for green: a red run never shows it, whatever the payload made of its exit code.
            exit_code=ran.exit_code if passed or ran.exit_code != 0 else 1,
            stdout=shortened(ran.stdout.decode(errors="replace"), KEPT_STREAM_CHARS),
            stderr=shortened(ran.stderr.decode(errors="replace"), KEPT_STREAM_CHARS),
            tests_passed=facts.counts["passed"] + facts.counts["xpassed"],
            tests_failed=facts.red,
            duration_seconds=ran.duration_seconds,
        ),
        feedback="" if passed else _feedback(facts),
        signature="" if passed else _signature(facts),
        tests=_told(facts),
        counts=dict(facts.counts),
    )


def both(first: Verdict, second: Verdict) -> Verdict:
    """Put the verdicts of two test runners on one draft together, of which the first is green."""
    if first.test_results is None or second.test_results is None:
        return second
    one, other = first.test_results, second.test_results
    results = TestResult(
        test_command=f"{one.test_command} && {other.test_command}",
        exit_code=other.exit_code,
        stdout=shortened(f"{one.stdout}{other.stdout}", KEPT_STREAM_CHARS),
        stderr=shortened(f"{one.stderr}{other.stderr}", KEPT_STREAM_CHARS),
        tests_passed=one.tests_passed + other.tests_passed,
        tests_failed=one.tests_failed + other.tests_failed,
        duration_seconds=one.duration_seconds + other.duration_seconds,
    )
    tests = [*first.tests, *second.tests][:KEPT_TESTS]
    counts = dict(Counter(first.counts) + Counter(second.counts))
    return second.model_copy(update={"test_results": results, "tests": tests, "counts": counts})


class _Facts:
    """What one run shows, put together."""

    def __init__(self, ran: ExecResult, log: EventLog, expected: Expected, root: str) -> None:
        self.ran, self.log = ran, log
        self._root = re.compile(rf"(?<![\w.-]){re.escape(root)}(?:/project)?(?![\w.-])/?") if root else None
        self.outcomes = {test: log.outcome_of(test) for test in log.phases}
        self.counts = Counter(self.outcomes.values())
        self.left_out = [
            test
            for test, became in self.outcomes.items()
            if became in {"skipped", "xfailed"} and not expected.may_be_left_out(test)
        ]
        self.suspicions = self._suspicions(expected)
        self.outcome = self._outcome()

    def relative(self, text: str) -> str:
        """Word paths in a text as seen from the project."""
        return self._root.sub(_seen_from_project, text) if self._root else text

    @cached_property
    def failures(self) -> list[Failure]:
        """What failed, in the order of collection, files that cannot be collected first; with texts as far as they count."""
        found = [(error["id"] or "collection", "", [error]) for error in self.log.collect_errors]
        found += [
            (test, became, self.log.phases[test])
            for test, became in self.outcomes.items()
            if became in {"failed", "error"}
        ]
        compared = [
            Failure(name, became, self._text(reports)) for name, became, reports in found[:COMPARED_FAILURES]
        ]
        return [*compared, *(Failure(name, became, "") for name, became, _ in found[COMPARED_FAILURES:])]

    def _text(self, reports: Iterable[dict[str, Any]]) -> str:
        told = islice((report["text"] for report in reports if report["text"]), COMPARED_TEXTS)
        return self.relative(shortened("\n".join(told), COMPARED_CHARS))

    @property
    def unfinished(self) -> list[str]:
        """Tests that were to run when the run ended; the first of them was running, or was next."""
        return [] if self.ended else [test for test, became in self.outcomes.items() if became == "notrun"]

    @property
    def last_output(self) -> str:
        """The end of what was printed: all there is to tell where no test failed."""
        text = (self.ran.stdout + b"\n" + self.ran.stderr).decode(errors="replace").strip()
        return self.relative(shortened(text, FEEDBACK_CHARS // 2))

    @property
    def red(self) -> int:
        """Count what failed, raised or never ran to its end."""
        kinds = ("failed", "error", "notrun", "hidden")
        return sum(self.counts[kind] for kind in kinds) + len(self.log.collect_errors)

    @property
    def ended(self) -> bool:
        """Whether pytest came to its end and says that nothing kept tests from running."""
        return self.log.exit_code in {0, 1, EXIT_NO_TESTS}

    def _suspicions(self, expected: Expected) -> list[str]:
        """Say what makes the run's own account doubtful."""
        hidden = [test for test, became in self.outcomes.items() if became == "hidden"]
        told = [*self.log.meddling]
        told += [
            f"{test} raised, and was not reported as failed"
            if test in self.log.raised
            else f"{test} was reported as passed, and its function never ran to its end"
            for test in hidden
        ]
        if self.ended and not self.log.collect_errors:
            told += self._missing(expected)
            told += self._passed_over(expected)
            told += [
                f"{test} was collected and then left out without a report"
                for test, became in self.outcomes.items()
                if became == "notrun"
            ]
        if self.ended and self.log.exit_code and self.ran.exit_code == 0:
            told.append(f"pytest ended with {self.log.exit_code}, but its process with 0")
        return [*dict.fromkeys([*told, *expected.doubts])]

    def _passed_over(self, expected: Expected) -> list[str]:
        ran = {test.partition("::")[0] for test, became in self.outcomes.items() if became in _RAN}
        return (
            ["none of the tests that the plan gave ran"]
            if expected.given and not ran & expected.given
            else []
        )

    def _missing(self, expected: Expected) -> list[str]:
        places = {without_parameters(test): place for test, place in self.log.places.items()}
        told = []
        for test, line in expected.tests.items():
            path = test.partition("::")[0]
            if test not in places:
                if not (path in self.log.skipped_files and path in expected.conditional):
                    told.append(f"{test} stands in its file, and was not collected")
                continue
            file, found = places[test]
            if line is not None and not ((file or "").endswith(f"/{path}") and found == line):
                told.append(f"{test} was collected, but with a function from elsewhere ({file}:{found})")
        return told

    def _outcome(self) -> Outcome:
        """Choose the class; the order matters: what ended the run comes before what it had found by then."""
        ran, log, counts = self.ran, self.log, self.counts
        rules = (
            (ran.out_of_memory, Outcome.OUT_OF_MEMORY),
            (ran.timed_out, Outcome.TIMEOUT),
            (ran.output_limited, Outcome.OUTPUT_LIMIT),
            (bool(log.meddling) or counts["hidden"] > 0, Outcome.TAMPERED),
            (bool(log.collect_errors), Outcome.COLLECTION_ERROR),
            (log.exit_code in {None, EXIT_USAGE} and ran.exit_code == EXIT_USAGE, Outcome.USAGE_ERROR),
            (not self.ended or ran.exit_code < 0, Outcome.CRASHED),
            (counts["failed"] + counts["error"] > 0, Outcome.FAILED),
            (bool(self.suspicions), Outcome.TAMPERED),
            (counts["passed"] + counts["xpassed"] == 0, Outcome.NO_TESTS),
            (bool(self.left_out) or ran.exit_code != 0, Outcome.FAILED),
        )
        return next((outcome for holds, outcome in rules if holds), Outcome.PASSED)


def _told(facts: _Facts) -> list[dict[str, Any]]:
    """List what became of each test, within bounds."""
    order = sorted(facts.outcomes.items(), key=lambda pair: pair[1] == "passed")
    return [
        {
            "id": shortened(test, KEPT_ID_CHARS),
            "outcome": became,
            "seconds": round(facts.log.seconds_of(test), 4),
        }
        for test, became in (facts.outcomes.items() if len(order) <= KEPT_TESTS else order[:KEPT_TESTS])
    ]


_HEADLINES = {
    Outcome.FAILED: "Some tests fail.",
    Outcome.COLLECTION_ERROR: "Some test files cannot be imported.",
    Outcome.NO_TESTS: "No test passed: none was collected, or all were skipped.",
    Outcome.USAGE_ERROR: "pytest refused its configuration (an option, marker or plugin that is not there) or a conftest.py.",
    Outcome.TIMEOUT: "The tests did not end in time.",
    Outcome.CRASHED: "The test process ended before all collected tests had run.",
    Outcome.OUT_OF_MEMORY: "The tests held too much memory and were stopped.",
    Outcome.OUTPUT_LIMIT: "The tests wrote too much output, or too much into files, and were stopped.",
    Outcome.TAMPERED: "What the tests report cannot be believed.",
}

_LEFT_OUT = (
    "These tests were skipped, or are expected to fail, whatever happens, and prove nothing. Let them run, leave "
    "them out, or say beside the test on which condition it is left out (skipif): "
)


def _feedback(facts: _Facts) -> str:
    """Tell a model what is wrong: a headline, then the first causes with the ends of their tracebacks."""
    blocks = []
    if facts.suspicions:
        told = [facts.relative(text) for text in facts.suspicions[:FEEDBACK_TESTS]]
        blocks.append("\n".join(["Suspicious:", *(f"- {text}." for text in told)]))
    groups = grouped(facts.failures[:COMPARED_FAILURES])
    blocks += [failure.told(others) for failure, others in groups[:FEEDBACK_TESTS]]
    if facts.unfinished:
        blocks.append("Not finished: " + ", ".join(facts.unfinished[:FEEDBACK_TESTS]))
    if facts.left_out:
        blocks.append(_LEFT_OUT + ", ".join(facts.left_out[:FEEDBACK_TESTS]))
    if not blocks:
        blocks.append(facts.last_output)
    others = len(facts.failures[COMPARED_FAILURES:])
    if (more := max(0, len(groups) - FEEDBACK_TESTS) + others) > 0:
        blocks.append(f"… and {more} more.")
    headline = _HEADLINES[facts.outcome]
    return "\n\n".join([headline, *_fitted(blocks, FEEDBACK_CHARS - len(headline))])


def _signature(facts: _Facts) -> str:
    """Name the failure: by all that failed, the test that was running, what is suspicious, or what was printed last."""
    causes = [failure.fingerprint for failure in facts.failures[:COMPARED_FAILURES]]
    causes += [failure.name for failure in facts.failures[COMPARED_FAILURES:]]
    causes += [normalised(facts.relative(text)) for text in facts.suspicions[:COMPARED_FAILURES]]
    causes += facts.suspicions[COMPARED_FAILURES:]
    causes += [*facts.unfinished[:1], *facts.left_out]
    if not causes:
        causes = ["\n".join(normalised(line) for line in last_lines(facts.last_output))]
    if facts.outcome is Outcome.CRASHED:
        causes.append(f"exit code {facts.ran.exit_code}")
    return signature_of(facts.outcome, causes)


def _seen_from_project(found: re.Match[str]) -> str:
    inside, alone = "/project" in found[0], not found[0].endswith("/")
    return ("." if inside else "..") if alone else ("" if inside else "../")


def _fitted(blocks: list[str], room: int) -> list[str]:
    """Shorten the longest blocks until all of them, and what stands between them, take no more than `room`."""
    room -= len(blocks) * _BETWEEN
    kept: dict[int, str] = {}
    for place in sorted(range(len(blocks)), key=lambda place: len(blocks[place])):
        share = room // (len(blocks) - len(kept))
        text = blocks[place]
        kept[place] = text if len(text) <= share else shortened(text, max(0, share - _CUT_CHARS))
        room -= len(kept[place])
    return [kept[place] for place in range(len(blocks))]


def shortened(text: str, limit: int) -> str:
    """Cut the middle out of a text that is longer than `limit` characters, and say how much and why."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out, {limit} are kept …\n{text[-half:]}"
