"""The README's first ten minutes are true: each of its examples is run, and prints what it says there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cluster import cluster_in
from readme import README
from support import PATIENCE_SECONDS, answer_with, make_plan

from ptc_contracts.keys import content_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster import Cluster

DRAFT = answer_with(
    durations_py=(
        "import re\n\n\n"
        "def parse(text):\n"
        "    found = re.fullmatch(r'PT(\\d+)H(\\d+)M', text)\n"
        "    if not found:\n"
        "        raise ValueError(text)\n"
        "    return 60 * int(found[1]) + 60 * int(found[2])"
    ),
    tests__test_durations_py=(
        "import pytest\nfrom durations import parse\n\n\n"
        "def test_hours_and_minutes():\n    assert parse('PT1H30M') == 5400\n\n\n"
        "def test_nonsense():\n    with pytest.raises(ValueError):\n        parse('soon')"
    ),
)
MENDED = DRAFT.replace("60 * int(found[1])", "3600 * int(found[1])")
ANSWERS = {
    "A function that parses ISO 8601 durations": [DRAFT, MENDED],
    "A function that adds": [answer_with(tests__test_add_py="def test_add():\n    assert 1 + 1 == 2")],
    "A function that subtracts": [answer_with(tests__test_take_py="def test_take():\n    assert 2 - 1 == 1")],
}
"""What a model answers to the README's plans."""

_TOUR = re.compile(r"<!-- tour:start -->\n(.*?)<!-- tour:end -->", re.DOTALL)
_BLOCK = re.compile(r"```(console|python)\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def at_work(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Cluster]:
    """A cluster whose models know the README's plans."""
    with cluster_in(tmp_path_factory.mktemp("cluster"), cache) as running:
        running.replay.disguised = True
        for description, answers in ANSWERS.items():
            running.replay.recordings[content_id(make_plan(description))] = answers
        running.start_worker()
        yield running


def steps() -> Iterator[tuple[str, str]]:
    """Give the tour's commands in order, each with what it prints."""
    tour = _TOUR.findall(README.read_text("utf-8"))
    for kind, text in _BLOCK.findall("".join(tour)):
        if kind == "python":
            yield f"python -W error - <<'END'\n{text}END", "…\n"
            continue
        for command in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            line, _, printed = command.partition("\n")
            yield line, printed


def pattern(printed: str) -> str:
    """Read what an example prints: `…` stands for anything in a line, and alone on one for any lines."""
    lines = [
        "(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + "\n"
        for line in printed.splitlines()
    ]
    return "".join(lines)


def test_every_example_of_the_tour_prints_what_it_says(at_work: Cluster, tmp_path: Path) -> None:
    """One after the other, in one shell, as a reader would type them."""
    tour = list(steps())
    script = "\n".join(
        f"{{ {command}\n}} > {tmp_path}/{number}.out 2> {tmp_path}/{number}.err; echo $? > {tmp_path}/{number}.code"
        for number, (command, _) in enumerate(tour)
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {
        **at_work.environment,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
    }

    subprocess.run(
        ["bash", "-c", script], cwd=scratch, env=environment, timeout=2 * PATIENCE_SECONDS, check=True
    )

    assert len(tour) > 10
    for number, (command, printed) in enumerate(tour):
        output, told, code = (
            Path(tmp_path, f"{number}.{what}").read_text() for what in ("out", "err", "code")
        )
        assert int(code) == 0, f"{command}\n{output}\n{told}"
        assert re.fullmatch(pattern(printed), output), f"{command}\n{output}"
