"""Which tests a draft's files define, as far as reading them can tell, and what in them makes any result doubtful."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ptc_worker.filetypes import is_pytest_file, is_test
from ptc_worker.syntax import syntax_tree

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from ptc_contracts.result import CodeArtifact

_NEVER_COLLECTED = {"build", "dist", "node_modules", "venv", "_darcs", "CVS", "{arch}"}
"""Folders that pytest passes over by default, beside hidden ones and `*.egg`."""

_CONDITIONS = {"skipif", "skipIf", "skipUnless"}
_SKIPS = {"skip", "skipTest", "SkipTest", "xfail", "importorskip"}
_TRANSPARENT = {"mark", "patch", "given", "settings", "example", "skip", "expectedFailure"}
"""Decorators, by the last names of them, below which a test stays a test; of others nothing is known."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Expected:
    """What a run of a draft's tests must show."""

    tests: dict[str, int | None] = field(default_factory=dict)
    """Tests that must be collected: id without parameters, and the function's first line where that is sure."""
    conditional: set[str] = field(default_factory=set)
    """Tests, classes and files that say on which condition they are skipped or expected to fail."""
    doubts: list[str] = field(default_factory=list)
    """What makes passed tests prove nothing, in sentences."""
    given: set[str] = field(default_factory=set)
    """Files of tests that the plan gave: at least one of these tests must run."""

    def may_be_left_out(self, test: str) -> bool:
        """Tell whether a test, or what it stands in, says on which condition it is left out."""
        deepest = max((place.count("::") + 1 for place in self.conditional), default=0)
        parts = without_parameters(test).split("::", deepest)[:deepest]  # a run may name a test as it likes
        return any("::".join(parts[:depth]) in self.conditional for depth in range(1, len(parts) + 1))


def expected_of(files: Sequence[CodeArtifact], given: Collection[str] = ()) -> Expected:
    """Read a draft's files; what cannot be parsed promises nothing.

    `given` are the paths of those that no model wrote: their tests are left out as they say, on a condition or not.
    """
    expected = Expected()
    for file in files:
        if not file.file_path.endswith(".py") or (tree := syntax_tree(file.content)) is None:
            continue
        if is_pytest_file(file.file_path) and _is_collected(file.file_path):
            _read_tests(file.file_path, tree, expected)
            if file.file_path in given:
                expected.given.add(file.file_path)
                _read_skips(file.file_path, tree.body, expected, set())
        if not is_test(file.file_path) and file.file_path not in given:
            expected.doubts.extend(f"{file.file_path}:{doubt}" for doubt in _doubts(tree))
    return expected


def without_parameters(test: str) -> str:
    """Give the id of the function from which a test is made."""
    path, _, rest = test.partition("::")
    return f"{path}::{rest.partition('[')[0]}"


def _is_collected(path: str) -> bool:
    folders = PurePosixPath(path).parts[:-1]
    return not any(f in _NEVER_COLLECTED or f.startswith(".") or f.endswith(".egg") for f in folders)


def _read_tests(path: str, tree: ast.Module, expected: Expected) -> None:
    conditions = {name for node in tree.body for name in _bound(node) if _has_condition(node, set())}
    if "pytestmark" in conditions or _leaves_out(tree.body):
        expected.conditional.add(path)
    names = [name for node in tree.body for name in _bound(node)]
    for node in tree.body:
        if names.count(getattr(node, "name", "")) != 1:
            continue  # what is defined twice, or deleted, is nobody's promise
        if isinstance(node, _Function):
            _read_test(path, node, conditions, expected)
        elif isinstance(node, ast.ClassDef) and _holds_tests(node):
            inside = f"{path}::{node.name}"
            if any(_has_condition(decorator, conditions) for decorator in node.decorator_list):
                expected.conditional.add(inside)
            inner = [name for child in node.body for name in _bound(child)]
            for child in node.body:
                if isinstance(child, _Function) and inner.count(child.name) == 1:
                    _read_test(inside, child, conditions, expected)


def _read_test(place: str, node: _Function, conditions: set[str], expected: Expected) -> None:
    if not node.name.startswith("test_"):
        return
    test = f"{place}::{node.name}"
    if any(_has_condition(d, conditions) for d in node.decorator_list) or _leaves_out(node.body):
        expected.conditional.add(test)
    decorators = [_last_names(decorator) for decorator in node.decorator_list]
    if all(names & (_TRANSPARENT | _CONDITIONS | conditions) for names in decorators):
        sure = all("mark" in names for names in decorators)
        first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
        expected.tests[test] = first if sure else None


