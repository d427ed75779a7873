"""The battery's other half: a test that attacks is reported as what it was, by sandboxes of every kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sandbox.attacks.reports import REPORTS, Report
from sandbox.host import Host, alive, assert_untouched
from sandbox.ways import ATTACKED, WAYS, Way

from ptc_worker.filetypes import artifact
from ptc_worker.halt import Halt
from ptc_worker.runner import run_tests

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


MARKED = """
import mmap as _mmap
with open("{marker}", "w+b") as _file:
    _file.truncate(4096)
    _marked = _mmap.mmap(_file.fileno(), 4096)
"""
"""A test file has no environment of its own: what it forks shows this in its memory map."""


EVERYWHERE = {
    "sleeps",
    "takes all memory with its children",
    "writes around pytest without end",
    "kills itself",
    "bombs with forks",
    "fills the disk",
    "kills everything that it can",
    "leaves daemons behind",
    "removes its own project",
}
"""One for each way in which a run may end: that, too, has to come back from a vendor's machine as it was."""


@pytest.fixture(autouse=True)
def case(way: Way, record_property: Callable[[str, object], None]) -> None:
    """Count it."""
    record_property("case", ("battery", str(way), "reports"))


@pytest.mark.parametrize(
    ("way", "report"),
    [
        pytest.param(way, report, id=f"{way}-{report.name}")
        for way in WAYS
        for report in REPORTS
        if way in ATTACKED or report.name in EVERYWHERE
    ],
    indirect=["way"],
)
def test_an_attack_is_reported_as_what_it_was(
    way: Way, host: Host, report: Report, marker: str, cache_dir: Path
) -> None:
    """A test that attacks gets its class; it is never green, and never taken for a failure of ours."""
    settings = way.settings(cache_dir, ptc_test_timeout=report.seconds)
    files = [artifact("tests/test_it.py", MARKED.format(marker=marker) + report.test)]

    verdict, isolation = run_tests(settings, files, (), 60, Halt())

    assert isolation == way.isolation
    assert verdict.outcome in report.outcomes, (verdict.outcome, verdict.feedback, verdict.test_results)
    assert alive(marker) == []
    assert_untouched(host, way)
