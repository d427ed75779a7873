"""The gate sees what is wrong without running anything, and survives whatever a model writes."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import make_plan

from ptc_contracts.verdicts import GateIssue, Outcome
from ptc_worker.dependencies import needs_of
from ptc_worker.filetypes import artifact
from ptc_worker.gate import examine, has_python_tests, red_verdict
from ptc_worker.syntax import syntax_tree

if TYPE_CHECKING:
    from ptc_contracts import PTCExecutionPlan

UNTESTED = make_plan(enable_testing=False)


def _issues(path: str, content: str) -> list[GateIssue]:
    return examine(UNTESTED, [artifact(path, content)], None)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("a.py", ""),
        ("a.py", "raise SystemExit\n\nasync def f() -> None:\n    await g()\n"),
        ("a.py", "from __future__ import annotations\nx: Later = 1\n"),
        ("a.py", "try:\n    pass\nfinally:\n    try:\n        pass\n    finally:\n        pass\n"),
        ("a.py", "# -*- coding: latin-1 -*-\nname = 'é'\n"),
        ("a.json", '{"a": [1, 2.5, null]}'),
        ("a.toml", "[project]\nname = 'a'\n"),
        ("a.js", "function ( {"),
        ("README.md", "{"),
        ("py", "("),
    ],
)
def test_a_sound_file_has_no_issue(path: str, content: str) -> None:
    """Python, JSON and TOML are examined, other files are not, and nothing is imported."""
    issues = _issues(path, content)

    assert issues == []


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("def f(:\n    pass\n", 1),
        ("x = 1\ny = = 2\n", 2),
        ("if x:\npass\n", 2),
        ("x = 1\n\n    y = 2\n", 3),
        ("x = (1,\n", 1),
        ("x = 'a\n", 1),
        ("\n```python\n", 2),
        ("x = 1\nreturn x\n", 2),
        ("x = 1\nawait x\n", 2),
        ("def f():\n    nonlocal x\n", 2),
        ("def f(a, a):\n    pass\n", 1),
        ("x = 1\n" * 4000 + "y = = 2\n", 4001),
        ("try:\n    pass\nfinally:\n    pass\n" * 2 + "def f(a, a):\n    pass\n", 9),
    ],
)
def test_a_python_error_is_told_with_its_line(content: str, line: int) -> None:
    """The model is told where to look, in long files as in short ones."""
    issues = _issues("src/a.py", content)

    assert [(issue.file, issue.line, issue.code) for issue in issues] == [("src/a.py", line, "syntax")]
    assert str(issues[0]).startswith(f"src/a.py:{line}: ")


@pytest.mark.parametrize(
    ("path", "content", "line", "code"),
    [
        ("a.json", "", 1, "json"),
        ("a.json", '{\n  "a": 1,\n}', 3, "json"),
        ("a.JSON", "{'a': 1}", 1, "json"),
        ("a.toml", "a = \n", 1, "toml"),
        ("pyproject.toml", "[a]\n[a]\n", 2, "toml"),
    ],
)
def test_a_broken_configuration_file_is_told(path: str, content: str, line: int | None, code: str) -> None:
    """JSON and TOML are read before a sandbox would stumble over them."""
    issues = _issues(path, content)

    assert [(issue.line, issue.code) for issue in issues] == [(line, code)]


def test_every_broken_file_is_told_in_one_go() -> None:
    """One answer can mend them all."""
    issues = examine(
        UNTESTED, [artifact("a.py", "("), artifact("b.py", "x = 1\n"), artifact("c.json", "[")], None
    )

    assert [issue.file for issue in issues] == ["a.py", "c.json"]


@pytest.mark.parametrize(
    "content", ["x = '\\d'\n", "x = 1 is 1\n", "assert (1, 'a')\n", "x = 1if 1 else 2\n"]
)
def test_what_the_compiler_only_warns_of_passes_in_silence(content: str) -> None:
    """Neither an issue nor a warning on the worker's standard error comes of it."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        issues = _issues("a.py", content)
        tree = syntax_tree(content)

    assert (issues, told) == ([], [])
    assert tree is not None


