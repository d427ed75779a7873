"""The linter finds what the compiler does not, reads nothing that a draft says about it, and never stops a run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support import logged_here

from ptc_contracts.verdicts import GateStage, Severity
from ptc_worker.filetypes import artifact
from ptc_worker.linter import lint

if TYPE_CHECKING:
    from pathlib import Path

BAD = "print(nonesuch)\n"


def _found(content: str, path: str = "src/a.py") -> list[tuple[str, str, int | None, str]]:
    return [(i.file, i.code, i.line, i.severity.value) for i in lint([artifact(path, content)])]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("import os\n\nprint(os.sep, nonesuch)\n", [("F821", 3, "error")]),
        ("def f(x: Missing) -> int:\n    return 1\n", [("F821", 1, "error")]),
        ("assert (1, 'always')\n", [("F631", 1, "error")]),
        ("import sys\nprint >> sys.stderr, 'x'\n", [("F633", 2, "error")]),
        ("def f():\n    return 1\nbreak\n", [("F701", 3, "error")]),
        ("x = 1\nprint(x is 'a')\n", [("F632", 2, "warning")]),
        ("__all__ = ['nonesuch']\n", [("F822", 1, "warning")]),
        ("def f(x: 'Missing') -> int:\n    return 1\n", [("F821", 1, "warning")]),
        ("from __future__ import annotations\ndef f(x: Missing): ...\n", [("F821", 2, "warning")]),
        ("def f():\n    x: Missing = 1\n    return x\n", [("F821", 2, "warning")]),
        (
            "def f():\n    for n in 'ab':\n        if n:\n            print(x)\n        x = n\n",
            [("F821", 4, "warning")],
        ),
        ("globals()['x'] = 1\nprint(x)\n", [("F821", 2, "warning")]),
        ("print(_('hello'))\n", [("F821", 1, "warning")]),
        ("from os import *\nprint(sep)\n", []),
        ("import os\n\n\ndef unused( ):\n    l = 1\n", []),
        ("def f(:\n", []),
    ],
)
def test_what_is_sure_to_fail_is_an_error(content: str, found: list[tuple[str, int, str]]) -> None:
    """Rules that fire on sound code too only warn, style is nobody's concern, and syntax is the gate's."""
    issues = [issue[1:] for issue in _found(content)]

    assert issues == found


def test_an_issue_tells_its_place_and_stage() -> None:
    """In words for the model, without advice for ruff's own users."""
    issues = lint([artifact("good.py", "x = 1\n"), artifact("src/deep/a.py", BAD)])

    assert [str(issue) for issue in issues] == ["src/deep/a.py:1: Undefined name `nonesuch`"]
    assert issues[0].stage is GateStage.SEMANTIC
    assert issues[0].severity is Severity.ERROR


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("ruff.toml", 'exclude = ["*"]\n[lint]\nignore = ["ALL"]\n'),
        (".ruff.toml", 'include = []\n[lint.per-file-ignores]\n"*" = ["F821"]\n'),
        ("pyproject.toml", '[tool.ruff]\nexclude = ["*"]\nbuiltins = ["nonesuch"]\n'),
        (".gitignore", "*\n"),
        ("src/ruff.toml", "extend = '/etc/passwd'\n"),
        ("0.py", "x = 1\n"),
    ],
)
def test_a_draft_does_not_configure_its_linter(path: str, content: str) -> None:
    """What is wrong is told whatever the draft would rather have told."""
    issues = lint([artifact(path, content), artifact("src/a.py", BAD), artifact("build/b.py", BAD)])

    assert [(issue.file, issue.code) for issue in issues] == [("src/a.py", "F821"), ("build/b.py", "F821")]


