"""Measures what the isolation of a test run costs, against pytest as a plain process in the same environment.

A project of 13 tests goes through `run_tests`, from files to verdict, in turn with a plain run. Then all cores
are kept busy for a while. Prints JSON: medians in milliseconds, ratios, runs per second.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ptc_contracts.verdicts import Outcome
from ptc_worker.environments import environment
from ptc_worker.filetypes import artifact
from ptc_worker.halt import Halt
from ptc_worker.log import configure_logging
from ptc_worker.redaction import Redactor
from ptc_worker.runner import run_tests
from ptc_worker.sandbox.kinds.local import pool_for
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from ptc_contracts import CodeArtifact

STACK = '''
class Stack:
    """Last in, first out."""

    def __init__(self):
        self._items = []

    def push(self, item):
        self._items.append(item)

    def pop(self):
        if not self._items:
            raise IndexError("pop from an empty stack")
        return self._items.pop()

    def __len__(self):
        return len(self._items)
'''
TESTS = """
import pytest
from stack import Stack

@pytest.fixture
def stack():
    return Stack()

def test_is_empty(stack):
    assert len(stack) == 0

def test_pop_of_nothing(stack):
    with pytest.raises(IndexError, match="empty"):
        stack.pop()

@pytest.mark.parametrize("number", range(11))
def test_order(stack, number):
    for item in range(number):
        stack.push(item)
    assert [stack.pop() for _ in range(number)] == list(reversed(range(number)))
"""
NUMBER_OF_TESTS = 13


def project() -> list[CodeArtifact]:
    """Make the project."""
    return [artifact("stack.py", STACK), artifact("tests/test_stack.py", TESTS)]


def isolated(settings: WorkerSettings) -> None:
    """Run the project's tests in a sandbox."""
    verdict, _ = run_tests(settings, project(), (), 60, Halt())
    if verdict.outcome is not Outcome.PASSED or len(verdict.tests) != NUMBER_OF_TESTS:
        raise RuntimeError(f"the project's own tests are not green: {verdict}")


def plain(python: Path, folder: Path) -> None:
    """Run them as anyone would, but for what every sandbox leaves out as well."""
    subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "pythonpath=."],
        cwd=folder,
        env={"PATH": os.defpath, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def timed(act: Callable[[], None]) -> float:
    """Return the milliseconds that it takes."""
    started = time.perf_counter()
    act()
    return (time.perf_counter() - started) * 1000


def compared(settings: WorkerSettings, python: Path, folder: Path, times: int) -> dict[str, float]:
    """Run both in turn."""
    ours, theirs = [], []
    for _ in range(times + 1):
        pool_for(settings).wait()
        if settings.sandboxes_ahead:
            time.sleep(0.5)  # as long as a model takes at the very least: prepared means prepared
        ours.append(timed(lambda: isolated(settings)))
        pool_for(settings).wait()
        theirs.append(timed(lambda: plain(python, folder)))
    sandbox, floor = statistics.median(ours[1:]), statistics.median(theirs[1:])
    return {
        "sandbox_ms": round(sandbox, 1),
        "plain_ms": round(floor, 1),
        "ratio": round(sandbox / floor, 2),
    }


def per_second(act: Callable[[], None], number: int) -> float:
    """Run so many, as many at a time as there are cores."""
    started = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for future in [threads.submit(act) for _ in range(number)]:
            future.result()
    return round(number / (time.perf_counter() - started), 1)


def main() -> int:
    """Print the figures of each tier and way; return 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="runs that are compared one by one")
    parser.add_argument("--isolation", nargs="*", default=["bubblewrap", "landlock"], help="tiers to measure")
    options = parser.parse_args()
    configure_logging("warning", Redactor(()))
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for file in project():
            (folder / file.file_path).parent.mkdir(exist_ok=True)
            (folder / file.file_path).write_text(file.content)
        for tier in options.isolation:
            for way, pool in (("cold", 0), ("pooled", 2)):
                settings = WorkerSettings(ptc_sandbox_isolation=tier, ptc_sandbox_pool=pool)
                with environment(settings, (), 120, Halt()) as base:
                    python = base / "bin" / "python"
                    isolated(settings)
                    figures[f"{tier} {way}"] = {
                        **compared(settings, python, folder, options.times),
                        "runs_per_second": per_second(lambda: isolated(settings), 2 * options.times),  # noqa: B023
                        "plain_per_second": per_second(lambda: plain(python, folder), 2 * options.times),  # noqa: B023
                    }
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
