"""A courier keeps what it runs from itself and from whatever else serves on its machine, and does each request once."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from ptc_worker.sandbox.inside import confine, courier
from ptc_worker.sandbox.inside.blob import packed, unpacked
from ptc_worker.sandbox.remote import filters_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ptc_worker.sandbox.remote import Filters

INSIDE = Path(courier.__file__).parent
START = (
    "import runpy, sys; sys.path.append('lib'); "
    "runpy.run_module('ptc_inside.courier', run_name='__main__', alter_sys=True)"
)
FILTERS = filters_of(platform.machine(), alone=False)
ALONE = filters_of(platform.machine(), alone=True)
NOBODY = 65534
LONG = 2**25
TALK = """
import socket, sys
def plainly(address):
    return socket.create_connection(address, 5)
def by_more_paths(address):
    other = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    other.connect(address)
    return other
def with_the_first_words(address):
    other = socket.socket()
    other.sendto(b"hello", socket.MSG_FASTOPEN, address)
    return other
def with_the_first_message(address):
    other = socket.socket()
    other.sendmsg([b"hello"], [], socket.MSG_FASTOPEN, address)
    return other
for address in (("127.0.0.1", int(sys.argv[1])), (sys.argv[2], int(sys.argv[1]))):
    for way in plainly, by_more_paths, with_the_first_words, with_the_first_message:
        try:
            print("reached", way(address).recv(99))
        except OSError as error:
            print("kept", way.__name__, type(error).__name__)
try:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    print("own works")
except OSError as error:
    print("own kept", type(error).__name__)
"""


@pytest.fixture
def base() -> Iterator[Path]:
    """The folder on a machine in which a courier works.

    Others may pass through: a pytest that starts beside this one shuts the folder of `tmp_path` to them.
    """
    with TemporaryDirectory(dir="/tmp", prefix="ptc-test-courier-") as folder:
        base = Path(folder) / "ptc"
        shutil.copytree(INSIDE, base / "lib" / "ptc_inside", ignore=shutil.ignore_patterns("__pycache__"))
        yield base


@pytest.fixture
def daemon() -> Iterator[int]:
    """A vendor's program on the same machine, which would do anything for anybody: its port."""
    with socket.create_server(("0.0.0.0", 0)) as server:  # noqa: S104 as they do

        def serve() -> None:
            while True:
                try:
                    other, _ = server.accept()
                except OSError:
                    return
                with other:
                    other.sendall(b"at your service")

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def without_namespaces() -> None:
    """Take the means to make namespaces from this process, as container engines do."""
    confine.prctl(confine.PR_SET_NO_NEW_PRIVS, 1)
    confine.install(bytes.fromhex(FILTERS["other"]["sockets"]))


def request(
    *ops: dict[str, Any], contents: tuple[bytes, ...] = (), network: str = "own", filters: Filters = FILTERS
) -> bytes:
    """Write a request."""
    room = {"memory": 2**29, "disk": 2**26, "network": network, "filters": filters}
    return packed({"ops": [*ops], **room}, contents)


def start(
    base: Path, number: int, before: Callable[[], None] | None = None, python: str = ""
) -> subprocess.Popen[bytes]:
    """Start a courier."""
    python = python or (python_for_all() if before is as_nobody else sys.executable)
    return subprocess.Popen(
        [python, "-I", "-S", "-B", "-c", START, str(number)],
        cwd=base,
        stdout=subprocess.PIPE,
        close_fds=False,
        preexec_fn=before,  # noqa: PLW1509 the process has no thread that holds a lock it needs
    )


def leaving_open() -> None:
    """Leave what is open to others as open as some programs do."""
    for number in range(4, 10):
        os.dup2(1, number, inheritable=True)


