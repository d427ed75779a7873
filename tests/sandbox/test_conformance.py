"""What every sandbox does, whoever makes it: files, commands, and a life that ends once."""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from sandbox.host import alive
from support import PATIENCE_SECONDS, until

from ptc_worker.sandbox.protocol import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sandbox.ways import Way

    from ptc_worker.sandbox.protocol import ExecResult, Sandbox

REFUSED = (SandboxError, ValueError)
PATH = "/usr/bin:/bin"
OUTPUT_LIMIT, EVENTS_LIMIT, SLACK = 4 * 2**20, 32 * 2**20, 2**20

EVENTS = """
import os
kind, _, number = os.environ["PTC_EVENTS"].partition(":")
events = int(number) if kind == "fd" else os.open(os.environ["PTC_EVENTS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
"""


def run(box: Sandbox, *command: str, cwd: str = ".", timeout: float = 20, **env: str) -> ExecResult:
    """Run a command in a sandbox."""
    return box.exec(command, env={"PATH": PATH, **env}, cwd=cwd, timeout=timeout)


def shell(box: Sandbox, script: str, *, cwd: str = ".") -> str:
    """Run a script that succeeds; return its output."""
    ran = run(box, "/bin/sh", "-c", script, cwd=cwd, timeout=PATIENCE_SECONDS)
    assert ran.exit_code == 0, ran
    return ran.stdout.decode()


@pytest.fixture(autouse=True)
def case(way: Way, record_property: Callable[[str, object], None]) -> None:
    """Count it."""
    record_property("case", ("conformance", str(way), "all"))


@pytest.fixture(scope="session")
def used_box(way: Way, cache_dir: Path) -> Iterator[Sandbox]:
    """A sandbox of each kind that many tests use, one after another."""
    with way.open(cache_dir) as opened:
        yield opened


# ── files ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "content",
    [b"", "grün\n".encode(), bytes(range(256)), b"\r\n\0\xff", bytes(2**23)],
    ids=["empty", "text", "every byte", "no text", "8 MiB"],
)
def test_a_file_comes_back_as_it_went_in(used_box: Sandbox, content: bytes) -> None:
    """Whatever is in it, however large."""
    used_box.write({"folder/that/is/new/file": content})

    assert used_box.read("folder/that/is/new/file", 2**24) == content


def test_many_files_go_in_at_once(box: Sandbox) -> None:
    """As many as a project has."""
    files = {f"package_{n % 7}/module_{n}.py": f"x = {n}".encode() for n in range(300)}
    box.write(files)

    few = dict([*files.items()][::60])
    assert {path: box.read(path, 100) for path in few} == few
    assert box.changed(files) == []
    assert shell(box, "find . -name 'module_*' | wc -l").strip() == "300"


def test_writing_again_replaces_all_of_a_file(box: Sandbox) -> None:
    """Nothing of the longer one stays."""
    box.write({"file": b"long content"})
    box.write({"file": b"short"})

    assert box.read("file", 100) == b"short"


def test_a_file_that_is_written_again_has_no_name_but_its_own(box: Sandbox) -> None:
    """Whoever kept the old one by another name does not get to read the new one."""
    box.write({"file": b"old"})
    shell(box, "ln file kept")
    box.write({"file": b"new"})

    assert box.read("kept", 9) == b"old"
    assert shell(box, "cat file kept") == "newold"


def test_a_file_may_be_written_for_reading_only(way: Way, box: Sandbox) -> None:
    """The program's user owns it, so this is a hint where modes can be changed; what was not asked for can be written."""
    box.write({"folder/fixed": b"1"}, read_only=True)
    box.write({"folder/free": b"1"})
    told = shell(
        box,
        "cat folder/fixed; stat -c %a folder/*; printf 2 > folder/free; chmod u+w folder/fixed; "
        "(printf 2 > folder/fixed) 2> /dev/null; true",
    )

    assert told == "1444\n644\n"
    assert (box.read("folder/free", 9), box.read("folder/fixed", 9)) == (
        b"2",
        b"2" if way.modes else b"1",
    )


