"""What is told of tests while they run: at once, by pytest and by Node, to whoever listens and however they fail."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil
import pytest
from support import until

from ptc_contracts.verdicts import Outcome
from ptc_worker.filetypes import artifact
from ptc_worker.halt import Halt, HaltedError, Why
from ptc_worker.node import run_node_tests
from ptc_worker.runner import run_tests
from ptc_worker.settings import WorkerSettings
from ptc_worker.telling import TestsBegan, TestTold, nobody

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ptc_contracts.verdicts import Verdict
    from ptc_worker.telling import Listener, Told

SECONDS = 20
USES = "import test from 'node:test';\nimport assert from 'node:assert/strict';\n"

HANGS_SECOND = """
import subprocess, time
def test_first(): pass
def test_second():
    subprocess.Popen(["setsid", "sleep", "{marker}"])
    time.sleep(1000)
"""
HANGS_SECOND_IN_NODE = """
import { spawn } from 'node:child_process';
test('first', () => {});
test('second', () => { spawn('sleep', ['{marker}']); return new Promise(() => { setInterval(() => {}, 1000); }); });
"""
WAITS_SECOND = """
import subprocess
def test_first(): pass
def test_second(): subprocess.run(["sleep", "{marker}"])
"""

ALL_KINDS = """
import pytest
def test_passes(): pass
def test_fails(): assert 0
def test_skips(): pytest.skip("x")
@pytest.mark.xfail
def test_is_expected_to_fail(): assert 0
@pytest.mark.xfail
def test_is_not_expected_to_pass(): pass
@pytest.fixture
def broken(): raise RuntimeError
def test_has_no_start(broken): pass
@pytest.fixture
def ends_badly():
    yield
    raise RuntimeError
def test_has_a_bad_end(ends_badly): pass
@pytest.mark.parametrize("number", range(3))
def test_is_many(number): assert number != 1
"""
ALL_KINDS_IN_NODE = """
import { afterEach, beforeEach, describe } from 'node:test';
test('passes', () => {});
test('passes', () => {});
test('fails', () => { assert.equal(1, 2); });
test('is skipped', { skip: true }, () => {});
test('skips itself', (t) => { t.skip(); });
test('is to do', { todo: true }, () => {});
test('is to be written');
test('has parts', async (t) => { await t.test('part', () => {}); await t.test('bad part', () => { throw new Error(); }); });
describe('suite', () => { beforeEach(() => { throw new Error('hook'); }); test('never runs', () => {}); });
"""


@pytest.fixture(scope="module")
def settings(cache: Path) -> WorkerSettings:
    """Settings with the session's environments."""
    return WorkerSettings(ptc_cache_dir=cache, ptc_sandbox_pool=0)


def pytest_runs(settings: WorkerSettings, tests: str, told: Listener, halt: Halt | None = None) -> Verdict:
    """Run a test file of pytest's."""
    files = [artifact("tests/test_it.py", tests)]
    return run_tests(settings, files, (), SECONDS, halt or Halt(), told=told)[0]


def node_runs(settings: WorkerSettings, tests: str, told: Listener, halt: Halt | None = None) -> Verdict:
    """Run a test file of Node's."""
    files = [artifact("it.test.mjs", USES + tests)]
    return run_node_tests(settings, files, SECONDS, halt or Halt(), told=told)[0]


def running(marker: str) -> list[psutil.Process]:
    """Find the processes that carry a marker in their command line."""
    return [p for p in psutil.process_iter(["cmdline"]) if marker in (p.info["cmdline"] or [])]


def agents(marker: str) -> list[psutil.Process]:
    """Find our own children below which a command with this marker runs."""
    below = {process.pid for found in running(marker) for process in found.parents()}
    return [child for child in psutil.Process().children() if child.pid in below]


@pytest.mark.parametrize("tier", ["bubblewrap", "landlock"])
@pytest.mark.parametrize(
    ("run", "tests"), [(pytest_runs, HANGS_SECOND), (node_runs, HANGS_SECOND_IN_NODE)], ids=["pytest", "node"]
)
def test_a_test_is_told_while_the_next_one_runs(
    settings: WorkerSettings, run: Callable[..., Verdict], tests: str, tier: str
) -> None:
    """Whoever hears of it can still stop the run, which has no verdict then, and leaves nothing."""
    halt, marker = Halt(), f"1{os.getpid()}.75"

    def told(what: Told) -> None:
        if isinstance(what, TestTold):
            until(lambda: running(marker))
            halt.set(Why.CANCELLED)

    own = settings.model_copy(update={"ptc_sandbox_isolation": tier})
    with pytest.raises(HaltedError):
        run(own, tests.replace("{marker}", marker), told, halt)

    assert running(marker) == []


def test_what_only_the_end_of_a_file_shows_is_told_while_the_next_one_runs(settings: WorkerSettings) -> None:
    """Node runs a file after another: each is a process of its own."""
    halt, marker = Halt(), f"3{os.getpid()}.75"
    texts = {
        "a.test.mjs": "throw new Error('x');",
        "b.test.mjs": HANGS_SECOND_IN_NODE.replace("{marker}", marker),
    }
    heard: list[Told] = []

    def told(what: Told) -> None:
        heard.append(what)
        if len(heard) == 2:
            halt.set(Why.CANCELLED)

    files = [artifact(path, USES + text) for path, text in texts.items()]
    with pytest.raises(HaltedError):
        run_node_tests(settings, files, SECONDS, halt, told=told)

    assert heard[1] == TestTold("a.test.mjs", "error", 0.0)


