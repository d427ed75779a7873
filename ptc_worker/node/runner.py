"""Runs a project's tests with Node's own test runner in a sandbox: each test file in a process of its own."""

from __future__ import annotations

import re
import secrets
import time
from typing import TYPE_CHECKING

import structlog

from ptc_contracts.verdicts import Outcome, Verdict
from ptc_worker.dependencies import missing_verdict
from ptc_worker.failures import signature_of
from ptc_worker.frozen import is_test_material
from ptc_worker.javascript import is_javascript, node_tests, runner_script
from ptc_worker.node.eventlog import NodeLogReader
from ptc_worker.node.events import Account
from ptc_worker.node.installed import NodeMissingError, find_node
from ptc_worker.node.packages import NodeAddition, node_needs
from ptc_worker.sandbox import equipped
from ptc_worker.sandbox.protocol import NOBODYS, SandboxError
from ptc_worker.slots import in_a_slot
from ptc_worker.telling import Teller, nobody
from ptc_worker.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from ptc_contracts import CodeArtifact
    from ptc_worker.halt import Halt
    from ptc_worker.sandbox.protocol import ExecResult, Purpose, Sandbox
    from ptc_worker.settings import WorkerSettings
    from ptc_worker.slots import Allowance
    from ptc_worker.telling import Listener
    from ptc_worker.verdict import EventLog

log = structlog.get_logger(__name__)

_OTHERS = re.compile(r"\b(vitest|jest|mocha|ava|jasmine|tap|karma|playwright|cypress|bun|deno)\b")
"""Test runners that are not supported."""

_USE_NODES = (
    "No test can be run. Only Node's own test runner is available: import `test` from 'node:test' and `assert` from "
    "'node:assert/strict' in files named *.test.js (.mjs, .cjs, .ts), and let package.json say "
    '{"scripts": {"test": "node --test"}}.'
)


def run_node_tests(
    settings: WorkerSettings,
    files: Sequence[CodeArtifact],
    seconds: float,
    halt: Halt,
    plan_dependencies: Sequence[str] = (),
    *,
    given: Collection[str] = (),
    purpose: Purpose = NOBODYS,
    told: Listener = nobody,
) -> tuple[Verdict, str]:
    """Run a project's JavaScript and TypeScript tests for at most so many seconds; return verdict and isolation.

    The isolation is empty where nothing was run. A sandbox that fails is replaced once. `given` are the paths of
    files that the plan gave: tests in them are left out as they say. `told` hears of each test as it ends, and of each
    begin: a sandbox that is replaced begins again.

    Raises:
        NodeMissingError: they cannot be run here: there is no Node, or the plan asks for another runner.
        InstallError: the packages cannot be installed.
        SandboxError: no sandbox can be had.
        BusyError: there is no room for one just now.
        TimeoutError: the time was over before the tests began.
        HaltedError: the work must stop; nothing of it is left behind.
    """
    node = find_node()
    tests = node_tests(files)
    if foreign := [path for path in tests.empty if path in given]:
        raise NodeMissingError(
            f"{', '.join(foreign)}, which the plan gave, has no test of node:test: only Node's own test runner is supported"
        )
    if not tests.files:
        return _no_tests(files, plan_dependencies), ""
    needs = node_needs(plan_dependencies, files, settings.ptc_allowed_dependencies, node.modules)
    if needs.missing:
        return missing_verdict(needs.missing), ""
    deadline = time.monotonic() + seconds
    addition = NodeAddition(node, needs.packages)
    with equipped(settings, (), seconds, halt, addition=addition, purpose=purpose) as open_sandbox:

        def run(allowance: Allowance) -> tuple[Verdict, str]:
            with open_sandbox() as box, halt.calling(box.stop):
                return _run_in(box, files, allowance, given=given, told=told)

        return in_a_slot(settings, deadline, halt, run)


