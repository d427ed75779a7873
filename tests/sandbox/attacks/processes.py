"""Attacks by processes: those that would outlive their run, and those that turn on the ones that watch them."""

from __future__ import annotations

import signal

from sandbox.attack import OVER_TIME, Attack, Scene, ended, ended_or_held, gained_nothing
from sandbox.host import NAME

DAEMON = """
import signal, time
def daemon(*keep):
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for descriptor in range(512):
        if descriptor not in keep:
            try:
                os.close(descriptor)
            except OSError:
                pass
    time.sleep(60)
    os._exit(0)
"""

ALL_SIGNALS = """
import signal
def strike(process, *numbers):
    for number in numbers or range(1, 65):
        if number not in (signal.SIGCHLD, 32, 33):
            try:
                os.kill(process, number)
            except OSError:
                pass
def shield():
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
"""


def _quick(scene: Scene) -> None:
    """It ended with its first process, long before those that it left behind would have."""
    gained_nothing(scene)
    assert scene.ran.duration_seconds < 30


def _result_stays(scene: Scene) -> None:
    gained_nothing(scene)
    first = scene.box.read("result", 1000)

    assert first is not None
    assert all(scene.box.read("result", 1000) == first for _ in range(20))


def _whole_events(scene: Scene) -> None:
    gained_nothing(scene)
    assert scene.ran.events == b"mine\n"


