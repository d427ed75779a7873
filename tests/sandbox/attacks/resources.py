"""Attacks on what a machine has: memory, processes, disk, time, descriptors, and the worker's own buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.attack import (
    OVER_TIME,
    TOO_MUCH_MEMORY,
    TOO_MUCH_OUTPUT,
    Attack,
    Scene,
    ended,
    ended_or_held,
    gained_nothing,
)
from sandbox.ways import MEMORY_MB

if TYPE_CHECKING:
    from sandbox.attack import Check

OUTPUT_MB, EVENTS_MB = 4, 32
PROCESSES, DESCRIPTORS = 128, 512
SLACK_MB = 1


def _stream_is_cut(scene: Scene) -> None:
    TOO_MUCH_OUTPUT(scene)
    assert len(scene.ran.stdout) + len(scene.ran.stderr) <= (OUTPUT_MB + SLACK_MB) * 2**20


def _wrote(expected: bytes) -> Check:
    """The bytes come back as they were written."""

    def check(scene: Scene) -> None:
        assert scene.ran.exit_code == 0
        assert scene.ran.stdout.startswith(expected), scene.said

    return check


def _events_are_cut(scene: Scene) -> None:
    assert len(scene.ran.events) <= (EVENTS_MB + SLACK_MB) * 2**20, scene.said
    assert b"GAINED" not in scene.ran.stdout, scene.said


def _only_events(scene: Scene) -> None:
    gained_nothing(scene)
    assert b"forged" not in scene.ran.events


BOMBS = (
    Attack(
        "a fork bomb that counts",
        f"""
import time
children = 0
try:
    while children <= {PROCESSES}:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        children += 1
    gained("processes", children)
except OSError as error:
    print("kept from more than", children, error)
""",
    ),
    Attack(
        "a fork bomb that doubles",
        """
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
        OVER_TIME,
        seconds=0.6,
    ),
    Attack(
        "a fork bomb in a shell",
        """
import subprocess
subprocess.run(["/bin/sh", "-c", "f() { f | f & }; while :; do f; done"], stderr=subprocess.DEVNULL)
""",
        ended_or_held(timed_out=True),
        seconds=0.6,
    ),
    Attack(
        "a chain of forks that runs ahead of its killer",
        """
import time
if os.fork() == 0:
    os.setsid()
    for stream in 0, 1, 2:
        os.close(stream)
    while True:
        try:
            if os.fork():
                os._exit(0)
        except OSError:
            pass
""",
        gained_nothing,
        seconds=5,
    ),
    Attack(
        "a thread bomb",
        f"""
import threading
stay, threads = threading.Event(), 0
threading.stack_size(65536)
try:
    while threads <= {PROCESSES}:
        threading.Thread(target=stay.wait, daemon=True).start()
        threads += 1
    gained("threads", threads)
except (RuntimeError, MemoryError) as error:
    print("kept from more than", threads, error)
""",
    ),
)

