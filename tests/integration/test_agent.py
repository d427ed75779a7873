"""A program that is forked of a sandbox's agent is what it would be on its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from support import mounts_at, until

from ptc_worker.environments import environment
from ptc_worker.halt import Halt
from ptc_worker.sandbox.kinds.local import opened as open_sandbox
from ptc_worker.sandbox.kinds.local import pool_for
from ptc_worker.sandbox.local import LocalSandbox
from ptc_worker.settings import WorkerSettings

LOOK = """
import gc, json, os, resource, signal, sys
facts = {
    "modules": sorted(sys.modules),
    "path": sys.path[1:],
    "argv": sys.argv,
    "orig_argv": sys.orig_argv,
    "flags": str(sys.flags),
    "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGHUP)],
    "encodings": [sys.stdout.encoding, sys.getfilesystemencoding()],
    "environment": dict(os.environ),
    "main": sys.modules["__main__"].__file__,
    "hash": hash("equal"),
    "session": os.getsid(0) == os.getpid(),
}
def test_look():
    print(json.dumps(facts))
"""


def facts_of(output: bytes) -> dict[str, Any]:
    """Find what the test told."""
    (line,) = (line for line in output.decode().splitlines() if line.startswith("{"))
    facts: dict[str, Any] = json.loads(line)
    return facts


@pytest.mark.parametrize("isolation", ["bubblewrap", "landlock"])
def test_a_forked_pytest_cannot_be_told_from_one_that_was_started(
    cache: Path, tmp_path: Path, isolation: str
) -> None:
    """Its modules above all: one more would hide a module of the project that has the same name."""
    settings = WorkerSettings(ptc_sandbox_isolation=isolation, ptc_cache_dir=cache)
    env = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PTC_KEY": "key"}
    env |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    files = {"test_look.py": LOOK.encode(), "key": bytes(32)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with environment(settings, (), 120, Halt()) as folder:
        command = [str(folder / "bin/python"), "-P", "-B", "-m", "pytest", "-q", "-s"]
        command += ["-p", "no:cacheprovider", "-p", "ptc_inside.pytest_report"]
        with open_sandbox(settings, folder) as box:
            box.write(files)
            forked = box.exec(command, env=env, cwd=".", timeout=60)
        started = subprocess.run(
            command,
            cwd=tmp_path,
            env={**env, "PTC_EVENTS": os.devnull},
            capture_output=True,
            check=True,
            start_new_session=True,
        )

    assert facts_of(forked.stdout) == facts_of(started.stdout)


def test_a_sandbox_outlives_the_thread_that_opened_it(cache: Path) -> None:
    """It is to die with the worker, and the system takes the thread that started it for that."""
    settings = WorkerSettings(ptc_sandbox_isolation="bubblewrap", ptc_cache_dir=cache)
    with environment(settings, (), 120, Halt()) as folder, LocalSandbox(settings, folder) as box:
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(box.exec, ["/bin/sh", "-c", ":"], env={}, cwd=".", timeout=20).result()
        second = box.exec(["/bin/sh", "-c", "exit 3"], env={}, cwd=".", timeout=20)

    assert (first.exit_code, second.exit_code) == (0, 3)


def test_mounts_for_sandboxes_are_out_of_the_hosts_sight(cache: Path) -> None:
    """Not even when the first sandboxes of a process are opened by many threads at once."""
    script = (
        "from concurrent.futures import ThreadPoolExecutor; from ptc_worker.environments import environment\n"
        "from ptc_worker.halt import Halt; from ptc_worker.sandbox.local import LocalSandbox\n"
        "from ptc_worker.settings import WorkerSettings; s = WorkerSettings()\n"
        "with environment(s, (), 120, Halt()) as folder, ThreadPoolExecutor(8) as threads:\n"
        "    def use(_):\n"
        "        with LocalSandbox(s, folder, preload=False) as box:\n"
        "            box.exec(['/bin/sh', '-c', ':'], env={}, cwd='.', timeout=20)\n"
        "    list(threads.map(use, range(16)))\n"
    )
    ours = (cache, Path(sys.base_prefix))
    before = mounts_at(*ours)
    subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PTC_CACHE_DIR": str(cache)}, check=True
    )

    assert mounts_at(*ours) == before


def agents() -> set[psutil.Process]:
    """Find the agents that this process has started."""
    return {
        process
        for process in psutil.Process().children(recursive=True)
        if any("inside.agent" in part for part in process.cmdline())
    }


def test_packages_run_nothing_outside_the_walls(tmp_path: Path) -> None:
    """An interpreter that starts runs the lines of their `.pth` files, and the agent is the worker's own user there."""
    settings = WorkerSettings(ptc_sandbox_isolation="landlock", ptc_cache_dir=tmp_path / "cache")
    with environment(settings, (), 120, Halt()) as folder:
        (site_packages,) = folder.glob("lib/python*/site-packages")
        trace = site_packages / "trace"
        (site_packages / "strange.pth").write_text(f"import os; open({str(trace)!r}, 'w')\n")
        with LocalSandbox(settings, folder) as box:
            box.exec([f"{folder}/bin/python", "-c", ""], env={}, cwd=".", timeout=20)

    assert not trace.exists()