def _read_skips(place: str, body: list[ast.stmt], expected: Expected, known: set[str]) -> None:
    """Note all places that skip or expect a failure; `known` are names of marks that do."""
    for node in body:
        match node:
            case ast.ClassDef():
                if any(_names_skip(decorator, known) for decorator in node.decorator_list):
                    expected.conditional.add(f"{place}::{node.name}")
                _read_skips(f"{place}::{node.name}", node.body, expected, known)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                if _names_skip(node, known):
                    expected.conditional.add(f"{place}::{node.name}")
            case ast.Assign() if _names_skip(node, known) and "pytestmark" not in _bound(node):
                known.update(_bound(node))
            case _ if _names_skip(node, known):
                expected.conditional.add(place)


def _names_skip(node: ast.AST, known: set[str]) -> bool:
    names = {getattr(part, "attr", getattr(part, "id", None)) for part in ast.walk(node)}
    return bool(names & (_SKIPS | _CONDITIONS | known | {"expectedFailure"}))


def _holds_tests(node: ast.ClassDef) -> bool:
    """Tell whether pytest collects a class, and nothing but its own body says what is in it."""
    bodies = {name for child in node.body for name in _bound(child)}
    if {"__init__", "__new__", "__test__", "__getattr__"} & bodies or node.keywords:
        return False
    if any(not _last_names(d) & (_TRANSPARENT | _CONDITIONS) for d in node.decorator_list):
        return False
    bases = [_dotted(base)[-1:] for base in node.bases]
    return (not bases and node.name.startswith("Test")) or bases in (
        [["TestCase"]],
        [["IsolatedAsyncioTestCase"]],
    )


def _leaves_out(body: list[ast.stmt]) -> bool:
    """Tell whether statements skip, or expect a failure, on a condition: inside an `if`, `try` and the like."""
    for statement in body:
        if isinstance(statement, _Function | ast.ClassDef):
            continue
        nested = isinstance(statement, ast.If | ast.Try | ast.For | ast.While | ast.With | ast.Match)
        constant = isinstance(statement, ast.If) and isinstance(statement.test, ast.Constant)
        for node in ast.walk(statement):
            if isinstance(node, ast.Call | ast.Raise):
                names = _last_names(node.func if isinstance(node, ast.Call) else node.exc or node)
                if "importorskip" in names or (names & _SKIPS and nested and not constant):
                    return True
    return False


def _has_condition(node: ast.AST, known: set[str]) -> bool:
    """Tell whether a decorator or an assignment carries a mark with a condition that is not a constant."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in known:
            return True
        if isinstance(part, ast.Call) and (name := _dotted(part.func)[-1:]):
            given = [*part.args[:1], *(k.value for k in part.keywords if k.arg == "condition")]
            if name[0] in {*_CONDITIONS, "xfail"} and given and not isinstance(given[0], ast.Constant):
                return True
    return False


def _bound(node: ast.stmt) -> Iterator[str]:
    """Name what a statement binds or deletes at its own level."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign(targets=targets) | ast.Delete(targets=targets):
            yield from (part.id for t in targets for part in ast.walk(t) if isinstance(part, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from (alias.asname or alias.name for alias in names)
        case ast.If() | ast.Try() | ast.For() | ast.While() | ast.With():
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.stmt):
                    yield from _bound(child)
                elif isinstance(child, ast.ExceptHandler):
                    yield from (name for inner in child.body for name in _bound(inner))


def _last_names(node: ast.AST) -> set[str]:
    """Give the names of which a dotted expression, called or not, consists."""
    return set(_dotted(node.func if isinstance(node, ast.Call) else node))


def _dotted(node: ast.AST) -> list[str]:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else names


def _doubts(tree: ast.Module) -> Iterable[str]:
    """Find objects that are equal to everything."""
    for owner in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for node in owner.body:
            if _always_says(node, "__eq__", says=True) or _always_says(node, "__ne__", says=False):
                yield f"{node.lineno}: objects of the class {owner.name} are equal to everything"


def _always_says(node: ast.stmt, method: str, *, says: bool) -> bool:
    match node:
        case ast.FunctionDef(name=name, body=[*_, ast.Return(value=ast.Constant(value=value))] as body):
            trivial = all(isinstance(s, ast.Return | ast.Pass) or _is_text(s) for s in body)
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Lambda(body=ast.Constant(value=value))):
            trivial = True
        case _:
            return False
    return name == method and value is says and trivial


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