def test_the_program_sees_what_was_written_and_we_see_what_it_writes(box: Sandbox) -> None:
    """It may read, change and remove it; a new file is in reach too."""
    box.write({"a/file": b"1", "gone": b""})
    shell(box, "cat a/file > a/copy; printf 2 >> a/file; mkdir b; printf 3 > b/new; rm gone")

    assert [box.read(path, 9) for path in ("a/copy", "a/file", "b/new", "gone")] == [b"1", b"12", b"3", None]


@pytest.mark.parametrize(
    "name",
    [
        "-rf",
        "--",
        "new\nline",
        "a space",
        " ",
        "ünïcödé/名前.py",
        ".hidden",
        "..dots",
        "...",
        "quote'\"$(id)`id`;&|*?",
        "tab\t",
        "back\\slash",
        "x" * 255,
        "/".join("d" * 20 for _ in range(50)),
    ],
)
def test_an_odd_name_is_a_name(used_box: Sandbox, name: str) -> None:
    """The program finds the file under just that name."""
    used_box.write({name: b"odd"})

    assert used_box.read(name, 9) == b"odd"
    assert run(used_box, "/bin/sh", "-c", 'cat "./$1"', "sh", name).stdout == b"odd"


@pytest.mark.parametrize(
    "name",
    ["../escape", "a/../../escape", "..", "/tmp/ptc-escape", "//ptc-escape", "", ".", "/", "a\0b", "a/.."],
)
def test_a_name_that_leads_elsewhere_is_refused(used_box: Sandbox, name: str) -> None:
    """Nothing is written anywhere, and nothing is read."""
    with pytest.raises(REFUSED):
        used_box.write({name: b"escaped"})
    with suppress(*REFUSED):
        assert used_box.read(name, 100) is None

    assert "escape" not in shell(used_box, "ls -A . ..; ls /tmp/ptc-escape /ptc-escape; true")


def test_a_read_honours_its_limit(box: Sandbox) -> None:
    """The start of the file, no more."""
    box.write({"file": b"0123456789"})

    assert [box.read("file", limit) for limit in (0, 4, 10, 11)] == [
        b"",
        b"0123",
        b"0123456789",
        b"0123456789",
    ]


def test_only_a_regular_file_can_be_read(box: Sandbox) -> None:
    """A link, a folder, a pipe, nothing at all: none of them is a file."""
    box.write({"folder/file": b"x"})
    shell(
        box,
        "ln -s folder/file link; ln -s folder linked; ln -s /etc/passwd out; mkfifo pipe; ln -s loop loop",
    )
    names = (
        "link",
        "linked/file",
        "out",
        "folder",
        "pipe",
        "loop",
        "missing",
        "missing/file",
        "folder/file/x",
    )

    assert {name: box.read(name, 9) for name in names} == dict.fromkeys(names)


@pytest.mark.parametrize("target", ["link", "linked/file", "linked/new/file"])
def test_a_link_is_not_written_through(box: Sandbox, target: str) -> None:
    """Neither as the file nor on the way to it."""
    box.write({"folder/file": b"mine"})
    shell(box, "ln -s folder/file link; ln -s folder linked")

    with pytest.raises(REFUSED):
        box.write({target: b"theirs"})
    assert shell(box, "cat folder/file; ls folder") == "minefile\n"


@pytest.mark.parametrize(
    "obstacle", ["mkdir target", "mkfifo target", "mkdir -p target/sub; chmod 000 target"]
)
def test_what_is_no_file_is_not_written(box: Sandbox, obstacle: str) -> None:
    """And nobody waits for it."""
    shell(box, obstacle)

    with pytest.raises(REFUSED):
        box.write({"target": b"x"})


def test_a_file_in_the_place_of_a_folder_is_an_error(box: Sandbox) -> None:
    """It stays what it is."""
    box.write({"file": b"x"})

    with pytest.raises(REFUSED):
        box.write({"file/below": b"y"})
    assert box.read("file", 9) == b"x"


