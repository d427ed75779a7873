"""Measures what a run of tests costs at a vendor's without the way there: its real SDK, and a stand-in on this machine.

The project of `isolation.py` goes through `run_tests`, in turn at each kind of sandbox and as a plain process. Prints
JSON: medians in milliseconds, ratios to the plain process, and the requests that a run makes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.isolation import isolated, plain, project, timed
from daytona_server import SNAPSHOT, DaytonaServer
from e2b_server import serving as serving_e2b
from support import until

from ptc_worker.environments import environment
from ptc_worker.halt import Halt
from ptc_worker.log import configure_logging
from ptc_worker.redaction import Redactor
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Callable

Counted = tuple[WorkerSettings, "Callable[[], int]"]
"""Settings that lead to a kind, and what counts the requests made so far."""


def kinds(stack: ExitStack, base: Path) -> dict[str, Counted]:
    """Serve what can be had here."""
    own = WorkerSettings(ptc_sandbox="local", ptc_sandbox_pool=0)
    daytona = stack.enter_context(DaytonaServer(own, base))
    e2b = stack.enter_context(serving_e2b(own, base))
    ways: dict[str, tuple[dict[str, Any], Callable[[], int]]] = {
        "local": ({"ptc_sandbox": "local"}, lambda: 0),
        "daytona": (
            {
                "ptc_sandbox": "daytona",
                "daytona_api_url": daytona.url,
                "daytona_api_key": daytona.key,
                "ptc_daytona_snapshot": SNAPSHOT,
            },
            lambda: len(daytona.requests),
        ),
        "e2b": ({"ptc_sandbox": "e2b", **e2b.chosen}, lambda: sum(e2b.calls.values())),
    }
    if os.environ.get("PTC_DOCKER_IMAGE"):
        ways["docker"] = ({"ptc_sandbox": "docker"}, lambda: 0)
    stack.callback(until, lambda: not daytona.left())
    return {
        name: (WorkerSettings(ptc_sandbox_pool=0, **chosen), count) for name, (chosen, count) in ways.items()
    }


def main() -> int:
    """Print the figures of each kind; return 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10, help="runs of each kind")
    options = parser.parse_args()
    configure_logging("error", Redactor(()))
    took: dict[str, list[float]] = {}
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        for file in project():
            (folder / file.file_path).parent.mkdir(exist_ok=True)
            (folder / file.file_path).write_text(file.content)
        base = stack.enter_context(environment(WorkerSettings(), (), 120, Halt()))
        served = kinds(stack, base)
        for settings, _ in served.values():
            isolated(settings)
        before = {name: count() for name, (_, count) in served.items()}
        for _ in range(options.times):
            took.setdefault("plain", []).append(timed(lambda: plain(base / "bin" / "python", folder)))
            for name, (settings, _) in served.items():
                took.setdefault(name, []).append(timed(lambda: isolated(settings)))  # noqa: B023
        for name, (_, count) in served.items():
            figures[name] = {"requests": round((count() - before[name]) / options.times, 1)}
    floor = statistics.median(took.pop("plain"))
    for name, times in took.items():
        median = statistics.median(times)
        figures[name] |= {"run_ms": round(median, 1), "ratio": round(median / floor, 2)}
    print(json.dumps({"plain_ms": round(floor, 1), **figures}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
