"""What the logs of Node's processes prove; put into the words of every other test run."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ptc_worker.expected import Expected, without_parameters
from ptc_worker.node.eventlog import FreeNames, seconds_of, title
from ptc_worker.reported import bounded_id
from ptc_worker.sandbox.protocol import ExecResult
from ptc_worker.verdict import EventLog

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ptc_worker.javascript import DefinedTest, NodeTests
    from ptc_worker.node.eventlog import Known, NodeLog

_OURS = re.compile(r"^[^\S\n]+at .*(\bnode:[\w/]+:\d|\bnode_probe\.cjs:).*\n?", re.MULTILINE)
_OUR_PLACE = re.compile(rb"^test at .*node_probe\.cjs:.*\n", re.MULTILINE)
"""Where the runner believes every test to stand."""
_UNFINISHED = (
    "It never came to its end: its time was over, a hook failed, or it waited for something when nothing else "
    "was left to do."
)
_KEPT_ALIVE = "All its tests had ended, and its process had not: close servers, sockets, timers and workers in `after` hooks."
_NO_TEST = "It is named like a test file, and registers no test with node:test."


@dataclass
class Account:
    """What the runs of all test files of a draft prove, together."""

    root: str
    """The project's folder as programs inside see it."""
    log: EventLog = field(default_factory=EventLog)
    expected: Expected = field(default_factory=Expected)
    runs: list[ExecResult] = field(default_factory=list)
    whole: bool = True
    """Whether every file's process came to its end by itself."""
    _names: FreeNames = field(default_factory=FreeNames)

    def trust(self, given: Collection[str], tests: NodeTests) -> None:
        """Let the tests that no model wrote be left out as they say; at least one of them must run."""
        self.expected.given.update(tests.files.keys() & set(given))
        self.expected.conditional.update(self.expected.given)

    def take(self, path: str, ran: ExecResult, told: NodeLog, defined: Sequence[DefinedTest]) -> None:
        """Add the run of one file; its process may have taken its code back after it was told."""
        code = next((event["code"] for event in told.of("end")), 0)
        ran = replace(ran, exit_code=ran.exit_code or code)
        self.runs.append(ran)
        self.whole = self.whole and told.natural
        self.log.meddling += [*told.meddling, *(event["text"] for event in told.of("meddled"))]
        imported = not told.of("uncaught") or told.of("began")
        for event in told.of("uncaught"):
            text = self._told(event["text"])
            if imported:
                self._fail(f"{path}::(uncaught)", text)
            else:
                self.log.collect_errors.append({"id": path, "text": text})
        for event in told.of("exit_called"):
            self._fail(f"{path}::(process.exit)", self._told(event["text"]))
        for event in told.of("error"):
            self._fail(f"{path}::{title(event['name'])}", self._told(event["text"]))
        registered = self._take_tests(path, ran, told)
        if (
            ran.timed_out
            and told.of("began")
            and len(told.of("began")) == len(told.of("ran") + told.of("raised"))
        ):
            self.log.collect_errors.append({"id": path, "text": _KEPT_ALIVE})
        for event in told.of("suite_left_out"):
            self._left_out(f"{path}::{title(event['name'])}")
        self.expected.conditional.update(
            without_parameters(f"{path}::{title(_name(test))}") for test in defined if test.conditional
        )
        if told.natural and imported and ran.exit_code == 0:
            self._compare(path, registered, told, defined)

    def take_empty(self, path: str) -> None:
        """Add a file that is named like a test and was not run, for there is none in it."""
        self._fail(f"{path}::(no test)", _NO_TEST)

    def whole_run(self) -> ExecResult:
        """Put the runs of all files together as if they were one, and say whether it came to its end."""
        codes = [run.exit_code for run in self.runs]
        # A code is only a sign: what other runners mean by 2, 4 or 5 is not meant here.
        code = min(codes) if min(codes) < 0 else int(any(codes))
        self.log.exit_code = code if self.whole else None
        return ExecResult(
            exit_code=code,
            stdout=_OUR_PLACE.sub(b"", b"".join(run.stdout for run in self.runs)),
            stderr=b"".join(run.stderr for run in self.runs),
            duration_seconds=sum(run.duration_seconds for run in self.runs),
            timed_out=any(run.timed_out for run in self.runs),
            output_limited=any(run.output_limited for run in self.runs),
            out_of_memory=any(run.out_of_memory for run in self.runs),
        )

    def _take_tests(self, path: str, ran: ExecResult, told: NodeLog) -> Counter[tuple[str, str | None]]:
        registered: Counter[tuple[str, str | None]] = Counter()
        failed_run = told.natural and ran.exit_code != 0
        blamed = _with_failed_parts(told)
        for events in told.tests.values():
            test = events["test"]
            known = events if test["name"] not in blamed else {**events, "refused": {}}
            registered[test["name"], test["digest"]] += 1
            self._take_test(self._free(f"{path}::{title(test['name'])}"), path, known, failed_run=failed_run)
        return registered

    def _take_test(self, name: str, path: str, known: Known, *, failed_run: bool) -> None:
        self.log.places[name] = (path, None)
        skip = known["test"]["skip"] or "skip" in known
        todo = known["test"]["todo"] or "todo" in known
        seconds = seconds_of(known)
        if failure := known.get("raised") or known.get("refused"):
            self._report(name, "failed", self._told(failure["text"]), seconds)
        elif skip or todo:
            self._report(name, "skipped", xfail=todo)
        elif "ran" in known:
            self.log.ran.add(name)
            self._report(name, "passed", "", seconds)
        elif failed_run:
            self._report(name, "failed", _UNFINISHED)
        else:
            self.log.phases[name] = []

    def _compare(
        self,
        path: str,
        registered: Counter[tuple[str, str | None]],
        told: NodeLog,
        defined: Sequence[DefinedTest],
    ) -> None:
        """Hold against each other what stands in a file and what was registered."""
        if not registered and not told.of("suite_left_out"):
            self._fail(f"{path}::(no test)", _NO_TEST)
        names = Counter(name for name, _ in registered.elements())
        for test in defined:
            name = _name(test)
            if not names[name]:
                self._doubt(path, name, "stands in its file, and was not registered")
            elif test.digest and not registered[name, test.digest]:
                self._doubt(path, name, "was registered, but with another function than stands in its file")
            names[name] -= 1
            registered[name, test.digest] -= 1

    def _doubt(self, path: str, name: str, what: str) -> None:
        self.expected.doubts.append(f"{path}::{title(name)} {what}")

    def _fail(self, name: str, text: str) -> None:
        self._report(self._free(name), "failed", text)

    def _left_out(self, name: str) -> None:
        self._report(self._free(name), "skipped")

    def _report(
        self, name: str, outcome: str, text: str = "", seconds: float = 0.0, *, xfail: bool = False
    ) -> None:
        call = {"when": "call", "outcome": outcome, "xfail": xfail, "seconds": seconds, "text": text}
        teardown = {"when": "teardown", "outcome": "passed", "xfail": False, "seconds": 0.0, "text": ""}
        self.log.phases[name] = [call, teardown]

    def _free(self, name: str) -> str:
        """Tell tests of one name apart by number."""
        return self._names.of(name)

    def _told(self, text: str) -> str:
        """Show paths as the project has them, and none of the lines that are Node's or the probe's own."""
        text = _OURS.sub("", text.encode(errors="replace").decode())
        return text.replace(f"file://{self.root}/", "").replace(f"{self.root}/", "").strip()


def _with_failed_parts(told: NodeLog) -> set[str]:
    """Name the tests that the runner refuses for their parts, which are failed themselves."""
    failed = (known for known in told.tests.values() if known.keys() & {"raised", "refused"})
    return {known["test"]["name"].rpartition("\0")[0] for known in failed}


def _name(test: DefinedTest) -> str:
    """Give the name of a test as the log has it."""
    return bounded_id("\0".join(test.names))
