"""Attacks from within a test, and the class that each gets in the result."""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.ways import MEMORY_MB

from ptc_contracts.verdicts import Outcome


@dataclass(frozen=True)
class Report:
    """A test file that attacks, and what its run may be called."""

    name: str
    test: str
    outcomes: frozenset[Outcome]
    seconds: float = 20
    """How long it may run."""


def _called(name: str, test: str, *outcomes: Outcome, seconds: float = 20) -> Report:
    return Report(name, test, frozenset(outcomes), seconds)


REPORTS = (
    _called("spins", "def test_it():\n    while True: pass", Outcome.TIMEOUT, seconds=1),
    _called("sleeps", "import time\ndef test_it():\n    time.sleep(60)", Outcome.TIMEOUT, seconds=1),
    _called(
        "takes for ever to import",
        "import time\ntime.sleep(60)\ndef test_it(): pass",
        Outcome.TIMEOUT,
        seconds=1,
    ),
    _called(
        "stops itself",
        "import os, signal\ndef test_it():\n    os.kill(os.getpid(), signal.SIGSTOP)",
        Outcome.TIMEOUT,
        seconds=1,
    ),
    _called(
        "takes all memory",
        "def test_it():\n    held = []\n    while True: held.append(b'x' * 2**20)",
        Outcome.FAILED,
        Outcome.OUT_OF_MEMORY,
        Outcome.CRASHED,
    ),
    _called(
        "takes all memory with its children",
        f"""
import os, time
def test_it():
    for child in range(12):
        if os.fork() == 0:
            held = b"x" * ({MEMORY_MB} * 2**20 // 4)
            time.sleep(60)
    time.sleep(20)
""",
        Outcome.OUT_OF_MEMORY,
    ),
    _called(
        "writes without end",
        "import os\ndef test_it():\n    while True: os.write(1, b'x' * 9999)",
        Outcome.OUTPUT_LIMIT,
        Outcome.FAILED,
    ),
    _called(
        "writes around pytest without end",
        """
import os
def test_it(capfd):
    with capfd.disabled():
        while True: os.write(2, b"x" * 9999)
""",
        Outcome.OUTPUT_LIMIT,
    ),
    _called("leaves", "import os\ndef test_it():\n    os._exit(0)", Outcome.CRASHED),
    _called("faults", "import ctypes\ndef test_it():\n    ctypes.string_at(0)", Outcome.CRASHED),
    _called("aborts", "import os\ndef test_it():\n    os.abort()", Outcome.CRASHED),
    _called("kills itself", "import os\ndef test_it():\n    os.kill(os.getpid(), 9)", Outcome.CRASHED),
    _called(
        "becomes another program",
        "import os\ndef test_it():\n    os.execv('/bin/true', ['true'])",
        Outcome.CRASHED,
    ),
    _called(
        "bombs with forks",
        """
import os, time
def test_it():
    while True:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
""",
        Outcome.FAILED,
    ),
    _called(
        "overflows the stack",
        """
import ctypes, sys
def test_it():
    sys.setrecursionlimit(10**9)
    deep = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda n: deep(n))
    deep(1)
""",
        Outcome.CRASHED,
    ),
    _called("recurses", "def test_it():\n    test_it()", Outcome.FAILED),
    _called(
        "opens everything",
        "import os\ndef test_it():\n    while True: os.open('/dev/null', 0)",
        Outcome.FAILED,
        Outcome.CRASHED,
    ),
    _called(
        "fills the disk",
        "def test_it():\n    for n in range(60):\n        open(f'f{n}', 'wb').write(b'x' * (2**26 - 1))",
        Outcome.FAILED,
        Outcome.OUTPUT_LIMIT,
        Outcome.OUT_OF_MEMORY,
        Outcome.CRASHED,
    ),
    _called(
        "has a hundred thousand cases",
        "import pytest\n@pytest.mark.parametrize('n', range(100_000))\ndef test_it(n): pass",
        Outcome.TIMEOUT,
        Outcome.OUTPUT_LIMIT,
        Outcome.OUT_OF_MEMORY,
        seconds=2,
    ),
    _called(
        "has a name of megabytes",
        "import pytest\n@pytest.mark.parametrize('n', ['x' * 2**20] * 3)\ndef test_it(n): assert 0",
        Outcome.FAILED,
        Outcome.OUTPUT_LIMIT,
    ),
    _called(
        "fails with megabytes",
        "def test_it():\n    raise ValueError('x' * 10**7)",
        Outcome.FAILED,
        Outcome.OUTPUT_LIMIT,
    ),
    _called(
        "kills everything that it can",
        "import os\ndef test_it():\n    os.kill(-1, 9)",
        Outcome.CRASHED,
        Outcome.FAILED,
        Outcome.PASSED,
    ),
    _called(
        "stops those that watch it",
        """
import os, signal
def test_it():
    for process in 1, os.getppid():
        for number in 19, 2, 15, 9, 20:
            try:
                os.kill(process, number)
            except OSError:
                pass
""",
        Outcome.PASSED,
    ),
    _called(
        "leaves daemons behind",
        """
import os, time
def test_it():
    for _ in range(5):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(60)
            os._exit(0)
""",
        Outcome.PASSED,
    ),
    _called(
        "removes its own project",
        "import shutil, os\ndef test_it():\n    shutil.rmtree(os.getcwd(), ignore_errors=True)",
        Outcome.TAMPERED,
        Outcome.FAILED,
        Outcome.CRASHED,
    ),
    _called(
        "closes everything",
        "import os\ndef test_it():\n    os.closerange(0, 1024)",
        Outcome.CRASHED,
        Outcome.TAMPERED,
    ),
)