def as_nobody() -> None:
    """Become a user that is not root, as on machines of whose image it is the user."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def give_to_nobody(folder: Path) -> None:
    """Let a folder with all that is in it be of the user that `as_nobody` becomes."""
    for path in (folder.parent, folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)


def answer(base: Path, number: int) -> tuple[dict[str, Any], list[bytes]]:
    """Read what it answered."""
    return unpacked((base / f"out-{number}").read_bytes())


def ended(courier: subprocess.Popen[bytes]) -> int:
    """Wait for a courier's end; return its exit code."""
    courier.communicate()
    return courier.returncode


def python_for_all() -> str:
    """Find a Python that every user can run: commands of a courier that is root have a user of their own."""
    found = [shutil.which("python3", path=path) for path in ("/usr/bin", "/usr/local/bin")]
    return next(filter(None, [*found, sys.executable]))


def ran(base: Path, *arguments: str, network: str, before: Callable[[], None] | None = None) -> str:
    """Run the program TALK; return its output."""
    write = {"op": "write", "files": ["talk.py"], "mode": 0o644}
    command = [python_for_all(), "-S", "talk.py", *arguments]
    run = {"op": "exec", "command": command, "env": {}, "cwd": ".", "timeout": 30}
    (base / "in-1").write_bytes(request(write, run, contents=(TALK.encode(),), network=network))
    assert ended(start(base, 1, before)) == 0
    facts, (stdout, stderr, _) = answer(base, 1)
    assert stderr == b"", facts
    return stdout.decode()