RESOURCES = (
    Attack(
        "a memory bomb in one process",
        f"""
held = []
try:
    while True:
        held.append(b"x" * 2**20)
        if len(held) > 2 * {MEMORY_MB}:
            gained("MiB", len(held))
            break
except MemoryError:
    held.clear()
    print("kept from more memory")
""",
        TOO_MUCH_MEMORY,
    ),
    Attack(
        "one allocation of everything",
        """
attempt("1 TiB", lambda: bytearray(2**40))
attempt("64 GiB", lambda: bytearray(2**36))
""",
    ),
    Attack(
        "a memory bomb in many processes",
        f"""
import time
for child in range(12):
    if os.fork() == 0:
        held = b"x" * ({MEMORY_MB} * 2**20 // 4)
        time.sleep(60)
time.sleep(5)
gained("three times the memory, for five seconds")
""",
        TOO_MUCH_MEMORY,
    ),
    Attack(
        "memory that children share",
        f"""
import mmap, time
try:
    for child in range(4):
        part = mmap.mmap(-1, {MEMORY_MB} * 2**20 // 2)
        part.write(b"x" * len(part))
        if os.fork() == 0:
            time.sleep(60)
        part.close()
    time.sleep(5)
    gained("twice the memory, for five seconds")
except (OSError, MemoryError) as error:
    print("kept from", error)
""",
        TOO_MUCH_MEMORY,
    ),
    Attack(
        "memory in files without a name",
        f"""
import time
kept = []
try:
    for part in range(2 * {MEMORY_MB} // 32):
        kept.append(os.memfd_create("x"))
        os.write(kept[-1], b"x" * 2**25)
    time.sleep(3)
    gained("MiB of memfd", 32 * len(kept))
except OSError as error:
    print("kept from", error)
""",
        TOO_MUCH_MEMORY,
    ),
    Attack(
        "memory in System V segments",
        f"""
libc.shmat.restype = ctypes.c_void_p
size, made, pieces = 2**25, 0, []
try:
    while made <= 2 * {MEMORY_MB} * 2**20:
        segment = call("shmget", TARGET["ipc_key"] + len(pieces), size, 0o1777)
        address = libc.shmat(segment, None, 0)
        if address == ctypes.c_void_p(-1).value:
            raise OSError("no room to attach it")
        ctypes.memset(ctypes.c_void_p(address), 1, size)
        libc.shmdt(ctypes.c_void_p(address))
        pieces.append(segment)
        made += size
    import time
    time.sleep(3)
    gained("bytes in segments that no process holds", made)
except OSError as error:
    print("kept from", error)
""",
        TOO_MUCH_MEMORY,
    ),
    Attack(
        "memory in pipes",
        f"""
import fcntl
pipes, held = [], 0
try:
    while True:
        pipes.append(os.pipe())
        try:
            fcntl.fcntl(pipes[-1][1], fcntl.F_SETPIPE_SZ, 2**20)
        except OSError:
            pass
        os.set_blocking(pipes[-1][1], False)
        try:
            while True:
                held += os.write(pipes[-1][1], b"x" * 65536)
        except BlockingIOError:
            pass
        if held > 2 * {MEMORY_MB} * 2**20:
            gained("bytes in pipes", held)
            break
except OSError as error:
    print("kept from more than", held, error)
""",
        TOO_MUCH_MEMORY,
    ),
    Attack(
        "memory in sockets of many processes",
        f"""
import mmap, socket, time
counter = mmap.mmap(-1, 4096)
for child in range(16):
    if os.fork() == 0:
        pairs, held = [], 0
        try:
            while True:
                pair = socket.socketpair()
                pairs.append(pair)
                for end in pair:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**22)
                    end.setblocking(False)
                    try:
                        while True:
                            held += end.send(b"x" * 32768)
                    except BlockingIOError:
                        pass
                counter[child * 8 : child * 8 + 8] = held.to_bytes(8, "little")
        except OSError:
            pass
        time.sleep(60)
for _ in range(60):
    time.sleep(0.05)
    held = sum(int.from_bytes(counter[i * 8 : i * 8 + 8], "little") for i in range(16))
    if held > 2 * {MEMORY_MB} * 2**20:
        gained("bytes in sockets, twice the memory", held)
        break
print("held", held)
""",
        TOO_MUCH_MEMORY,
    ),
    Attack("output without end", "while True: os.write(1, b'x\\n' * 5000)", _stream_is_cut),
    Attack("errors without end", "while True: os.write(2, b'x\\n' * 5000)", _stream_is_cut),
    Attack(
        "both streams without end",
        "while True: os.write(1, b'x' * 5000); os.write(2, b'y' * 5000)",
        _stream_is_cut,
    ),
    Attack("one line of gigabytes", "line = b'x' * 2**26\nwhile True: os.write(1, line)", _stream_is_cut),
    Attack(
        "output without end by a grandchild",
        """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            os.write(1, b"x" * 5000)
import time
time.sleep(60)
""",
        _stream_is_cut,
    ),
    Attack(
        "output that means something to terminals and parsers",
        r"""os.write(1, b"\xff\x00\x1b[2J\x1b]0;title\x07\x01\x01\x01\x02\x02\x02\r\n{\"exit_code\": 0}\n")""",
        _wrote(b'\xff\x00\x1b[2J\x1b]0;title\x07\x01\x01\x01\x02\x02\x02\r\n{"exit_code": 0}\n'),
    ),
    Attack(
        "events without end",
        """
kind, _, number = os.environ["PTC_EVENTS"].partition(":")
events = int(number) if kind == "fd" else os.open(os.environ["PTC_EVENTS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
written = 0
while written < 2**28:
    written += os.write(events, b"x" * 65536)
gained("bytes of events", written)
""",
        _events_are_cut,
    ),
    Attack(
        "events written to everything but the events",
        """
import fcntl
kind, _, number = os.environ["PTC_EVENTS"].partition(":")
for descriptor in range(3, 1024):
    if kind != "fd" or descriptor != int(number):
        try:
            os.set_blocking(descriptor, False)
            os.write(descriptor, b"forged\\n")
        except OSError:
            pass
""",
        _only_events,
    ),
    Attack("a loop without end", "while True: pass", OVER_TIME, seconds=0.6),
    Attack(
        "loops without end on all cores",
        """
for _ in range(7):
    if os.fork() == 0:
        break
while True: pass
""",
        OVER_TIME,
        seconds=0.6,
    ),
    Attack("sleep past the wall", "import time\ntime.sleep(60)", OVER_TIME, seconds=0.6),
    Attack(
        "sleep that no signal ends",
        """
import signal, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
time.sleep(60)
""",
        OVER_TIME,
        seconds=0.6,
    ),
    Attack("waiting for input", "import sys\nassert sys.stdin.read() == ''"),
    Attack("recursion in Python", "def f(): f()\nf()", ended(exit_code=1)),
    Attack(
        "recursion until the stack is gone",
        """
import sys
sys.setrecursionlimit(10**9)
class A:
    def __getattr__(self, name): return repr(self)
    __repr__ = lambda self: self.x
deep = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda n: deep(n))
deep(1)
""",
        ended(exit_code=-11),
    ),
    Attack(
        "descriptors without end",
        f"""
held = []
try:
    while len(held) < {DESCRIPTORS}:
        held.append(os.open("/dev/null", os.O_RDONLY))
    gained("descriptors", len(held))
except OSError as error:
    print("kept from more than", len(held), error)
""",
    ),
    Attack(
        "a regular expression without end",
        "import re\nre.match('(a+)+$', 'a' * 64 + 'b')",
        OVER_TIME,
        seconds=0.6,
    ),
    Attack("a number without end", "10 ** 10 ** 9", ended_or_held(timed_out=True), seconds=0.6),
    Attack(
        "a bomb of zeros",
        """
import zlib
packer = zlib.compressobj(1)
packed = b"".join(packer.compress(bytes(2**24)) for _ in range(40)) + packer.flush()
print(len(packed))
attempt("unpacking", lambda: len(zlib.decompress(packed)))
""",
        TOO_MUCH_MEMORY,
    ),
    Attack(
        "watches and timers without end",
        """
made = 0
try:
    while made < 100_000:
        if libc.inotify_init1(0) < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        made += 1
    gained("inotify instances", made)
except OSError as error:
    print("kept from more than", made, error)
""",
    ),
    Attack(
        "locks on everything that can be read",
        """
import fcntl
kept = []
for folder, _, files in os.walk(TARGET["environment"]):
    for name in files:
        try:
            kept.append(os.open(os.path.join(folder, name), os.O_RDONLY))
            fcntl.flock(kept[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass
        if len(kept) > 200:
            break
""",
    ),
)
