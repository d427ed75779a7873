"""The local sandbox: what gets in, what comes out, and what stays behind."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from support import until

from ptc_worker.environments import environment
from ptc_worker.halt import Halt
from ptc_worker.sandbox import open_sandbox
from ptc_worker.sandbox.local import OUTPUT_LIMIT
from ptc_worker.sandbox.protocol import Sandbox, SandboxError
from ptc_worker.settings import WorkerSettings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> WorkerSettings:
    """Settings with an environment folder of these tests, and a short limit for tests that hang."""
    return WorkerSettings(ptc_cache_dir=tmp_path_factory.mktemp("cache"), ptc_test_timeout=5)


def shell(box: Sandbox, script: str, *, timeout: float = 20, **env: str) -> tuple[int, str]:
    """Run a script in the sandbox; return exit code and standard output."""
    ran = box.exec(["/bin/sh", "-c", script], env={"PATH": "/usr/bin:/bin", **env}, cwd=".", timeout=timeout)
    return ran.exit_code, ran.stdout.decode()


def test_files_come_back_as_they_went_in(box: Sandbox) -> None:
    """Text and bytes, in folders that did not exist."""
    files = {"a/b/text.txt": "grün\n".encode(), "raw": bytes(range(256)), "empty": b""}
    box.write(files)

    assert {path: box.read(path, 1000) for path in files} == files


def test_only_regular_files_of_the_sandbox_can_be_read(box: Sandbox) -> None:
    """A link that the program left, a folder, a device, nothing at all: none of them is a file."""
    shell(box, "ln -s /etc/passwd link; mkdir folder; mkfifo pipe")

    assert [box.read(name, 10) for name in ("link", "folder", "pipe", "missing")] == [None] * 4


def test_a_link_is_not_written_through(box: Sandbox, tmp_path: Path) -> None:
    """What a program prepares cannot lead the worker's writes elsewhere."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    shell(box, f"ln -s {victim} target")

    with pytest.raises(SandboxError):
        box.write({"target": b"theirs"})
    assert victim.read_text() == "mine"


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9), ("kill -15 $$", -15)]
)
def test_exit_codes_and_signals_are_told_apart(box: Sandbox, script: str, code: int) -> None:
    """A signal is a negative code."""
    assert shell(box, script)[0] == code


def test_streams_are_separate_and_may_hold_any_bytes(box: Sandbox) -> None:
    """Invalid UTF-8 is the reader's business."""
    ran = box.exec(
        ["/bin/sh", "-c", r"printf '\377out'; printf err >&2"], env={"PATH": "/bin"}, cwd=".", timeout=20
    )

    assert (ran.stdout, ran.stderr) == (b"\xffout", b"err")


def test_standard_input_is_empty(box: Sandbox) -> None:
    """A program that asks gets an end of file, not a wait."""
    assert shell(box, "cat; echo done") == (0, "done\n")


def test_the_environment_is_what_was_given(box: Sandbox) -> None:
    """Nothing of the worker's own."""
    code, text = shell(box, "env", GIVEN="1")

    assert code == 0
    assert {line.partition("=")[0] for line in text.splitlines()} <= {
        "PATH",
        "GIVEN",
        "PWD",
        "SHLVL",
        "_",
        "OLDPWD",
        "PTC_EVENTS",
    }


def test_a_command_that_does_not_exist_is_the_sandboxes_error(box: Sandbox) -> None:
    """Nothing ran: that is not a failing program."""
    with pytest.raises(SandboxError, match="No such file"):
        box.exec(["/no/such/program"], env={}, cwd=".", timeout=5)


def test_time_ends_everything_and_keeps_what_was_written(box: Sandbox) -> None:
    """Daemons that left their session included; nothing survives."""
    marker = "31337.25"
    ran = box.exec(
        ["/bin/sh", "-c", f"echo early; (setsid sleep {marker} &) ; trap '' TERM; sleep {marker}"],
        env={"PATH": "/usr/bin:/bin"},
        cwd=".",
        timeout=1,
    )

    assert (ran.timed_out, ran.stdout) == (True, b"early\n")
    assert survivors(marker) == []


def test_what_a_command_leaves_behind_ends_with_it(box: Sandbox) -> None:
    """A daemon that closed its streams does not outlive the exec."""
    marker = "31338.25"
    code, _ = shell(box, f"(setsid sleep {marker} >/dev/null 2>&1 </dev/null &); exit 0")

    assert (code, survivors(marker)) == (0, [])


def test_output_without_end_is_cut(box: Sandbox) -> None:
    """The limit is met, the program ended, the worker's memory spared."""
    ran = box.exec(["/bin/sh", "-c", "yes"], env={"PATH": "/usr/bin:/bin"}, cwd=".", timeout=30)

    assert ran.output_limited
    assert len(ran.stdout) < OUTPUT_LIMIT + 2**20


def test_a_worker_that_is_killed_takes_its_sandboxes_along(tmp_path: Path) -> None:
    """The supervisor notices the death of its parent."""
    marker = "31339.25"
    script = (
        "from ptc_worker.sandbox import open_sandbox; from ptc_worker.settings import WorkerSettings\n"
        "from ptc_worker.environments import environment; from ptc_worker.halt import Halt\n"
        "s = WorkerSettings()\n"
        "with environment(s, (), 120, Halt()) as folder, open_sandbox(s, folder) as box:\n"
        f"    box.exec(['/bin/sh', '-c', 'echo; setsid sleep {marker}'], env={{'PATH': '/usr/bin:/bin'}}, cwd='.', timeout=99)\n"
    )
    worker = psutil.Popen([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)})
    until(lambda: survivors(marker) != [])

    worker.send_signal(signal.SIGKILL)
    worker.wait()

    until(lambda: survivors(marker) == [])


def test_a_destroyed_sandbox_is_gone(settings: WorkerSettings) -> None:
    """Destroying twice is fine; using it is an error; its files are removed, whatever rights they had."""
    with environment(settings, (), 120, Halt()) as folder, open_sandbox(settings, folder) as box:
        shell(box, "mkdir -p deep/er && touch deep/er/file && chmod 000 deep/er")
        root = Path(box.root)
    box.destroy()

    assert not root.exists()
    with pytest.raises(SandboxError, match="not there"):
        box.write({"a": b""})


def test_a_tree_without_end_is_removed_too(settings: WorkerSettings) -> None:
    """Deeper than Python can recurse, and with its rights taken away."""
    settings = settings.model_copy(update={"ptc_sandbox_isolation": "landlock"})
    with environment(settings, (), 120, Halt()) as folder, open_sandbox(settings, folder) as box:
        script = "i=0; while [ $i -lt 1500 ]; do mkdir d && cd -P d || break; i=$((i+1)); done; chmod 000 ."
        shell(box, script, timeout=60)
        parent = Path(box.root).parent

    assert not parent.exists()


def survivors(marker: str) -> list[int]:
    """Find processes that carry a marker in their command line."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if marker in (p.info["cmdline"] or [])]
