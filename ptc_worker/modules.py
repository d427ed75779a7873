"""The modules that a draft's files are, and the imports that stand in them."""

from __future__ import annotations

import ast
import re
from collections import defaultdict, deque
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ptc_worker.filetypes import is_free_form
from ptc_worker.syntax import syntax_tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ptc_contracts.result import CodeArtifact

_COMPILED = (".py", ".pyi", ".pyx", ".pxd", ".c", ".cc", ".cpp", ".rs", ".so", ".pyd")
"""Endings of files that are, or are built into, a module of that name."""

_APART = {"docs", "doc", "examples", "benchmarks"}
_APART_NAMES = {"setup.py", "noxfile.py", "fabfile.py", "locustfile.py", "gunicorn.conf.py"}
"""Files that somebody's tool runs; no test needs what they import."""

_DYNAMIC = re.compile(
    r"\b(?:globals|f_globals|exec|setattr|vars|locals|global_enum|_convert_"
    r"|__getattr__|__dict__|__path__|__import__|sys\s*\.\s*modules)\b"
)
"""What a module is written with that may hold names which nobody can read off it."""

_DOTTED_STRING = re.compile(r"""["'/]([\w.]{1,200})["']""")
_MAX_DEPTH = 20
"""Dots in the name of a module, at most, that could be in the project: its paths are less deep."""

