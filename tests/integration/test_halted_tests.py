"""Tests of a draft that are told to stop from another thread, wherever they are just then."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psutil
import pytest
from support import WatchedHalt, silent_index, until

from ptc_worker.environments import environment
from ptc_worker.filetypes import artifact
from ptc_worker.halt import Halt, HaltedError, Why
from ptc_worker.runner import run_tests
from ptc_worker.sandbox.protocol import Sandbox, SandboxError
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from ptc_contracts.verdicts import Verdict

LONG = """
import subprocess, time
def test_takes_long():
    subprocess.Popen(["setsid", "sleep", "{marker}"])
    time.sleep(1000)
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> WorkerSettings:
    """Settings with an environment folder of these tests and one sandbox at a time."""
    return WorkerSettings(
        ptc_cache_dir=tmp_path_factory.mktemp("cache"), ptc_test_timeout=60, ptc_sandbox_concurrency=1
    )


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads to work in, while the test's own one stops the work."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


def running(marker: str) -> list[psutil.Process]:
    """Find the processes that carry a marker in their command line."""
    return [p for p in psutil.process_iter(["cmdline"]) if marker in (p.info["cmdline"] or [])]


def installers() -> list[psutil.Process]:
    """Find the installers that this process runs."""
    return [p for p in psutil.Process().children() if p.name() == "uv"]


def shell(box: Sandbox, script: str) -> int:
    """Run a script in the sandbox; return its exit code."""
    env = {"PATH": "/usr/bin:/bin"}
    return box.exec(["/bin/sh", "-c", script], env=env, cwd=".", timeout=60).exit_code


def start_tests(
    threads: ThreadPoolExecutor, settings: WorkerSettings, marker: str, halt: Halt
) -> Future[tuple[Verdict, str]]:
    """Run tests that would take all the time they have."""
    files = [artifact("tests/test_it.py", LONG.format(marker=marker))]
    return threads.submit(run_tests, settings, files, (), 60, halt)


def install(settings: WorkerSettings, halt: Halt) -> Path:
    """Get an environment with one more package."""
    with environment(settings, ("iniconfig<3",), 60, halt) as folder:
        return folder


@pytest.mark.parametrize("moment", ["at once", "when the agent is there", "when it runs"])
def test_a_stopped_command_leaves_nothing_alive(
    box: Sandbox, threads: ThreadPoolExecutor, moment: str
) -> None:
    """Neither its children, nor daemons that left its session, and the `exec` is no result."""
    marker = "1041.25"
    script = f"trap '' TERM HUP; for i in 1 2 3; do sleep {marker} & setsid sleep {marker} & done; wait"
    work = threads.submit(shell, box, script)
    if moment == "when the agent is there":
        until(psutil.Process().children)
    elif moment == "when it runs":
        until(lambda: len(running(marker)) == 6)
    box.stop()

    with pytest.raises(SandboxError, match="stopped"):
        work.result()
    assert running(marker) == []


def test_a_stopped_sandbox_runs_nothing_more(box: Sandbox) -> None:
    """Stopping is for good; it may be repeated, even when the sandbox is gone."""
    box.stop()
    box.stop()

    with pytest.raises(SandboxError, match="stopped"):
        shell(box, "exit 0")
    box.destroy()
    box.stop()


def test_what_has_run_before_a_stop_is_a_result(box: Sandbox) -> None:
    """A stop that comes too late takes nothing back."""
    code = shell(box, "exit 7")
    box.stop()

    assert code == 7


def test_halted_tests_bring_no_verdict_and_leave_nothing(
    settings: WorkerSettings, threads: ThreadPoolExecutor
) -> None:
    """Their processes are gone, and no other sandbox is tried."""
    halt, marker = Halt(), "1042.25"
    work = start_tests(threads, settings, marker, halt)
    until(lambda: running(marker))
    halt.set(Why.CANCELLED)

    with pytest.raises(HaltedError):
        work.result()
    assert running(marker) == []


def test_waiting_for_a_sandbox_can_be_halted(settings: WorkerSettings, threads: ThreadPoolExecutor) -> None:
    """The one that is waited for goes on."""
    first, second, marker = Halt(), WatchedHalt(), "1043.25"
    working = start_tests(threads, settings, marker, first)
    until(lambda: running(marker))
    waiting = start_tests(threads, settings, "1044.25", second)
    until(lambda: second.waits)
    second.set(Why.SHUTDOWN)

    with pytest.raises(HaltedError, match="shutdown"):
        waiting.result()
    assert len(running(marker)) == 1
    first.set(Why.SHUTDOWN)
    with pytest.raises(HaltedError):
        working.result()


def test_an_installation_can_be_halted(
    settings: WorkerSettings, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installer is gone when the halt is told."""
    halt = Halt()
    with silent_index(monkeypatch) as asked:
        work = threads.submit(install, settings, halt)
        asked.wait()
        halt.set(Why.LEASE_LOST)

        with pytest.raises(HaltedError):
            work.result()
        assert installers() == []


def test_waiting_for_an_installation_can_be_halted(
    settings: WorkerSettings, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installation that is waited for goes on."""
    first, second = Halt(), WatchedHalt()
    with silent_index(monkeypatch) as asked:
        installing = threads.submit(install, settings, first)
        asked.wait()
        waiting = threads.submit(install, settings, second)
        until(lambda: second.waits)
        second.set(Why.CANCELLED)

        with pytest.raises(HaltedError):
            waiting.result()
        assert len(installers()) == 1
        first.set(Why.CANCELLED)
        with pytest.raises(HaltedError):
            installing.result()


def test_who_waits_for_a_halted_installation_does_it_himself(
    settings: WorkerSettings, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The halt is for one run; the environment is built for the other, on the remains of the first try."""
    halt, other = Halt(), WatchedHalt()
    with monkeypatch.context() as patch, silent_index(patch) as asked:
        halted = threads.submit(install, settings, halt)
        asked.wait()
        waiting = threads.submit(install, settings, other)
        until(lambda: other.waits)
        patch.undo()
        halt.set(Why.CANCELLED)

        with pytest.raises(HaltedError):
            halted.result()
        assert list(waiting.result().glob("lib/python*/site-packages/iniconfig"))
