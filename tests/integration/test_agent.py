"""A program that is forked of a sandbox's agent is what it would be on its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import mounts_at

from ptc_worker.environments import environment
from ptc_worker.halt import Halt
from ptc_worker.sandbox import open_sandbox
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