MEDDLE = """
import ctypes, fcntl, os, socket, sys
libc, agent = ctypes.CDLL(None), int(sys.argv[1])
def tell(name, act, *arguments):
    try:
        result = act(*arguments)
    except OSError:
        return
    if not isinstance(result, int) or result >= 0:
        print(name)
tell("nice", os.setpriority, os.PRIO_PROCESS, agent, 19)
tell("nice of all", os.setpriority, os.PRIO_USER, 0, 19)
tell("cores", os.sched_setaffinity, agent, [0])
tell("scheduler", os.sched_setscheduler, agent, os.SCHED_IDLE, os.sched_param(0))
tell("lease", fcntl.fcntl, os.open(sys.executable, os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_WRLCK)
tell("queue", libc.mq_open, b"/queue", os.O_CREAT | os.O_RDWR, 0o600, None)
if agent > 1:
    tell("datagrams", socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM)
os.nice(1), os.sched_setaffinity(0, os.sched_getaffinity(0)), socket.socketpair()
print("done")
"""


@pytest.mark.parametrize("isolation", ["bubblewrap", "landlock"])
def test_a_program_cannot_slow_down_or_reach_what_is_outside(cache: Path, isolation: str) -> None:
    """No priorities of others, leases on files, queues or datagrams; what it does to itself is its own affair."""
    settings = WorkerSettings(ptc_sandbox_isolation=isolation, ptc_cache_dir=cache)
    with environment(settings, (), 120, Halt()) as folder, LocalSandbox(settings, folder) as box:
        other = "1" if isolation == "bubblewrap" else str(os.getpid())
        ran = box.exec([f"{folder}/bin/python", "-c", MEDDLE, other], env={}, cwd=".", timeout=20)

    assert ran.stdout.decode() == "done\n", ran.stderr


@pytest.mark.parametrize("isolation", ["bubblewrap", "landlock"])
def test_an_agent_that_hangs_holds_up_nobody_and_leaves_nothing(cache: Path, isolation: str) -> None:
    """Whoever stops the sandbox does not wait for it, and what it ran is gone afterwards."""
    settings = WorkerSettings(ptc_sandbox_isolation=isolation, ptc_cache_dir=cache)
    marker, before = f"71{os.getpid()}.25", agents()
    script = f"setsid sleep {marker} & sleep {marker}"

    def sleepers() -> list[psutil.Process]:
        return [
            each for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == ["sleep", marker]
        ]

    with environment(settings, (), 120, Halt()) as folder:
        box = LocalSandbox(settings, folder)
        box.start()
        with ThreadPoolExecutor(1) as threads:
            running = threads.submit(
                box.exec, ["/bin/sh", "-c", script], env={"PATH": "/usr/bin:/bin"}, cwd=".", timeout=60
            )
            until(lambda: len(sleepers()) == 2)
            for agent in agents() - before:
                agent.send_signal(signal.SIGSTOP)
            destroying = Thread(target=box.destroy)
            destroying.start()
            until(lambda: not box.running)
            box.stop()
            waited = not destroying.is_alive()
            destroying.join()

    assert running.exception() is not None
    assert not waited
    until(lambda: not sleepers())


def test_a_run_ends_well_when_its_pool_was_closed_meanwhile(cache: Path) -> None:
    """The process is about to end; that no sandbox is prepared any more spoils no result."""
    settings = WorkerSettings(
        ptc_sandbox_isolation="bubblewrap", ptc_cache_dir=cache, ptc_sandbox_memory_mb=777
    )
    with environment(settings, (), 120, Halt()) as folder, open_sandbox(settings, folder) as box:
        pool_for(settings).close()
        ran = box.exec(["/bin/sh", "-c", "exit 3"], env={}, cwd=".", timeout=20)

    assert ran.exit_code == 3


@pytest.mark.parametrize("isolation", ["bubblewrap", "landlock"])
def test_the_cache_may_be_a_link_into_a_closed_folder(tmp_path: Path, isolation: str) -> None:
    """What only the worker's user may enter is shown to sandboxes by its own path."""
    (tmp_path / "closed").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "closed")
    settings = WorkerSettings(ptc_sandbox_isolation=isolation, ptc_cache_dir=tmp_path / "link")
    with environment(settings, (), 120, Halt()) as folder, LocalSandbox(settings, folder) as box:
        ran = box.exec([f"{folder}/bin/python", "-c", "print(1)"], env={}, cwd=".", timeout=20)

    assert ran.stdout == b"1\n"