_EVERY_MODULE_HAS = {"__name__", "__file__", "__doc__", "__path__", "__spec__", "__loader__", "__package__"} | {
    "__dict__", "__builtins__", "__cached__", "__annotations__",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Import:
    """An `import` of one module, or a `from … import` with its names."""

    file: str
    """Where it stands."""
    line: int
    """Its line, from 1."""
    module: str
    """The module as it is written; empty for `from . import …`."""
    level: int = 0
    """How many dots stand before it."""
    names: tuple[str, ...] = ()
    """What is taken from it; for a whole module nothing."""
    optional: bool = False
    """Whether the tests may well do without: it stands below an `if`, or in a file that no test needs."""

    def __str__(self) -> str:
        return "." * self.level + self.module


class Modules:
    """A draft's own modules, each under every name that some folder on the path would give it."""

    def __init__(self, files: Sequence[CodeArtifact]) -> None:
        self.trees = {
            file.file_path: tree
            for file in files
            if file.file_path.endswith(".py") and (tree := syntax_tree(file.content))
        }
        self._sources = {file.file_path: file.content for file in files if file.file_path in self.trees}
        self._read: dict[str, _Bound | None] = {}
        self.imports = [wanted for path in self.trees for wanted in self._imports_of(path)]
        """The imports that must succeed, and the optional ones; those that may fail are left out."""
        self._files: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        paths = [PurePosixPath(file.file_path) for file in files]
        for path in paths:
            self._enter(path)
        packages = {path.parent for path in paths if path.name == "__init__.py"}
        self.tops = frozenset(
            place.name.partition(".")[0]
            for path in paths
            for place in (path, *path.parents)
            if place.parent not in packages
        )
        """What can be imported by one name if the folder that it lies in is on the path: no part of a package."""

    def lacking(self, wanted: Import) -> str | None:
        """Say what an import of the project's own asks for that is not there, None if nothing is sure to be missing."""
        where = self._named_by(wanted)
        if where is None:
            return None
        if where not in self._files:
            told = f"imports {str(wanted)!r}, which is not among the project's files"
            return None if self._may_be_made(where) else told
        absent = [repr(name) for name in wanted.names if not self._holds(where, name)]
        if absent:
            return f"imports {', '.join(absent)} from {str(wanted)!r}, which does not define it"
        return None

    def mentions(self, module: str) -> bool:
        """Tell whether the code names a module in a string, for it may be written or replaced when that runs."""
        return not self._strings.isdisjoint({module, f"{module.rpartition('.')[2]}.py"})

    @cached_property
    def _strings(self) -> set[str]:
        """Collect the dotted names that end a string, and what they begin with."""
        dotted = {text for source in self._sources.values() for text in _DOTTED_STRING.findall(source)}
        return {start for text in dotted for start in (text, *accumulate(text.split("."), "{}.{}".format))}

    def _imports_of(self, path: str) -> Iterator[Import]:
        apart = is_free_form(path) or _is_apart(path) or "sys.modules" in self._sources[path]
        return _imports_in(path, self.trees[path], optional=apart)

    def _enter(self, path: PurePosixPath) -> None:
        """Note a file, and the folders above it, under each of its names; the empty part stands for the root."""
        if path.suffix in _COMPILED:
            name = path.name.partition(".")[0]
            parts = ("", *path.parts[:-1], *(() if name == "__init__" else (name,)))
            for name_of_it in _suffixes(parts):
                self._files[name_of_it].append(str(path))
        for depth in range(len(path.parts)):
            for name_of_it in _suffixes(("", *path.parts[:depth])):
                self._files.setdefault(name_of_it, [])

    def _named_by(self, wanted: Import) -> tuple[str, ...] | None:
        """Give the key of an import's module; a relative one starts at the root. None if it leaves the project."""
        parts = tuple(part for part in wanted.module.split(".") if part not in {"", "__init__"})
        if wanted.level == 0:
            return parts
        folders = PurePosixPath(wanted.file).parts[:-1]
        if wanted.level - 1 > len(folders):
            return None
        return ("", *folders[: len(folders) - wanted.level + 1], *parts)

    def _may_be_made(self, where: tuple[str, ...]) -> bool:
        above = (where[:depth] for depth in range(1, min(len(where), _MAX_DEPTH)))
        opaque = any(self._exported(path) is None for module in above for path in self._files.get(module, ()))
        return opaque or self.mentions(".".join(part for part in where if part))

    def _holds(self, module: tuple[str, ...], name: str) -> bool:
        if (*module, name) in self._files or name == "*" or name in _EVERY_MODULE_HAS:
            return True
        exports = [self._exported(path) for path in self._files[module]]
        return any(names is None or name in names for names in exports)

    def _exported(self, path: str) -> set[str] | None:
        """Collect what a module defines, or takes as a whole from others; None if that cannot be read off them."""
        names: set[str] = set()
        seen = {path}
        queue = [path]
        while queue:
            bound = self._bound(queue.pop())
            if bound is None:
                return None
            names |= bound.names
            for wanted in bound.stars:
                others = self._files.get(self._named_by(wanted) or (), [])
                if not others:
                    return None
                queue += [other for other in others if other not in seen]
                seen.update(others)
        return names

    def _bound(self, path: str) -> _Bound | None:
        if path not in self._read:
            tree = self.trees.get(path)
            readable = tree is not None and not _DYNAMIC.search(self._sources[path])
            self._read[path] = _bound_in(path, tree) if tree and readable else None
        return self._read[path]


def _suffixes(parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return (parts[start:] for start in range(len(parts)))


def _is_apart(path: str) -> bool:
    file = PurePosixPath(path)
    return file.name in _APART_NAMES or not _APART.isdisjoint(file.parts[:-1])


def _imports_in(path: str, tree: ast.Module, *, optional: bool) -> Iterator[Import]:
    queue: deque[tuple[ast.AST, bool]] = deque([(tree, optional)])
    while queue:
        node, may_miss = queue.popleft()
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(file=path, line=node.lineno, module=alias.name, optional=may_miss)
            case ast.ImportFrom():
                yield _taken_by(node, path, optional=may_miss)
            case _:
                queue.extend(_below(node, may_miss=may_miss))


def _below(node: ast.AST, *, may_miss: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Go down, past what may fail: guarded by `try`, `suppress` or `raises`, or only there for type checkers."""
    match node:
        case ast.Try(handlers=[_, *_]) | ast.TryStar():
            yield from ((child, may_miss) for child in [*node.orelse, *node.finalbody])
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            yield from ((child, may_miss) for child in node.orelse)
        case ast.If() | ast.Match():
            yield from ((child, True) for child in _statements(node))
        case ast.With() if any(
            _last_name(item.context_expr) in {"suppress", "raises"} for item in node.items
        ):
            return
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            skipped = any(_may_be_skipped(decorator) for decorator in node.decorator_list)
            yield from ((child, may_miss or skipped) for child in _statements(node))
        case _:
            yield from ((child, may_miss) for child in _statements(node))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Give the statements, and the cases and handlers that hold some, right below a node."""
    for part in ("body", "handlers", "orelse", "finalbody", "cases"):
        yield from getattr(node, part, ())


def _may_be_skipped(decorator: ast.expr) -> bool:
    name = _last_name(decorator)
    return "skip" in name.lower() or name in {"xfail", "expectedFailure"} or name.startswith("requires")


def _last_name(node: ast.expr) -> str:
    """Give the last name of a dotted expression, called or not; empty for any other."""
    while isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


@dataclass(frozen=True)
class _Bound:
    """What the statements of a module bind, whichever of them come to run."""

    names: set[str] = field(default_factory=set)
    stars: list[Import] = field(default_factory=list)
    """What is taken as a whole from other modules."""


def _bound_in(path: str, tree: ast.Module) -> _Bound:
    bound = _Bound()
    queue: list[ast.AST] = [*tree.body]
    while queue:
        node = queue.pop()
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                bound.names.add(name)
                queue += [inner for inner in ast.walk(node) if isinstance(inner, ast.Global)]
            case ast.Global(names=declared):
                bound.names.update(declared)
            case ast.Import() | ast.ImportFrom():
                _note_import(bound, node, path)
            case ast.Name(id=name, ctx=ast.Store()):
                bound.names.add(name)
            case (
                ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name))
            ):
                bound.names.add(name)
                queue += ast.iter_child_nodes(node)
            case _:
                queue += ast.iter_child_nodes(node)
    return bound


def _note_import(bound: _Bound, node: ast.Import | ast.ImportFrom, path: str) -> None:
    match node:
        case ast.ImportFrom(names=[ast.alias(name="*")]):
            bound.stars.append(_taken_by(node, path))
        case ast.ImportFrom(module=None, level=1) if PurePosixPath(path).name == "__init__.py":
            # Its own modules are there or are not, whatever it says; only another name for one is news.
            bound.names.update(alias.asname for alias in node.names if alias.asname)
        case _:
            bound.names.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)


def _taken_by(node: ast.ImportFrom, path: str, *, optional: bool = False) -> Import:
    names = tuple(alias.name for alias in node.names)
    module = node.module or ""
    return Import(
        file=path, line=node.lineno, module=module, level=node.level, names=names, optional=optional
    )
