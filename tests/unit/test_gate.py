"""The gate sees what is wrong without running anything, and survives whatever a model writes."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import make_plan

from ptc_contracts.verdicts import GateIssue, GateStage, Outcome, Severity
from ptc_worker.dependencies import needs_of
from ptc_worker.filetypes import artifact
from ptc_worker.gate import examine, has_errors, has_python_tests, red_verdict
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
        ("a.js", "function a() {}"),
        ("a.go", "function ( {"),
        ("README.md", "{"),
        ("py", "("),
    ],
)
def test_a_sound_file_has_no_issue(path: str, content: str) -> None:
    """Python, JavaScript, JSON and TOML are examined, other files are not, and nothing is imported."""
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
        ("a.js", "\nfunction ( {", 2, "syntax"),
        ("a.ts", "const a: = 1", 1, "syntax"),
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
        (["index.js"], ["no-tests"]),
        (["index.js", "index.test.js"], []),
        (["main.go"], []),
        (["index.js", "tests/setup.js"], ["no-tests"]),
        (["a.py", "main_test.go"], []),
        ([], []),
    ],
)
def test_a_project_needs_a_file_that_a_runner_collects(
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


@pytest.mark.parametrize(
    ("path", "content", "line"),
    [
        ("a.yaml", "a: b: c\n", 1),
        ("a.yml", "a:\n  - b\n c: d\n", 3),
        ("a.yml", "a: [\n", 2),
        ("ci.YML", "a:\n\t- b\n", 2),
        ("a.yml", "a: \x07", None),
        ("a.yml", "[" * 101, None),
    ],
)
def test_broken_yaml_is_told(path: str, content: str, line: int | None) -> None:
    """A workflow or a compose file that nobody can read is not delivered."""
    issues = _issues(path, content)

    assert [(issue.line, issue.severity) for issue in issues] == [(line, Severity.ERROR)]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "a: 1\n---\nb: 2\n...\n",
        "a: !Ref b\nc: !!python/object:os.system {}\n",
        "a: *nowhere\n",
        "a: 1\na: 2\n",
        "on: ${{ github.ref }}\n",
        "{{- if .Values.a }}\na: {{ .Values.b }}\n{{- end }}\n",
        "{% for x in y %}\n{{ x }}: [\n{% endfor %}\n",
        "\ufeffa: é 🙂\n",
        "# only a comment\n",
    ],
)
def test_yaml_of_every_kind_passes(content: str) -> None:
    """Nothing is constructed: tags, aliases and documents are the business of whoever reads the file."""
    issues = _issues("a.yaml", content)

    assert issues == []


STRUCTURE = [
    ("src/app.py", "error"),
    ("./src/app.py", "error"),
    ("/src/app.py", "error"),
    (" src/app.py ", "error"),
    ("Makefile", "error"),
    (".gitignore", "error"),
    ("SRC/Main.py", None),
    ("src", None),
    ("src/", None),
    ("./src/main.py", None),
    ("logs/", "warning"),
    ("docs", "warning"),
    ("static/logo.png", "warning"),
    ("poetry.lock", "warning"),
    ("src/app.py # the entry", "warning"),
    ("├── app.py", "warning"),
    ("src/*.py", None),
    ("src/**", None),
    ("<module>.py", None),
    ("{name}.py", None),
    ("...", None),
    ("../up.py", None),
    ("a\\b.py", None),
    ("c:/a.py", None),
    ("src/.git/config", None),
    ("", None),
    ("/", None),
    ("tests (unit tests)", None),
]


@pytest.mark.parametrize(("key", "severity"), STRUCTURE)
def test_a_file_that_the_plan_names_must_be_there(key: str, severity: str | None) -> None:
    """Folders that stay empty and files that are no text are worth telling; a key that is no path asks for nothing."""
    plan = make_plan(enable_testing=False, file_structure={key: "what it is for"})
    issues = examine(plan, [artifact("src/main.py", "")], None)

    assert [issue.severity.value for issue in issues] == ([severity] if severity else [])
    assert all(issue.code == "missing-file" and issue.stage is GateStage.INTEGRATION for issue in issues)


def test_an_optional_file_may_be_missing() -> None:
    """The plan says so itself."""
    plan = make_plan(enable_testing=False, file_structure={"README.md": "Optional: how to use it"})
    issues = examine(plan, [artifact("a.py", "")], None)

    assert [issue.severity for issue in issues] == [Severity.WARNING]


def test_a_draft_written_inside_of_the_plans_only_folder_is_let_in() -> None:
    """Whether that is what the plan meant, the tests will tell."""
    plan = make_plan(enable_testing=False, file_structure={"calc/core.py": "", "calc/tests/test_core.py": ""})
    moved = [artifact("core.py", ""), artifact("tests/test_core.py", "")]
    half = [artifact("calc/core.py", ""), artifact("tests/test_core.py", "")]

    assert not has_errors(examine(plan, moved, None))
    assert has_errors(examine(plan, half, None))


def test_the_plans_own_tests_are_tests_and_import_from_the_draft() -> None:
    """A draft without what they import is sent back before a sandbox is spent."""
    plan = make_plan(
        test_files={"tests/test_core.py": "from calc.core import add, sub\n\ndef test_it(): add()\n"}
    )
    whole = [artifact("calc/core.py", "def add(): ...\ndef sub(): ...\n")]
    half = [artifact("calc/core.py", "def add(): ...\n"), artifact("tests/test_core.py", "(")]

    issues = examine(plan, half, None)

    assert examine(plan, whole, None) == []
    assert [str(issue) for issue in issues] == [
        "tests/test_core.py:1: imports 'sub' from 'calc.core', which does not define it"
    ]


def test_a_broken_test_of_the_plan_is_not_held_against_the_draft() -> None:
    """No model can mend it."""
    plan = make_plan(test_files={"tests/test_core.py": "def test_it(:\n"})
    issues = examine(plan, [artifact("core.py", "")], None)

    assert issues == []


@pytest.mark.parametrize(
    ("plan", "tests", "severity"),
    [
        (make_plan(), "tests/test_a.py", Severity.ERROR),
        (make_plan(), "src/a.test.js", Severity.WARNING),
        (UNTESTED, "tests/test_a.py", Severity.WARNING),
    ],
)
def test_an_unknown_package_refuses_a_draft_whose_tests_would_miss_it(
    plan: PTCExecutionPlan, tests: str, severity: Severity
) -> None:
    """The gate asks what the sandbox stage would ask, a sandbox earlier."""
    files = [artifact("a.py", "import nonesuch\n"), artifact(tests, "")]
    issues = examine(plan, files, None)

    assert [(i.file, i.line, i.code, i.severity, i.stage) for i in issues] == [
        ("a.py", 1, "unknown-package", severity, GateStage.INTEGRATION)
    ]
    assert needs_of([], files, None).issues[0].message == issues[0].message


def test_a_package_that_the_operator_leaves_out_is_unknown(plan: PTCExecutionPlan) -> None:
    """The list of the installation holds for the gate, too."""
    files = [artifact("tests/test_a.py", "import requests\n")]

    assert examine(plan, files, None) == []
    assert has_errors(examine(plan, files, {"flask"}), GateStage.INTEGRATION)
    assert not has_errors(examine(plan, files, {"flask"}), GateStage.SYNTACTIC)


def _issue(file: str = "a.py", line: int | None = None, message: str = "bad", **fields: Any) -> GateIssue:
    return GateIssue(file=file, line=line, code="syntax", message=message, **fields)


def test_a_red_verdict_tells_the_issues_up_to_a_number() -> None:
    """A draft that is broken all over does not fill the next prompt."""
    verdict = red_verdict([_issue(f"a{n}.py", n or None) for n in range(70)])
    lines = verdict.feedback.splitlines()

    assert verdict.outcome is Outcome.GATE
    assert lines[1:3] == ["- a0.py: bad", "- a1.py:1: bad"]
    assert lines[-1] == "- … and 58 more"
    assert len(lines) == 14
    assert len(verdict.issues) == 50


def test_a_red_verdict_tells_errors_first_and_the_same_thing_once() -> None:
    """Twenty uses of one undefined name are one mistake."""
    mild = _issue("b.py", 1, severity=Severity.WARNING)
    verdict = red_verdict([mild, *(_issue(line=line) for line in range(3, 23))])
    lines = verdict.feedback.splitlines()

    assert lines[1:] == ["- a.py:3: bad", "- b.py:1: bad (not the reason; worth a look)"]
    assert len(verdict.issues) == 21


def test_a_red_verdict_has_bounds_whatever_the_messages_are() -> None:
    """A name of 64,000 characters stands in the message about it."""
    verdict = red_verdict([_issue(f"a{n}.py", message=f"{n}" * 60_000) for n in range(30)])

    assert len(verdict.feedback) < 6_200
    assert sum(len(issue.message) for issue in verdict.issues) < 50 * 402


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        ([_issue("b.py", 9), _issue("a.py", 4, "to match '(' on line 3")], True),
        ([_issue("a.py", 4, "to match '(' on line 7"), _issue("b.py", 9), _issue("b.py", 11)], True),
        (
            [_issue("a.py", 1, "to match '(' on line 3"), _issue("b.py"), _issue(severity=Severity.WARNING)],
            True,
        ),
        ([_issue("a.py", 1, "to match '(' on line 3")], False),
        ([_issue("a.py", 1, "to match '[' on line 3"), _issue("b.py")], False),
        ([_issue("c.py", 1, "to match '(' on line 3"), _issue("b.py")], False),
    ],
)
def test_equal_errors_have_equal_signatures(other: list[GateIssue], *, equal: bool) -> None:
    """Wherever in their files they stand, in any order, and whatever is only worth telling."""
    ours = red_verdict([_issue("a.py", 1, "to match '(' on line 3"), _issue("b.py", 2)]).signature

    assert len(ours) == 16
    assert (red_verdict(other).signature == ours) is equal


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
    "YAML brackets": ("a.yaml", "[" * 900_000),
    "fewer YAML brackets": ("a.yaml", "[" * 190_000),
    "YAML braces": ("a.yml", "{" * 190_000),
    "YAML maps in maps": ("a.yml", "{a: " * 49_000),
    "YAML dashes": ("a.yml", "- " * 99_000),
    "YAML that laughs": ("a.yml", "a: &a [x, x]\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(9_000))),
    "YAML documents": ("a.yml", "---\na\n" * 33_000),
    "YAML NUL": ("a.yml", "a: \0"),
    "half a surrogate pair in YAML": ("a.yml", "a: \ud800"),
    "relative import": ("a/b.py", "from ." + "a." * 20_000 + "a import b"),
    "dots": ("a/b.py", "from " + "." * 60_000 + " import b"),
    "own dotted import": ("a/b.py", "import " + "a." * 20_000 + "a"),
    "star import of itself": ("a/b.py", "from .b import *\nfrom a.b import *\nfrom .b import c\n"),
    "many unknown imports": ("a.py", "".join(f"import x{n}\n" for n in range(4_900))),
    "many strings": ("a.py", "import nonesuch\n" + "'" * 60_000),
    "dots in a string": ("a.py", "import nonesuch\nx = '" + "." * 60_000 + "'"),
    "called decorator": ("a.py", "@x" + "()" * 30_000 + "\ndef f(): import a.b"),
    "called context": ("a.py", "with x" + "()" * 30_000 + ": import a.b"),
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
    ending=st.sampled_from(["py", "json", "toml", "yaml"]),
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
