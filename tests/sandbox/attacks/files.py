"""Attacks on the worker's own hands: what a program prepares for those who write and read files in its sandbox."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from sandbox.attack import Attack, Scene, gained_nothing

from ptc_worker.sandbox.protocol import SandboxError

if TYPE_CHECKING:
    from sandbox.attack import Check

REFUSED = (SandboxError, ValueError)


def _written_nowhere(*paths: str) -> Check:
    """A write to any of these is refused; what changed outside would show in the host's state."""

    def check(scene: Scene) -> None:
        gained_nothing(scene)
        for path in paths:
            with suppress(*REFUSED):
                scene.box.write({path: b"by the worker"})
                raise AssertionError(f"{path!r} was written")

    return check


def _written_harmlessly(*paths: str) -> Check:
    """A write may work or not: it goes nowhere else, and nobody waits for ever."""

    def check(scene: Scene) -> None:
        gained_nothing(scene)
        for path in paths:
            with suppress(*REFUSED):
                scene.box.write({path: b"by the worker"})

    return check


def _read_nothing(*paths: str) -> Check:
    """There is nothing to be read at any of these."""

    def check(scene: Scene) -> None:
        gained_nothing(scene)
        for path in paths:
            try:
                content = scene.box.read(path, 1000)
            except REFUSED:
                continue
            assert content is None, (path, content)

    return check


def _read_no_secret(scene: Scene) -> None:
    gained_nothing(scene)
    for path in ("result", "swapped/result", "folder/readable"):
        for _ in range(20):
            with suppress(*REFUSED):
                content = scene.box.read(path, 1000)
                assert scene.host.secret.encode() not in (content or b"")


def _read_in_bounds(scene: Scene) -> None:
    gained_nothing(scene)
    content = scene.box.read("large", 1000)

    assert content is not None
    assert len(content) == 1000


def _still_usable(scene: Scene) -> None:
    """A sandbox that was made useless for writing says so; it does not hang, nor lie."""
    gained_nothing(scene)
    try:
        scene.box.write({"fresh/file": b"x"})
    except REFUSED:
        return
    assert scene.box.read("fresh/file", 10) == b"x"


LINKS = """
os.symlink(TARGET["readable"], "link")
os.symlink(TARGET["writable"], "target")
os.symlink(TARGET["folder"], "folder")
os.symlink("/proc/self/environ", "environment")
os.symlink("loop", "loop")
os.symlink("..", "up")
os.symlink("/dev/zero", "endless")
os.symlink("/etc/passwd", "passwd")
"""