# ── commands ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 137", 137),
        ("exit 255", 255),
        ("kill -9 $$", -9),
        ("kill -15 $$", -15),
        ("kill -11 $$", -11),
        ("kill -1 $$", -1),
        ("kill -2 $$", -2),
        ("kill -13 $$", -13),
    ],
)
def test_exit_codes_and_signals_are_told_apart(used_box: Sandbox, script: str, code: int) -> None:
    """A signal is a negative code."""
    ran = run(used_box, "/bin/sh", "-c", script)

    assert (ran.exit_code, ran.timed_out, ran.output_limited, ran.out_of_memory) == (
        code,
        False,
        False,
        False,
    )


def test_streams_are_separate_and_may_hold_any_bytes(used_box: Sandbox) -> None:
    """What they mean is the reader's business."""
    ran = run(used_box, "/bin/sh", "-c", r"printf '\377\000out\r\n'; printf '\033[2Jerr\000' >&2")

    assert (ran.stdout, ran.stderr) == (b"\xff\0out\r\n", b"\033[2Jerr\0")


def test_large_output_comes_whole(used_box: Sandbox) -> None:
    """Up to the limit nothing is lost, on both streams at once."""
    ran = run(used_box, "/bin/sh", "-c", "head -c 1500000 /dev/zero & head -c 1500000 /dev/zero >&2; wait")

    assert (len(ran.stdout), len(ran.stderr), ran.output_limited) == (1_500_000, 1_500_000, False)


def test_standard_input_is_at_its_end(used_box: Sandbox) -> None:
    """A program that asks is not kept waiting."""
    assert shell(used_box, "cat; echo done") == "done\n"


def test_a_command_runs_where_it_is_told_to(box: Sandbox) -> None:
    """The sandbox's own directory, or one below it."""
    box.write({"a/b/file": b""})

    assert shell(box, "pwd") == f"{box.root}\n"
    assert shell(box, "pwd; ls", cwd="a/b") == f"{box.root}/a/b\nfile\n"


def test_the_environment_is_what_was_given(used_box: Sandbox) -> None:
    """That, and where events go: nothing of the worker's own."""
    ran = run(used_box, "/usr/bin/env", "-0", GIVEN="a value\nof two lines", EMPTY="")
    found = dict(entry.split("=", 1) for entry in ran.stdout.decode().split("\0") if entry)

    assert found.pop("PTC_EVENTS")
    assert found == {"PATH": PATH, "GIVEN": "a value\nof two lines", "EMPTY": ""}


def test_arguments_arrive_as_they_are(used_box: Sandbox) -> None:
    """Long ones, empty ones, and what a shell would take apart."""
    odd = ["", " ", "*", "$HOME", "a\nb", "-x", "ü", "x" * 100_000]
    ran = run(used_box, "/bin/sh", "-c", 'for each in "$@"; do printf "%s\\0" "$each"; done', "sh", *odd)

    assert ran.stdout.decode().split("\0")[:-1] == odd


@pytest.mark.parametrize("command", ["/no/such/program", "/usr", "no-program"])
def test_a_command_that_cannot_be_started_is_an_error(used_box: Sandbox, command: str) -> None:
    """Nothing ran: that is no failing program; the sandbox is as good as before."""
    with pytest.raises(SandboxError):
        run(used_box, command)

    assert shell(used_box, "echo fine") == "fine\n"


def test_a_directory_that_is_not_there_is_an_error(used_box: Sandbox) -> None:
    """Nothing ran there."""
    with pytest.raises(SandboxError):
        run(used_box, "/bin/true", cwd="missing")


def test_time_ends_everything_and_keeps_what_was_written(box: Sandbox) -> None:
    """Daemons that left their session included; the sandbox can be used again."""
    marker = secrets.token_hex(8)
    script = "echo early; echo too >&2; (setsid sleep 60 &) ; trap '' TERM; sleep 60"
    ran = run(box, "/bin/sh", "-c", script, timeout=1, MARKER=marker)

    assert (ran.timed_out, ran.stdout, ran.stderr) == (True, b"early\n", b"too\n")
    assert ran.exit_code != 0
    assert alive(marker) == []
    assert shell(box, "echo fine") == "fine\n"