@pytest.mark.parametrize(
    ("run", "tests", "began"),
    [
        (pytest_runs, ALL_KINDS, TestsBegan("pytest", 10)),
        (node_runs, ALL_KINDS_IN_NODE, TestsBegan("node", 8)),
    ],
    ids=["pytest", "node"],
)
def test_what_is_told_is_what_the_result_says(
    settings: WorkerSettings, run: Callable[..., Verdict], tests: str, began: TestsBegan
) -> None:
    """Each test once, with its outcome and its time; before them that they begin, and how many they are."""
    heard: list[Told] = []
    verdict = run(settings, tests, heard.append)
    tests_told = [told for told in heard if isinstance(told, TestTold)]

    assert heard == [began, *tests_told]
    assert sorted((t.test, t.outcome, t.seconds) for t in tests_told) == sorted(
        (t["id"], t["outcome"], t["seconds"]) for t in verdict.tests
    )


LONG_PARAMETERS = """
import pytest
@pytest.mark.parametrize("text", ["a" * 900_000 + "1", "a" * 900_000 + "2"])
def test_has_a_long_parameter(text): assert len(text) == 900_001
"""
LONGER_ID = """
import pytest
@pytest.mark.parametrize("number", [1], ids=["0-" * 1_000_000])
def test_has_an_endless_id(number): pass
"""
STRANGE_TIME = """
import pytest
@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    report.duration = 10**4000
    return report
"""


def test_tests_with_long_parameters_are_told_and_counted(settings: WorkerSettings) -> None:
    """Each for itself, though pytest makes ids of all that they are given."""
    heard: list[Told] = []
    verdict = pytest_runs(settings, LONG_PARAMETERS, heard.append)

    assert (verdict.outcome, verdict.counts) == (Outcome.PASSED, {"passed": 2})
    assert [told.outcome for told in heard[1:] if isinstance(told, TestTold)] == ["passed"] * 2


def test_a_test_with_an_id_of_megabytes_is_sent_back_with_what_to_mend(settings: WorkerSettings) -> None:
    """It proves nothing, and costs the worker nothing."""
    verdict = pytest_runs(settings, LONGER_ID, nobody)

    assert verdict.outcome is Outcome.TAMPERED
    assert "parameters that long need ids of their own" in verdict.feedback


def test_a_report_with_values_that_nobody_measures_is_a_verdict(settings: WorkerSettings) -> None:
    """A plugin of the draft's wrote them; neither the report nor the worker fails of them."""
    files = [artifact("tests/test_it.py", "def test_passes(): pass"), artifact("conftest.py", STRANGE_TIME)]
    verdict, _ = run_tests(settings, files, (), SECONDS, Halt())

    assert (verdict.outcome, verdict.tests[0]["seconds"]) == (Outcome.PASSED, 0)


@pytest.mark.parametrize(
    ("run", "tests", "path"),
    [
        (pytest_runs, "import nothing_of_that_name", "tests/test_it.py"),
        (node_runs, "throw new Error('x');", "it.test.mjs"),
    ],
    ids=["pytest", "node"],
)
def test_a_file_that_cannot_be_imported_is_told_as_an_error(
    settings: WorkerSettings, run: Callable[..., Verdict], tests: str, path: str
) -> None:
    """By its own name."""
    heard: list[Told] = []
    verdict = run(settings, tests, heard.append)

    assert verdict.outcome is Outcome.COLLECTION_ERROR
    assert heard[1:] == [TestTold(path, "error", 0.0)]


def test_tests_begin_anew_in_a_sandbox_that_takes_the_place_of_another(settings: WorkerSettings) -> None:
    """A second begin tells that what was told before it holds no more."""
    marker = f"2.{os.getpid():09}"
    heard: list[Told] = []

    def told(what: Told) -> None:
        heard.append(what)
        if len(heard) == 2:
            until(lambda: agents(marker))
            (agent,) = agents(marker)
            agent.kill()

    verdict = pytest_runs(settings, WAITS_SECOND.format(marker=marker), told)
    names = [what.test if isinstance(what, TestTold) else what for what in heard]
    first, second = "tests/test_it.py::test_first", "tests/test_it.py::test_second"
    began = TestsBegan("pytest", 2)

    assert verdict.outcome is Outcome.PASSED
    assert names == [began, first, began, first, second]


@pytest.mark.parametrize(
    ("run", "tests"),
    [(pytest_runs, "def test_a(): pass\ndef test_b(): pass"), (node_runs, "test('a', () => {});")],
    ids=["pytest", "node"],
)
def test_a_listener_that_fails_costs_no_verdict(
    settings: WorkerSettings, run: Callable[..., Verdict], tests: str
) -> None:
    """It is asked once, and the sandbox is gone as ever."""
    asked, before = [], psutil.Process().children()

    def fail(what: Told) -> None:
        asked.append(what)
        raise OSError("the connection is gone")

    verdict = run(settings, tests, fail)

    assert (verdict.outcome, len(asked)) == (Outcome.PASSED, 1)
    assert psutil.Process().children() == before