FILES = (
    Attack("a link where the worker writes", LINKS, _written_nowhere("target", "link", "loop")),
    Attack(
        "a link where the worker reads",
        LINKS,
        _read_nothing("target", "link", "loop", "environment", "passwd"),
    ),
    Attack(
        "a link on the way to where the worker writes",
        LINKS,
        _written_nowhere("folder/ptc-attack", "folder/a/b"),
    ),
    Attack(
        "a link on the way to where the worker reads",
        LINKS,
        _read_nothing("folder/readable", "folder/writable"),
    ),
    Attack("a link up on the way", LINKS, _written_nowhere("up/ptc-attack", "up/up/ptc-attack")),
    Attack("a link to a device that never ends", LINKS, _read_nothing("endless")),
    Attack(
        "a link where a folder has to be made",
        'os.symlink(TARGET["folder"] + "/ptc-attack-made", "new")',
        _written_nowhere("new/file"),
    ),
    Attack(
        "a folder of the worker's replaced by a link",
        """
import shutil
for name in "home", "project", "ptc":
    shutil.rmtree(name, ignore_errors=True)
    try:
        os.symlink(TARGET["folder"], name)
    except OSError as error:
        print(error)
""",
        _written_nowhere("home/ptc-attack", "project/ptc-attack", "ptc/ptc-attack"),
    ),
    Attack(
        "a name that leads out",
        "",
        _written_nowhere("../ptc-attack", "a/../../ptc-attack", "./../ptc-attack", ".."),
    ),
    Attack(
        "a name from the root", "", _written_nowhere("/tmp/ptc-attack", "//tmp/ptc-attack", "/ptc-attack")
    ),
    Attack("a name that is no name", "", _written_nowhere("", ".", "a\0b", "/", "x" * 300)),
    Attack("a name deeper than anything can recurse", "", _written_harmlessly("a/" * 1100 + "b")),
    Attack(
        "a name that leads out, to be read",
        "",
        _read_nothing(
            "../box/../../ptc-attack", "/etc/passwd", "../../etc/passwd", "a\0b", "", ".", "x" * 300
        ),
    ),
    Attack(
        "hard links to what must stay as it is",
        """
for number, path in enumerate((TARGET["readable"], TARGET["writable"], "/etc/passwd", "/bin/sh",
                               TARGET["environment"] + "/pyvenv.cfg", TARGET["source"] + "/tasks.py")):
    attempt(path, lambda: os.link(path, f"hard{number}"))
""",
        _written_harmlessly(*(f"hard{number}" for number in range(6))),
    ),
    Attack(
        "pipes in the way",
        'os.mkfifo("pipe")\nos.mkfifo("result")\nos.mkdir("a")\nos.mkfifo("a/b")',
        _written_harmlessly("pipe", "result", "a/b"),
    ),
    Attack(
        "pipes to be read", 'os.mkfifo("pipe")\nos.mkdir("a")\nos.mkfifo("a/b")', _read_nothing("pipe", "a/b")
    ),
    Attack(
        "sockets in the way",
        """
import socket
try:
    with socket.socket(socket.AF_UNIX) as door:
        door.bind("door")
except OSError as error:
    print("kept from", error)
""",
        _read_nothing("door"),
    ),
    Attack("folders in the way", 'os.makedirs("a/b")', _written_nowhere("a/b", "a")),
    Attack("folders to be read", 'os.makedirs("a/b")', _read_nothing("a", "a/b", ".")),
    Attack("files where folders are needed", 'open("a", "w")', _written_nowhere("a/b", "a/b/c")),
    Attack(
        "a result that is swapped for a link",
        """
import time
os.mkdir("real")
os.mkdir("swapped")
for name in "result", "swapped/result", "real/result":
    open(name, "w").write("innocent")
end = time.monotonic() + 0.5
while time.monotonic() < end:
    for name in "result", "swapped/result":
        os.symlink(TARGET["readable"], "next")
        os.replace("next", name)
        open("next", "w").write("innocent")
        os.replace("next", name)
    os.rename("swapped", "kept")
    os.symlink("real", "swapped")
    os.unlink("swapped")
    os.rename("kept", "swapped")
os.unlink("result")
os.symlink(TARGET["readable"], "result")
os.symlink(TARGET["folder"], "folder")
""",
        _read_no_secret,
    ),
    Attack(
        "a result without end",
        """
with open("large", "wb") as file:
    file.write(b"x" * 2**20)
    file.truncate(2**25)
""",
        _read_in_bounds,
    ),
    Attack(
        "files that may not be read",
        """
open("secret", "w").write("x")
os.chmod("secret", 0)
os.mkdir("closed")
open("closed/file", "w").write("x")
os.chmod("closed", 0)
""",
        _written_harmlessly("secret", "closed/file", "closed/new"),
    ),
    Attack("a sandbox without rights", 'os.chmod(".", 0)', _still_usable),
    Attack(
        "a sandbox that was moved away",
        """
here = os.getcwd()
try:
    os.rename(here, here + "-gone")
    os.symlink(TARGET["folder"], here)
except OSError as error:
    print("kept from", error)
""",
        _written_harmlessly("ptc-attack", "a/ptc-attack"),
    ),
    Attack(
        "files that cannot be removed",
        """
import fcntl, struct
os.mkdir("stuck")
open("stuck/file", "w")
for path in "stuck/file", "stuck":
    handle = os.open(path, os.O_RDONLY)
    for flag in 0x10, 0x20:  # immutable, append only
        attempt("attributes", lambda: fcntl.ioctl(handle, 0x40086602, struct.pack("l", flag)))
""",
    ),
    Attack(
        "files whose owner or mode should change",
        """
os.symlink(TARGET["writable"], "owned")
os.symlink(TARGET["folder"], "folder")
os.symlink(TARGET["readable"], "home")
""",
        _written_harmlessly("owned", "folder/writable", "home/.keep"),
    ),
    Attack(
        "things left for the next run",
        """
for folder in (".", "/tmp", "/dev/shm", "/var/tmp", "/run", "/dev", "/work", os.path.expanduser("~"), ".."):
    try:
        with open(f"{folder}/{TARGET['name']}-left", "w") as file:
            file.write("import os")
        os.chmod(f"{folder}/{TARGET['name']}-left", 0o777)
    except OSError as error:
        print("kept from", error)
""",
    ),
    Attack(
        "another run's files, by their name",
        """
import glob
for pattern in "/tmp/ptc-*", "/work/../*/ptc-*", TARGET["cache"] + "/*/*", "/var/tmp/ptc*", "/tmp/ptc-*/*", "/run/ptc*":
    for path in glob.glob(pattern):
        if not os.getcwd().startswith(path) and not path.startswith((TARGET["environment"], os.getcwd())):
            gained("a look at", path)
""",
    ),
)