@pytest.mark.parametrize("streams", ["", ">/dev/null 2>&1"], ids=["with its output", "alone"])
def test_what_a_command_leaves_behind_ends_with_it(used_box: Sandbox, streams: str) -> None:
    """A daemon does not outlive the command, nor make anyone wait, though it keeps the output open."""
    marker = secrets.token_hex(8)
    ran = run(
        used_box, "/bin/sh", "-c", f"(setsid sleep 60 {streams} &); echo done", timeout=40, MARKER=marker
    )

    assert (ran.exit_code, ran.stdout, ran.timed_out) == (0, b"done\n", False)
    assert alive(marker) == []


@pytest.mark.parametrize("target", [">&1", ">&2"], ids=["output", "errors"])
def test_output_without_end_is_cut_and_told(used_box: Sandbox, target: str) -> None:
    """The command is ended, and what came before is kept."""
    marker = secrets.token_hex(8)
    ran = run(used_box, "/bin/sh", "-c", f"yes {target}", MARKER=marker)

    assert (ran.output_limited, ran.timed_out) == (True, False)
    assert OUTPUT_LIMIT - SLACK < len(ran.stdout) + len(ran.stderr) <= OUTPUT_LIMIT + SLACK
    assert alive(marker) == []


def test_events_come_back(used_box: Sandbox) -> None:
    """Those of this command, apart from its output; those of children too, and none of another command."""
    first = run(
        used_box,
        used_box.tools.python,
        "-c",
        EVENTS
        + "os.write(events, b'one\\n'); child = os.fork(); os.write(events, b'two\\n'); child and os.wait()",
    )
    second = run(used_box, used_box.tools.python, "-c", EVENTS + "os.write(events, b'\\xff\\0')")
    third = run(used_box, "/bin/true")

    assert (sorted(first.events.split()), first.stdout) == ([b"one", b"two", b"two"], b"")
    assert (second.events, third.events) == (b"\xff\0", b"")


def test_events_are_heard_before_the_command_is_told_to_have_ended(used_box: Sandbox) -> None:
    """All of them in their order, be it in pieces."""
    heard: list[bytes] = []
    tells = EVENTS + "for number in range(3000): os.write(events, b'%d\\n' % number)"
    command = [used_box.tools.python, "-c", tells]
    ran = used_box.exec(command, env={"PATH": PATH}, cwd=".", timeout=20, heard=heard.append)

    assert b"".join(heard) == ran.events
    assert len(ran.events.split()) == 3000


def test_events_are_kept_when_time_is_over(box: Sandbox) -> None:
    """What was told before the end was told."""
    ran = run(
        box,
        box.tools.python,
        "-c",
        EVENTS + "import time; os.write(events, b'x' * 200_000); time.sleep(60)",
        timeout=1.5,
    )

    assert (ran.timed_out, len(ran.events)) == (True, 200_000)


def test_events_are_bounded(used_box: Sandbox) -> None:
    """A flood of them does not fill the worker."""
    ran = run(
        used_box,
        used_box.tools.python,
        "-c",
        EVENTS + "for _ in range(2**12): os.write(events, b'x' * 2**16)",
        timeout=30,
    )

    assert len(ran.events) <= EVENTS_LIMIT + SLACK


def test_commands_see_each_others_files_but_not_processes(box: Sandbox) -> None:
    """Where one command ends, so do its processes; its files stay."""
    shell(box, "sleep 60 >/dev/null 2>&1 & echo $! > process")

    assert shell(box, "kill -0 $(cat process) 2>/dev/null || echo gone") == "gone\n"


def test_there_is_room_for_a_fair_number_of_processes(used_box: Sandbox) -> None:
    """Programs that start children of their own work."""
    script = "n=0; while [ $n -lt 50 ]; do sleep 0.2 & n=$((n+1)); done; wait; echo done"

    assert shell(used_box, script) == "done\n"


def test_a_program_talks_to_itself_where_that_is_promised(used_box: Sandbox, way: Way) -> None:
    """A server and its client on the loopback; where there is no network the attempt is refused."""
    script = (
        "import socket\n"
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "    with socket.create_connection(server.getsockname()) as client:\n"
        "        server.accept()[0].sendall(b'hello'); print(client.recv(9).decode())"
    )
    ran = run(used_box, used_box.tools.python, "-c", script)

    assert (ran.exit_code, ran.stdout) == ((0, b"hello\n") if way.loopback else (1, b""))