def _no_tests(files: Sequence[CodeArtifact], plan_dependencies: Sequence[str]) -> Verdict:
    """Send a draft back whose tests are for another runner, unless its plan asks for that one."""
    asked = {found for name in plan_dependencies for found in _OTHERS.findall(name.lower())}
    if asked:
        raise NodeMissingError(
            f"the plan asks for {', '.join(sorted(asked))}: only Node's own test runner (node --test) is supported"
        )
    texts = [runner_script(files), *(file.content for file in files if is_javascript(file.file_path))]
    found = sorted({name for text in texts for name in _OTHERS.findall(text)})
    told = f" ({', '.join(found)} is not.)" if found else ""
    return Verdict(
        outcome=Outcome.NO_TESTS,
        feedback=_USE_NODES + told,
        signature=signature_of(Outcome.NO_TESTS, found),
    )


def _run_in(
    box: Sandbox,
    files: Sequence[CodeArtifact],
    allowance: Allowance,
    *,
    given: Collection[str],
    told: Listener,
) -> tuple[Verdict, str]:
    tests = node_tests(files)
    drafted = {f"project/{file.file_path}": file.content.encode(errors="replace") for file in files}
    box.write({**drafted, "home/.keep": b"", "tmp/.keep": b""})
    _link_packages(box)
    deadline = time.monotonic() + allowance.seconds
    account = Account(f"{box.root}/project")
    account.trust(given, tests)
    teller = Teller(told, "node")
    teller.begin(tests.count)
    for path in sorted(tests.files):
        left = deadline - time.monotonic()
        key = secrets.token_bytes(32)
        try:
            box.write({"ptc/key": key})
        except SandboxError as error:
            if not account.runs:
                raise
            box.read("ptc/key", 0)  # one that answers is whole: what ran before is in the way
            account.log.meddling.append(f"{path} could not be run after the test files before it: {error}")
            break
        reader = NodeLogReader(path, key, teller)
        ran = _run_file(box, path, max(left, 0.1), reader.feed)
        account.take(path, ran, reader.log, tests.files[path])
        _tell_rest(teller, account.log)
        _look_after(box, files, given, account)
        if ran.timed_out or ran.out_of_memory or ran.output_limited:
            break
    for path in tests.empty:
        account.take_empty(path)
    _tell_rest(teller, account.log)
    shown = "node --test " + " ".join(sorted(tests.files))
    verdict = judge(account.whole_run(), account.log, shown, account.expected)
    log.info("node_tests_ran", outcome=verdict.outcome.value, files=len(account.runs))
    return verdict, box.isolation


def _tell_rest(teller: Teller, events: EventLog) -> None:
    """Tell what only the end of a file's process shows: tests that never ran to their end, and what failed beside them."""
    for test in events.phases:
        teller.end_as_in(events, test)
    for error in events.collect_errors:
        teller.end(error["id"], "error")


def _link_packages(box: Sandbox) -> None:
    """Let the project find its packages where Node looks for them: in a folder above."""
    if modules := box.tools.node_modules:
        box.exec(["/bin/ln", "-s", modules, "../node_modules"], env={}, cwd="project", timeout=10)


def _run_file(box: Sandbox, path: str, seconds: float, heard: Callable[[bytes], None]) -> ExecResult:
    tools = box.tools
    return box.exec(
        [
            tools.node,
            *(
                "--require",
                f"{tools.inside}/node_probe.cjs",
                "--disable-sigusr1",
                "--test-reporter=spec",
                *tools.node_options,
                path,
            ),
        ],
        env={
            "PATH": tools.path,
            "HOME": f"{box.root}/home",
            "TMPDIR": f"{box.root}/tmp",  # noqa: S108 its own
            "USER": "sandbox",
            "LANG": "C.UTF-8",
            "NODE_ENV": "test",
            "NO_COLOR": "1",
            "OPENSSL_CONF": "/dev/null",  # the system's cannot be read everywhere, and Node ends without
            "PTC_KEY": f"{box.root}/ptc/key",
        },
        cwd="project",
        timeout=seconds,
        heard=heard,
    )


def _look_after(
    box: Sandbox, files: Sequence[CodeArtifact], given: Collection[str], account: Account
) -> None:
    """Find files that the test file which ran has changed: code, and what tests read. Others are yet to run with them."""
    watched = {
        f"project/{file.file_path}": file.content.encode(errors="replace")
        for file in files
        if file.file_path in given
        or is_javascript(file.file_path)
        or (is_test_material(file.file_path) and file.content.strip())
    }
    account.log.meddling += [
        f"{path.removeprefix('project/')} was changed while the tests ran" for path in box.changed(watched)
    ]
