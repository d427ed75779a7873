"""Plans that bring files to start from, through real workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support import answer_with

from ptc_contracts import PayloadTooLargeError
from ptc_contracts.blobs import Blobs

if TYPE_CHECKING:
    from cluster import Cluster

PROJECT = {
    "README.md": "# Sums\n",
    "calc.py": "def add(a, b):\n    return a - b\n",
    "static/app.css": "body { margin: 0 }\n",
    "tests/test_calc.py": "from calc import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n",
}
FIXED = "def add(a, b):\n    return a + b\n"


def test_one_changed_file_makes_a_red_project_green(cluster: Cluster) -> None:
    """The model gives what changes; the result holds the whole project."""
    result = cluster.run([answer_with(calc_py=FIXED.rstrip())], initial_files=PROJECT)

    assert (result.status, result.iterations_used, result.test_results.tests_passed) == ("SUCCESS", 1, 1)
    assert {file.file_path: file.content for file in result.artifacts} == {**PROJECT, "calc.py": FIXED}


def test_a_fresh_start_goes_back_to_the_initial_files(cluster: Cluster) -> None:
    """What earlier drafts left is gone; the initial files are there again, and the tests that were frozen."""
    stray = answer_with(stray_py="X = 1", calc_py="def add(a, b):\n    return a * b * 0")
    again = answer_with(calc_py="def add(a, b):\n    return a * b * 0 * 1")
    result = cluster.run(
        [stray, again, answer_with(calc_py=FIXED.rstrip())], initial_files=PROJECT, max_iterations=3
    )

    assert [note["outcome"] for note in result.metadata["history"]] == ["failed", "failed", "passed"]
    assert {file.file_path: file.content for file in result.artifacts} == {**PROJECT, "calc.py": FIXED}


def test_initial_files_alone_are_no_result(cluster: Cluster) -> None:
    """A model that gives nothing has done nothing, however good the project was."""
    result = cluster.run(["I would rather talk about it."] * 2, initial_files=PROJECT)

    assert (result.status, result.artifacts) == ("FAILURE", [])
    assert "no usable code" in result.error_message


def test_more_files_than_can_be_handed_on_are_refused_before_anything_is_paid(cluster: Cluster) -> None:
    """Not after the first answer: a run holds them up to three times."""
    half = "x = 1\n" * (Blobs().limit // 12)
    plan = cluster.record([FIXED], initial_files={"a.py": half})

    with pytest.raises(PayloadTooLargeError, match=r"initial_files: they have .* bytes"):
        cluster.ptc.submit(plan)