@pytest.mark.parametrize(
    ("paths", "codes"),
    [
        (["a.py"], ["no-tests"]),
        (["a.py", "tests/check_a.py"], ["no-tests"]),
        (["a.py", "tests/conftest.py"], ["no-tests"]),
        (["a.py", "tests/test_a.py"], []),
        (["a.py", "a_test.py"], []),
        (["index.js"], []),
        ([], []),
    ],
)
def test_a_python_project_needs_a_file_that_pytest_collects(
    plan: PTCExecutionPlan, paths: list[str], codes: list[str]
) -> None:
    """A plan that enables testing gets no draft into a sandbox that has nothing to test."""
    files = [artifact(path, "") for path in paths]
    issues = examine(plan, files, None)

    assert [issue.code for issue in issues] == codes


def test_a_plan_without_testing_needs_no_tests() -> None:
    """Nobody would run them."""
    files = [artifact("a.py", "")]
    issues = examine(UNTESTED, files, None)

    assert issues == []
    assert not has_python_tests(files)


def test_a_red_verdict_tells_the_issues_up_to_a_number() -> None:
    """A draft that is broken all over does not fill the next prompt."""
    issues = [GateIssue(file=f"a{n}.py", line=n or None, code="syntax", message="bad") for n in range(15)]
    verdict = red_verdict(issues)
    lines = verdict.feedback.splitlines()

    assert verdict.outcome is Outcome.GATE
    assert lines[1:3] == ["- a0.py: bad", "- a1.py:1: bad"]
    assert lines[-1] == "- … and 3 more"
    assert len(lines) == 14


def _nested_finally(depth: int) -> str:
    steps = (f"{' ' * n}try:\n{' ' * n} return\n{' ' * n}finally:\n" for n in range(1, depth + 1))
    return "def f():\n" + "".join(steps) + " " * (depth + 1) + "pass\n"


_HOSTILE = {
    "open brackets": ("a.py", "(" * 60_000),
    "nested lists": ("a.py", "x = " + "[" * 30_000 + "]" * 30_000),
    "minus signs": ("a.py", "-" * 60_000 + "1"),
    "half a million minus signs": ("a.py", "-" * 500_000 + "1"),
    "not not": ("a.py", "not " * 15_000 + "1"),
    "lambdas": ("a.py", "lambda:" * 9_000 + "1"),
    "attributes": ("a.py", "a" + ".b" * 30_000),
    "900 kB of attributes": ("a.py", "a" + ".b" * 450_000),
    "sum": ("a.py", "x" + "+x" * 30_000),
    "long sum": ("a.py", "x" + "+x" * 200_000),
    "calls": ("a.py", "a" + "()" * 30_000),
    "elif": ("a.py", "if x: pass\n" + "elif x: pass\n" * 4_900),
    "comprehension": ("a.py", "[0" + " for x in y" * 5_800 + "]"),
    "comprehension that overflows the stack": ("a.py", "[0" + " for x in y" * 100_000 + "]"),
    "nested f-strings": ("a.py", "f'" + "{1:" * 10_000 + "}" * 10_000 + "'"),
    "fields of an f-string": ("a.py", "f'" + "{x}" * 9_000 + "'"),
    "dotted import": ("a.py", "import " + "a." * 10_000 + "a"),
    "dotted import of a megabyte": ("a.py", "import " + "a." * 499_000 + "a"),
    "nested finally": ("a.py", _nested_finally(19)),
    "finally with many ways out": (
        "a.py",
        "def f():\n try:\n" + "  if x: return\n" * 1_000 + " finally:\n  try:\n"
        + "   if x: return\n" * 1_000 + "  finally:\n" + "   a\n" * 1_000,
    ),
    "equal functions": ("a.py", "def f(): pass\n" * 4_500),
    "keywords": ("a.py", "f(" + ",".join(f"a{n}=1" for n in range(7_000)) + ")"),
    "line of a megabyte": ("a.py", "x = '" + "a" * 1_000_000 + "'"),
    "many lines": ("a.py", "x\n" * 30_000),
    "NUL": ("a.py", "x = 1\0\n"),
    "half a surrogate pair": ("a.py", "x = '\ud800'\n"),
    "byte order mark": ("a.py", "\ufeffx = 1\n"),
    "huge number": ("a.py", "x = " + "9" * 60_000),
    "huge power": ("a.py", "x = 9 ** 9 ** 9 ** 9\ny = 1 << 10 ** 10\nz = 'a' * 10 ** 10\n"),
    "JSON arrays": ("a.json", "[" * 900_000),
    "JSON objects": ("a.json", '{"a":' * 180_000),
    "JSON number": ("a.json", "9" * 900_000),
    "TOML arrays": ("a.toml", "a = " + "[" * 19_000),
    "TOML key": ("a.toml", "a." * 5_000 + "a = 1"),
    "TOML key of a megabyte": ("a.toml", "a." * 490_000 + "a = 1"),
    "TOML number": ("a.toml", "a = " + "9" * 19_000),
}  # fmt: skip