@pytest.mark.parametrize(
    "content",
    [
        "print(nonesuch)  # noqa\n",
        "print(nonesuch)  # noqa: F821\n",
        "# ruff: noqa\nprint(nonesuch)\n",
        "# flake8: noqa\nprint(nonesuch)\n",
        "# ruff: noqa: F821\nprint(nonesuch)\n",
        "# ruff: disable[F821]\nprint(nonesuch)\n",
    ],
)
def test_a_comment_hides_nothing(content: str) -> None:
    """A name that nothing defines fails, whatever stands beside it."""
    issues = _found(content)

    assert [issue[1] for issue in issues] == ["F821"]


@pytest.mark.parametrize("path", ["tests/fixtures/bad.py", "data/a.py", "a.pyi", "README.md", "a.PY"])
def test_what_is_no_code_of_the_project_is_not_linted(path: str) -> None:
    """Test data may be broken on purpose, stubs are never run."""
    assert _found(BAD, path) == []


HOSTILE = {
    "nothing": [""],
    "a name of 60,000 characters": ["a" * 60_000 + "\n"],
    "30,000 undefined names": ["a" + "+a" * 5_000 + "\n" + "b\n" * 20_000],
    "brackets": ["x = " + "[" * 30_000],
    "minus signs": ["-" * 60_000 + "1"],
    "nested functions": ["".join(" " * n + "def f():\n" for n in range(99)) + " " * 99 + "x\n"],
    "many functions": ["def f(): x\n" * 5_000],
    "a megabyte": ["x = '" + "a" * 1_000_000 + "'\n"],
    "half a surrogate pair": ["x = '\ud800'\n"],
    "NUL": ["x\0\n"],
    "a thousand files": [BAD] * 1_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_draft_brings_the_linter_down(name: str) -> None:
    """Whatever it holds, the answer is a list of issues, and it has bounds."""
    files = [artifact(f"a{number}.py", content) for number, content in enumerate(HOSTILE[name])]
    issues = lint(files)

    assert len(issues) < 10_000


def test_a_draft_that_is_wrong_all_over_is_refused() -> None:
    """Of very many findings the first ones are read."""
    issues = lint([artifact(f"a{number}.py", BAD * 100) for number in range(200)])

    assert len(issues) > 1_000
    assert {issue.code for issue in issues} == {"F821"}


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("#!/bin/sh\nexec sleep 1000\n", "-9"),
        ("#!/bin/sh\nkill -SEGV $$\n", "-11"),
        ("#!/bin/sh\nexit 2\n", "2"),
        ("#!/bin/sh\nexit 1\n", "1"),
        ("#!/bin/sh\necho no JSON; exit 1\n", "JSONDecodeError"),
        ("#!/bin/sh\nhead -c 100000 /dev/zero\n", "0"),
        (None, "No such file"),
    ],
)
def test_a_linter_that_fails_is_logged_and_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str | None, reason: str
) -> None:
    """The tests will tell what is wrong; a run does not end for want of a linter."""
    ruff = tmp_path / "ruff"
    if program:
        ruff.write_text(program)
        ruff.chmod(0o755)

    def find() -> str:
        return os.fspath(ruff.resolve(strict=True))

    monkeypatch.setattr("ruff.find_ruff_bin", find)
    with logged_here() as logs:
        issues = lint([artifact("a.py", BAD)], seconds=0.5)

    assert issues == []
    assert [entry["event"] for entry in logs] == ["linter_failed"]
    assert reason in logs[0]["error"]


def test_the_linter_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker lints for months."""
    monkeypatch.setattr("tempfile.tempdir", os.fspath(tmp_path))
    issues = lint([artifact("a.py", BAD)])

    assert len(issues) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_linters_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft that it cannot swallow ends the linter, not the worker."""
    ruff, told = tmp_path / "ruff", tmp_path / "told"
    ruff.write_text(f'#!/bin/sh\nuntil [ "$(ulimit -v)" != unlimited ]; do :; done\nulimit -v > {told}\n')
    ruff.chmod(0o755)
    monkeypatch.setattr("ruff.find_ruff_bin", lambda: os.fspath(ruff))
    issues = lint([artifact("a.py", BAD)])

    assert issues == []
    assert int(told.read_text()) == 1024 * 1024