# ── life ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_destroyed_sandbox_is_gone(box: Sandbox) -> None:
    """Destroying it again is fine; using it is an error."""
    box.write({"file": b"x"})
    box.destroy()
    box.destroy()

    for use in (
        lambda: box.write({"a": b""}),
        lambda: box.read("file", 9),
        lambda: run(box, "/bin/true"),
        box.start,
    ):
        with pytest.raises(SandboxError):
            use()


def test_stopping_ends_what_runs_and_refuses_what_would(box: Sandbox) -> None:
    """From another thread, at once; twice is fine; destroying it afterwards too."""
    marker = secrets.token_hex(8)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(
            run, box, "/bin/sh", "-c", "(setsid sleep 60 &); sleep 60", timeout=60, MARKER=marker
        )
        until(lambda: alive(marker))
        box.stop()
        box.stop()

        with pytest.raises(SandboxError):
            running.result(timeout=30)
    assert alive(marker) == []
    with pytest.raises(SandboxError):
        run(box, "/bin/true")
    box.destroy()


def test_stopping_one_that_does_nothing_refuses_what_would_run(box: Sandbox) -> None:
    """There is nothing to wait for."""
    box.stop()

    with pytest.raises(SandboxError):
        run(box, "/bin/true")


def test_destroying_ends_what_runs(box: Sandbox) -> None:
    """Whoever waits for it learns that it is gone."""
    marker = secrets.token_hex(8)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(run, box, "/bin/sh", "-c", "sleep 60", timeout=60, MARKER=marker)
        until(lambda: alive(marker))
        box.destroy()

        with pytest.raises(SandboxError):
            running.result(timeout=30)
    assert alive(marker) == []


def test_sandboxes_do_not_see_each_other(way: Way, cache_dir: Path) -> None:
    """Neither files nor processes nor each other's port, though they run at the same time."""
    script = (
        "import socket, sys, time\n"
        f"if {way.loopback}:\n"
        "    server = socket.create_server(('127.0.0.1', 18765))\n"
        "print(time.monotonic(), flush=True)\n"
        "time.sleep(float(sys.argv[1]))\n"
        "print(time.monotonic())\n"
    )
    both = threading.Barrier(2)

    def one(name: str, seconds: float) -> tuple[list[float], bytes | None, str]:
        with way.open(cache_dir) as box:
            box.write({f"mine-{name}": name.encode()})
            root = box.root
            both.wait()
            ran = run(box, box.tools.python, "-c", script, str(seconds))
            assert ran.exit_code == 0, ran
            both.wait()
            other = box.read(f"mine-{'b' if name == 'a' else 'a'}", 9)
            seen = shell(
                box,
                f"find / -path /usr -prune -o -name 'mine-*' -not -path '{root}/*' -print 2>/dev/null; true",
            )
            both.wait()
            return [float(word) for word in ran.stdout.split()], other, seen

    for seconds in (0.5, 5, 20):  # a busy machine starts the second one late
        with ThreadPoolExecutor() as pool:
            (a, a_read, a_saw), (b, b_read, b_saw) = pool.map(one, "ab", (seconds, seconds))
        if together := max(a[0], b[0]) < min(a[1], b[1]):
            break

    assert together
    assert (a_read, b_read, a_saw, b_saw) == (None, None, "", "")


def test_a_sandbox_starts_empty(way: Way, cache_dir: Path) -> None:
    """Nothing of the one before is there, in its directory or in a temporary one."""
    mess = "for f in . /tmp /dev/shm /var/tmp; do echo x > $f/left-behind 2>/dev/null; done; true"
    with way.open(cache_dir) as first:
        shell(first, mess)
    with way.open(cache_dir) as second:
        found = shell(second, "find . /tmp /dev/shm /var/tmp -name left-behind 2>/dev/null; true")

    assert found == ""


def test_a_sandbox_says_what_keeps_programs_in(box: Sandbox, way: Way) -> None:
    """Every result repeats it."""
    assert box.isolation == way.isolation