def own_address() -> str:
    """An address of this machine beside the loopback, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "127.0.0.1"
        address: str = probe.getsockname()[0]
        return address


@pytest.mark.parametrize(
    ("network", "before"),
    [("own", None), ("own", without_namespaces), ("machine", None), ("none", without_namespaces)],
)
def test_a_command_cannot_reach_what_serves_on_the_machine(
    base: Path, daemon: int, network: str, before: Callable[[], None] | None
) -> None:
    """A vendor's own program would run any command outside all walls; a server of the command's own is fine."""
    told = ran(base, str(daemon), own_address(), network=network, before=before)

    assert "reached" not in told
    assert told.count("kept") == (9 if network == "none" and before else 8)


def test_the_same_request_is_done_once_however_often_it_is_asked(base: Path) -> None:
    """Those who ask while it is under way, or later, get the same answer."""
    script = "echo done >> /tmp/ptc-courier-$1; cat /tmp/ptc-courier-$1; sleep 0.3"
    name = base.parent.name
    run = {"op": "exec", "command": ["/bin/sh", "-c", script, "sh", name], "env": {"PATH": os.defpath}}
    (base / "in-7").write_bytes(request({**run, "cwd": ".", "timeout": 30}))
    try:
        asked = [start(base, 7) for _ in range(3)]
        told = {courier.communicate()[0] for courier in asked}
        told.add(start(base, 7).communicate()[0])
    finally:
        Path(f"/tmp/ptc-courier-{name}").unlink(missing_ok=True)

    assert len(told) == 1
    assert answer(base, 7)[1][0] == b"done\n"


def test_a_request_that_came_cut_is_not_begun(base: Path) -> None:
    """It says so, and does it when all of it is there."""
    whole = request({"op": "write", "files": ["a"], "mode": 0o644}, contents=(b"content",))
    (base / "in-1").write_bytes(whole[:-5])
    first = ended(start(base, 1))
    (base / "in-1").write_bytes(whole)
    second = ended(start(base, 1))

    assert (first, second) == (courier.EX_DATAERR, 0)
    assert (base / "box" / "a").read_bytes() == b"content"


def test_a_command_cannot_touch_the_courier(base: Path) -> None:
    """Neither its files nor its process: what it tells of the command is its own word."""
    script = (
        "for each in ../out-1 ../written ../lib/ptc_inside/agent.py ../new; do echo forged > $each && echo GAINED $each; done; "
        "rm ../lib/ptc_inside/agent.py && echo GAINED removal; "
        "for each in /proc/[0-9]*; do grep -aq ptc_inside.courie[r] $each/cmdline && kill -9 ${each#/proc/} && echo GAINED kill; done; "
        "echo tried"
    )
    run = {"op": "exec", "command": ["/bin/sh", "-c", script], "env": {"PATH": os.defpath}}
    (base / "in-1").write_bytes(request({**run, "cwd": ".", "timeout": 30}))
    code = ended(start(base, 1))
    facts, (stdout, _, _) = answer(base, 1)

    assert (code, stdout) == (0, b"tried\n"), (facts, answer(base, 1))
    assert facts["results"][0]["status"] == 0


def test_a_request_with_contents_cannot_come_back(base: Path) -> None:
    """An upload that was given up and made again may end late: a command that runs by then must not find the key in it."""
    (base / "in-1").write_bytes(
        request({"op": "write", "files": ["key"], "mode": 0o644}, contents=(b"secret",))
    )
    code = ended(start(base, 1))

    assert code == 0
    with pytest.raises(IsADirectoryError):
        (base / "in-1").write_bytes(b"secret")


def test_what_a_vendors_program_left_open_is_closed_to_commands(base: Path) -> None:
    """It may be a way to its log, or to a server of its own."""
    script = "for each in 4 5 6 7 8 9; do (echo forged >&$each) 2> /dev/null && echo GAINED $each; done; echo tried"
    run = {"op": "exec", "command": ["/bin/sh", "-c", script], "env": {}, "cwd": ".", "timeout": 30}
    (base / "in-1").write_bytes(request(run))
    assert ended(start(base, 1, leaving_open)) == 0

    assert answer(base, 1)[1][0] == b"tried\n"


def test_files_that_were_made_long_are_not_read_to_their_end(base: Path) -> None:
    """The answer tells that they are others, and does not wait for gigabytes of nothing."""
    names = [f"file{number}" for number in range(40)]
    write = {"op": "write", "files": names, "mode": 0o644}
    script = f"truncate -s {LONG} file*"
    run = {"op": "exec", "command": ["/bin/sh", "-c", script], "env": {"PATH": os.defpath}}
    contents = tuple(b"content" for _ in names)
    (base / "in-1").write_bytes(request(write, {**run, "cwd": ".", "timeout": 30}, contents=contents))
    code = ended(start(base, 1))
    digests = answer(base, 1)[0]["digests"]

    assert code == 0
    assert (base / "box" / "file39").stat().st_size == LONG
    assert set(digests.values()) == {sha256(b"content\0").hexdigest()}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_command_that_fills_the_disk_is_told_of_all_the_same(base: Path) -> None:
    """There is room for the answer: it was taken before."""
    script = (
        "import itertools\ntry:\n    for n in itertools.count(): open(f'f{n}', 'w').write('x')\n"
        "except OSError as error: print('full', error)"
    )
    command = [python_for_all(), "-S", "-c", script]
    run = {"op": "exec", "command": command, "env": {}, "cwd": ".", "timeout": 30}
    options = f"size={courier.ANSWER_BYTES + 2**22},nr_inodes=500"
    small = base / "lib" / "disk"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", small], check=True)
    try:
        (small / "lib").symlink_to(base / "lib")
        (small / "in-1").write_bytes(request(run))
        code = ended(start(small, 1))
        facts, (stdout, _, _) = answer(small, 1)
    finally:
        subprocess.run(["umount", small], check=True)

    assert (code, facts["results"][0]["status"]) == (0, 0)
    assert stdout.startswith(b"full")


@pytest.mark.parametrize("python", ["of the machine", "of the tests"])
def test_an_archive_is_unpacked_by_whichever_python_there_is(base: Path, python: str) -> None:
    """Debian 12 has 3.11.2, which knows less of archives than those that came after it."""
    found = python_for_all() if python == "of the machine" else sys.executable
    with tarfile.open(base / "env.tar", "w") as archive:
        archive.add(__file__, "brought.py")
    sites: list[str] = []
    equip = {"op": "equip", "version": "3.11.2", "home": "/usr/bin", "sites": sites, "archive": "env.tar"}
    (base / "in-1").write_bytes(request(equip))
    code = ended(start(base, 1, python=found))

    assert (code, "stamp" in answer(base, 1)[0]["results"][0]) == (0, True)
    assert (base / "env" / "brought.py").read_bytes() == Path(__file__).read_bytes()


KNOCK = """
import socket, sys
def plainly():
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
def from_a_pair():
    socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"open", sys.argv[1])