PROCESSES = (
    Attack("a daemon of two forks", DAEMON + "daemon()", _quick, seconds=40),
    Attack("a daemon that keeps the output open", DAEMON + "daemon(1, 2)", _quick, seconds=40),
    Attack("a daemon that keeps everything open", DAEMON + "daemon(*range(512))", _quick, seconds=40),
    Attack(
        "a daemon that reaps its own",
        DAEMON + "libc.prctl(36, 1, 0, 0, 0)\nlibc.prctl(1, 0, 0, 0, 0)\ndaemon()",
        _quick,
        seconds=40,
    ),
    Attack("thirty daemons", DAEMON + "for _ in range(30): daemon()", _quick, seconds=40),
    Attack("a daemon after time is over", DAEMON + "daemon()\ntime.sleep(60)", OVER_TIME, seconds=0.6),
    Attack(
        "a program that ignores SIGTERM",
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)",
        OVER_TIME,
        seconds=0.6,
    ),
    Attack(
        "a hundred zombies",
        """
import time
for _ in range(100):
    if os.fork() == 0:
        os._exit(0)
time.sleep(0.2)
""",
    ),
    Attack(
        "a hundred orphans",
        """
for _ in range(100):
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.waitpid(child, 0)
""",
    ),
    Attack(
        "a signal to every process",
        """
import signal
try:
    os.kill(-1, signal.SIGKILL)
except ProcessLookupError:
    print("alone")
""",
        ended_or_held(exit_code=-signal.SIGKILL),
    ),
    Attack(
        "every signal to every process",
        ALL_SIGNALS + "shield()\nfor number in 1, 2, 3, 6, 10, 12, 13, 14, 15: strike(-1, number)",
    ),
    Attack("every signal to the first process", ALL_SIGNALS + "strike(1)"),
    Attack("every signal to the parent", ALL_SIGNALS + "strike(os.getppid())"),
    Attack(
        "every signal to all that can be seen",
        ALL_SIGNALS + "for process in processes():\n    if process != os.getpid(): strike(process)",
    ),
    Attack(
        "every signal to the parent's group and session",
        ALL_SIGNALS
        + """
shield()
for group in {os.getpgid(os.getppid()) if os.getppid() else 0, os.getsid(0)} - {0, os.getpgrp()}:
    for number in 1, 2, 3, 6, 9, 10, 12, 13, 14, 15, 19:
        try:
            os.killpg(group, number)
        except OSError:
            pass
""",
    ),
    Attack(
        "signals to the worker",
        """
for number in 0, 2, 15, 9, 19:
    attempt(f"signal {number}", lambda: os.kill(TARGET["pid"], number))
""",
    ),
    Attack(
        "a signal by way of a descriptor's owner",
        """
import fcntl, socket, time
for process in 1, os.getppid(), TARGET["pid"]:
    near, far = socket.socketpair()
    try:
        fcntl.fcntl(near, fcntl.F_SETOWN, process)
        fcntl.fcntl(near, 10, 9)  # F_SETSIG
        fcntl.fcntl(near, fcntl.F_SETFL, fcntl.fcntl(near, fcntl.F_GETFL) | os.O_ASYNC)
        far.send(b"x")
    except OSError:
        pass
time.sleep(0.1)
""",
    ),
    Attack("stops itself", "import signal\nos.kill(os.getpid(), signal.SIGSTOP)", OVER_TIME, seconds=1),
    Attack(
        "stops everything",
        """
import signal, time
for process in 1, os.getppid(), -1:
    try:
        os.kill(process, signal.SIGSTOP)
    except OSError:
        pass
time.sleep(60)
""",
        OVER_TIME,
        seconds=0.6,
    ),
    Attack("a segmentation fault", "ctypes.string_at(0)", ended(exit_code=-signal.SIGSEGV)),
    Attack("an abort", "os.abort()", ended(exit_code=-signal.SIGABRT)),
    Attack("an illegal exit", "os._exit(0)", ended(exit_code=0)),
    Attack("an exit code that looks like a signal", "os._exit(137)", ended(exit_code=137)),
    Attack("kills itself", "import signal\nos.kill(os.getpid(), 9)", ended(exit_code=-signal.SIGKILL)),
    Attack(
        "leaves a core",
        """
import resource, signal
attempt("a core", lambda: resource.setrlimit(resource.RLIMIT_CORE, (10**6, 10**6)))
child = os.fork()
if child == 0:
    os.abort()
if os.WCOREDUMP(os.waitpid(child, 0)[1]):
    gained("a core that was dumped")
""",
    ),
    Attack(
        "raises its limits",
        """
import resource
for name in "NPROC", "AS", "FSIZE", "NOFILE", "CORE":
    kind = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(kind)[1]
    if hard == resource.RLIM_INFINITY:
        gained(f"no limit at all: {name}")
    attempt(name, lambda: resource.setrlimit(kind, (hard + 1, hard + 1)))
    attempt(f"no {name}", lambda: resource.setrlimit(kind, (-1, -1)))
for name in "NICE", "RTPRIO":
    if resource.getrlimit(getattr(resource, f"RLIMIT_{name}", {"NICE": 13, "RTPRIO": 14}[name]))[1]:
        gained(name)
""",
    ),
    Attack(
        "lowers the limits of those that watch it",
        """
import resource
for process in {1, os.getppid(), TARGET["pid"]} - {0}:
    for name in "NOFILE", "AS", "CPU", "FSIZE", "STACK":
        kind = getattr(resource, f"RLIMIT_{name}")
        attempt(f"{name} of {process}", lambda: resource.prlimit(process, kind, (0, 0)))
        attempt(f"reading {name} of {process}", lambda: resource.prlimit(process, kind))
""",
    ),
    Attack(
        "wants to be served first",
        """
attempt("a better nice value", lambda: os.nice(-5))
attempt("the nice value of all", lambda: os.setpriority(os.PRIO_USER, 0, -5))
for policy in os.SCHED_FIFO, os.SCHED_RR:
    attempt("real time", lambda: os.sched_setscheduler(0, policy, os.sched_param(1)))
attempt("the disk in real time", lambda: call("ioprio_set", 1, 0, 1 << 13))
""",
    ),
    Attack(
        "slows down those that watch it",
        """
for process in {1, os.getppid(), TARGET["pid"]} - {0}:
    attempt(f"nice of {process}", lambda: os.setpriority(os.PRIO_PROCESS, process, 19))
    attempt(f"idle {process}", lambda: os.sched_setscheduler(process, os.SCHED_IDLE, os.sched_param(0)))
    attempt(f"one core for {process}", lambda: os.sched_setaffinity(process, {0}))
""",
    ),
    Attack(
        "writes while its results are collected",
        DAEMON
        + """
open("result", "w").write("0")
def scribble():
    number = 0
    while True:
        number += 1
        with open("result", "w") as file:
            file.write(str(number))
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        scribble()
time.sleep(0.2)
""",
        _result_stays,
    ),
    Attack(
        "writes events after its end",
        """
import time
kind, _, number = os.environ["PTC_EVENTS"].partition(":")
events = int(number) if kind == "fd" else os.open(os.environ["PTC_EVENTS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.write(events, b"mine\\n")
parent = os.getpid()
if os.fork() == 0:
    os.setsid()
    while os.getppid() == parent:
        time.sleep(0.001)
    time.sleep(0.5)
    os.write(events, b"late\\n")
    os._exit(0)
""",
        _whole_events,
    ),
    Attack(
        "closes everything", "os.closerange(0, 1024)\nos._exit(7)", ended(exit_code=7, stdout=b"", stderr=b"")
    ),
    Attack(
        "takes a descriptor from those that watch it",
        """
for process in {1, os.getppid(), TARGET["pid"]} - {0}:
    try:
        handle = os.pidfd_open(process)
    except OSError as error:
        print("kept from", process, error)
        continue
    for number in range(40):
        try:
            gained(f"descriptor {number} of {process}", call("pidfd_getfd", handle, number, 0))
        except OSError:
            pass
""",
    ),
    Attack(
        "opens the descriptors of those that watch it",
        """
for process in {1, os.getppid(), TARGET["pid"]} - {0}:
    attempt(f"the list of {process}", lambda: os.listdir(f"/proc/{process}/fd"))
    for number in range(40):
        for flags in os.O_RDONLY, os.O_WRONLY, os.O_PATH:
            try:
                gained(f"{number} of {process}", os.open(f"/proc/{process}/fd/{number}", flags | os.O_NONBLOCK))
            except OSError:
                pass
""",
    ),
    Attack(
        "writes into the memory of those that watch it",
        """
buffer = ctypes.create_string_buffer(64)
piece = (ctypes.c_void_p * 2)(ctypes.cast(buffer, ctypes.c_void_p), 64)
for process in {1, os.getppid(), TARGET["pid"]} - {0}:
    for name in "mem", "maps", "auxv", "stack", "syscall":
        attempt(f"{name} of {process}", lambda: read(f"/proc/{process}/{name}"))
    for name in "mem", "oom_score_adj", "oom_adj", "coredump_filter", "comm", "clear_refs", "loginuid":
        attempt(f"{name} of {process}", lambda: append(f"/proc/{process}/{name}"))
    refused("process_vm_readv", process, piece, 1, piece, 1, 0)
    refused("process_vm_writev", process, piece, 1, piece, 1, 0)
""",
    ),
    Attack(
        "traces those that watch it",
        """
for process in {1, os.getppid(), TARGET["pid"], os.getpid()} - {0}:
    refused("ptrace", 16, process, 0, 0)
    refused("ptrace", 0x4206, process, 0, 0)
refused("ptrace", 0, 0, 0, 0)
refused("kcmp", 1, os.getpid(), 0, 0, 0)
""",
    ),
    Attack(
        "rewrites the programs that run it",
        f"""
import sys
for path in "/proc/self/exe", "/proc/1/exe", f"/proc/{{os.getppid()}}/exe", sys.executable, os.path.realpath(sys.executable):
    attempt(path, lambda: append(path))
    attempt(path, lambda: os.truncate(path, 0) if "/proc" not in path else append(path))
    attempt(path, lambda: os.rename(path, "{NAME}"))
""",
    ),
    Attack(
        "types into the terminal",
        """
import fcntl, termios
for path in "/dev/tty", "/dev/console", "/dev/tty0", "/dev/tty1":
    attempt(path, lambda: os.open(path, os.O_RDWR | os.O_NOCTTY))
for descriptor in 0, 1, 2:
    attempt(f"typing into {descriptor}", lambda: fcntl.ioctl(descriptor, termios.TIOCSTI, b"x"))
""",
    ),
    Attack(
        "moves into another session",
        """
attempt("another group", lambda: os.setpgid(0, os.getppid() or 1))
attempt("the worker's group", lambda: os.setpgid(0, TARGET["pid"]))
""",
    ),
)