_EXAMINE_ALL = """
import sys
import threading

sys.path.insert(0, "tests/unit")
import test_gate

thread = threading.Thread(target=test_gate.examine_hostile_files)
thread.start()
thread.join()
"""


def examine_hostile_files() -> None:
    """Examine each hostile file and ask for its imports; print its name once that is done."""
    for name, (path, content) in _HOSTILE.items():
        file = artifact(path, content)
        examine(UNTESTED, [file], None)
        needs_of([], [file], None)
        print(name, flush=True)  # noqa: T201 the parent reads which ones were survived


@pytest.fixture(scope="module")
def survived(pytestconfig: pytest.Config) -> list[str]:
    """The hostile files that a process of its own got through, one after the other, before it ended."""
    run = subprocess.run(
        [sys.executable, "-c", _EXAMINE_ALL],
        cwd=pytestconfig.rootpath,
        env={"PYTHONPATH": "tests"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return run.stdout.splitlines()


@pytest.mark.parametrize("name", _HOSTILE)
def test_a_hostile_source_neither_crashes_nor_hangs_the_process(survived: list[str], name: str) -> None:
    """A worker's threads live on whatever a draft holds; the compiler alone would take some of them down.

    Where several fail, the first one ended the process.
    """
    names = survived

    assert name in names


@settings(deadline=None)
@given(
    ending=st.sampled_from(["py", "json", "toml"]),
    content=st.text(st.sampled_from("()[]{}:=\"'\\\n \tdeffornt#0.\0\ud800") | st.characters(), max_size=60),
)
def test_no_content_raises(ending: str, content: str) -> None:
    """Whatever is in a file, the answer is a list of issues."""
    issues = _issues(f"a.{ending}", content)

    assert all(issue.message and issue.file == f"a.{ending}" for issue in issues)


@settings(deadline=None)
@given(content=st.text(st.sampled_from("()[]:=\n import.,axy*") | st.characters(), max_size=60))
def test_what_the_gate_lets_in_can_be_parsed(content: str) -> None:
    """Later rooms need not be afraid of a file that passed."""
    issues = _issues("a.py", content)

    assert issues or syntax_tree(content) is not None


@pytest.mark.parametrize(
    "path", ["tests/fixtures/bad.json", "data/broken.toml", "tests/data/bad.py", "tsconfig.json"]
)
def test_files_that_may_break_the_rules_are_left_alone(path: str) -> None:
    """Test data does so on purpose, and tsconfig holds comments."""
    plan = make_plan(enable_testing=False)

    assert examine(plan, [artifact(path, "{ // broken")], None) == []