for way in plainly, from_a_pair:
    try:
        way()
        print("reached")
    except PermissionError:
        print("kept")
here, there = socket.socketpair()
here.send(b"own works")
print(there.recv(99).decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(
    confine.landlock_abi() < confine.SCOPE_ABI, reason="the kernel has no Landlock of version 6"
)
@pytest.mark.parametrize("network", ["own", "machine", "none"])
def test_a_command_of_the_same_user_cannot_reach_what_listens_on_a_socket_file(
    base: Path, network: str
) -> None:
    """A vendor's own program has that user, too, and Landlock does not keep one from connecting to it."""
    give_to_nobody(base)
    path = str(base / "service")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        os.chown(path, NOBODY, NOBODY)
        command = [python_for_all(), "-S", "-c", KNOCK, path]
        run = {"op": "exec", "command": command, "env": {}, "cwd": ".", "timeout": 30}
        (base / "in-1").write_bytes(request(run, network=network))
        code = ended(start(base, 1, as_nobody))
    facts, (stdout, _, _) = answer(base, 1)

    assert (code, stdout.decode().split("\n")) == (0, ["kept", "kept", "own works", ""]), facts


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(
    confine.landlock_abi() < confine.SCOPE_ABI, reason="the kernel has no Landlock of version 6"
)
@pytest.mark.parametrize(("filters", "told"), [(ALONE, b"made\n"), (FILTERS, b"")])
def test_socket_files_can_be_made_where_nobody_else_has_any(
    base: Path, filters: Filters, told: bytes
) -> None:
    """The managers of multiprocessing do; a container has no program of a vendor's."""
    give_to_nobody(base)
    make = "import multiprocessing as m; m.Manager().list(); print('made')"
    run = {"op": "exec", "command": [python_for_all(), "-c", make], "env": {}, "cwd": ".", "timeout": 30}
    (base / "in-1").write_bytes(request(run, filters=filters))
    code = ended(start(base, 1, as_nobody))
    facts, (stdout, _, _) = answer(base, 1)

    assert (code, stdout) == (0, told), facts


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(
    confine.landlock_abi() < confine.SCOPE_ABI, reason="the kernel has no Landlock of version 6"
)
def test_a_command_of_the_same_user_cannot_touch_the_courier_either(base: Path) -> None:
    """Landlock keeps its files from being changed, also where they lie below /tmp, and the filter keeps their modes."""
    assert base.is_relative_to("/tmp")
    script = (
        "for each in ../out-1 ../written ../lib/ptc_inside/agent.py ../new; do echo forged > $each && echo GAINED $each; done; "
        "chmod 0 . .. ../written ../lib; touch -d @1 ../lib; ls -ld --time-style=+%s .. ../lib; echo tried"
    )
    write = {"op": "write", "files": ["a"], "mode": 0o644}
    run = {"op": "exec", "command": ["/bin/sh", "-c", script], "env": {"PATH": os.defpath}}
    (base / "in-1").write_bytes(request(write, {**run, "cwd": ".", "timeout": 30}, contents=(b"content",)))
    give_to_nobody(base)
    code = ended(start(base, 1, as_nobody))
    facts, (stdout, _, _) = answer(base, 1)
    folder, lib, tried = stdout.decode().splitlines()

    assert (code, tried) == (0, "tried"), facts
    assert folder.startswith("drwx")
    assert lib.startswith("drwx")
    assert lib.split()[5] != "1"
    assert facts["digests"] == {"a": sha256(b"content").hexdigest()}
