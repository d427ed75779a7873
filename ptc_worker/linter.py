"""Runs ruff over a draft for errors that Python's own compiler does not see: names that nothing defines, and the like."""

from __future__ import annotations

import ast
import json
import os
import re
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import TYPE_CHECKING, Any

import structlog

from ptc_contracts.verdicts import GateIssue, GateStage, Severity
from ptc_worker import leash
from ptc_worker.filetypes import is_free_form, is_template
from ptc_worker.syntax import syntax_tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ptc_contracts.result import CodeArtifact

log = structlog.get_logger(__name__)

_RULES = "E9,F63,F7,F82"

_WORTH_TELLING = {"F632", "F722", "F822", "F823"}
"""Rules that also fire where nothing fails: `is` with a literal, array shapes in annotations (`Float[Array, "b c"]`),
`__all__` of a module that loads lazily, and a name that an earlier turn of a loop has bound."""

_MEMORY_BYTES = 1 << 30
_MAX_OUTPUT = 1_000_000
"""Bytes of findings that are read, 300 each or more: a draft with that many is refused anyway."""

_MAX_PER_FILE = 50

_OTHERWISE_DEFINED = {
    "_", "__path__", "get_ipython", "basestring", "buffer", "frozendict", "long", "unichr", "unicode", "xrange",
}  # fmt: skip
"""What gettext, packages, IPython and other versions of Python define; code asks for it where it is there."""

_DEFINES_NAMES = re.compile(r"\b(?:globals|exec|builtins|global_enum)\b")


def lint(files: Sequence[CodeArtifact], seconds: float = 10.0) -> list[GateIssue]:
    """List what ruff finds in a draft's Python files, whatever their comments and its configuration say.

    A ruff that is missing, crashes or takes longer than so many seconds has found nothing: the tests will.
    """
    sources = [file for file in files if _is_linted(file)]
    if not sources:
        return []
    try:
        return _found_in(sources, seconds)
    except (OSError, subprocess.SubprocessError, ImportError, ValueError) as error:
        log.warning("linter_failed", error=f"{type(error).__name__}: {error}", files=len(sources))
        return []


def _is_linted(file: CodeArtifact) -> bool:
    path, content = file.file_path, file.content
    return path.endswith(".py") and not is_free_form(path) and not is_template(path, content)


def _found_in(sources: Sequence[CodeArtifact], seconds: float) -> list[GateIssue]:
    """Write the sources under names of ours, so that no path and no configuration of the draft counts, and run ruff."""
    with TemporaryDirectory(prefix="ptc-lint-") as folder:
        for number, file in enumerate(sources):
            Path(folder, f"{number}.py").write_text(file.content, encoding="utf-8", errors="replace")
        findings = _ruff(folder, seconds)
    by_file: dict[int, list[dict[str, Any]]] = {}
    for finding in findings:
        if str(finding["code"]).startswith("F"):  # on syntax the gate has had Python's own word
            by_file.setdefault(int(Path(finding["filename"]).stem), []).append(finding)
    return [issue for number, found in sorted(by_file.items()) for issue in _issues(sources[number], found)]


def _ruff(folder: str, seconds: float) -> list[dict[str, Any]]:
    """Run ruff over a folder and read what it finds, the first findings of very many."""
    from ruff import find_ruff_bin

    with subprocess.Popen(  # noqa: S603 the linter we depend on, over files that we named
        [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), find_ruff_bin(), *_ARGUMENTS],
        env={"RAYON_NUM_THREADS": "2", "NO_COLOR": "1"},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        limit = Timer(seconds, process.kill)
        limit.start()
        try:
            _bound_memory(process.pid)
            output = process.stdout.read(_MAX_OUTPUT) if process.stdout else b""
            if len(output) == _MAX_OUTPUT:
                process.kill()
            elif process.wait() != (1 if output else 0):
                raise subprocess.SubprocessError(f"ruff ended with {process.returncode}")
        finally:
            limit.cancel()
            process.kill()
    return [json.loads(line) for line in output.splitlines(keepends=True) if line.endswith(b"\n")]


_ARGUMENTS = (
    *("check", "--isolated", "--no-cache", "--ignore-noqa", "--no-respect-gitignore", "--quiet"),
    *("--select", _RULES, "--target-version", f"py3{sys.version_info.minor}"),
    *("--output-format", "json-lines", "."),
)


def _bound_memory(process_id: int) -> None:
    if sys.platform == "linux":
        with suppress(ProcessLookupError):
            resource.prlimit(process_id, resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


def _issues(file: CodeArtifact, findings: list[dict[str, Any]]) -> Iterator[GateIssue]:
    names = _Names(file.content)
    for finding in findings[:_MAX_PER_FILE]:
        code, line = finding["code"], finding["location"]["row"]
        told = finding["message"].partition(". Consider ")[0]
        sure = code not in _WORTH_TELLING and (code != "F821" or names.fails(_undefined_in(told), line))
        yield GateIssue(
            file=file.file_path,
            line=line,
            code=code,
            message=told,
            severity=Severity.ERROR if sure else Severity.WARNING,
            stage=GateStage.SEMANTIC,
        )


def _undefined_in(message: str) -> str:
    """Give the name in "Undefined name `x`"."""
    return message.partition("`")[2].partition("`")[0]


class _Names:
    """Which names of a file its code evaluates, and which its functions bind; none if it may define them otherwise."""

    def __init__(self, source: str) -> None:
        tree = syntax_tree(source)
        readable = tree is not None and not _DEFINES_NAMES.search(source)
        self._evaluated = _evaluated_names(tree) - _OTHERWISE_DEFINED if tree and readable else set()
        self._functions = [
            (node.lineno, node.end_lineno or node.lineno, _names_bound_in(node))
            for node in ast.walk(tree or ast.Module([], []))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]

    def fails(self, name: str, line: int) -> bool:
        """Tell whether an undefined name is sure to fail once its line runs: no earlier turn of a loop has bound it."""
        if name not in self._evaluated:
            return False
        return not any(first <= line <= last and name in bound for first, last, bound in self._functions)


def _names_bound_in(function: ast.AST) -> set[str]:
    return {
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    }


def _evaluated_names(tree: ast.Module) -> set[str]:
    """Collect names; annotations of a function's variables are never evaluated, in some files none are."""
    postponed = sys.version_info >= (3, 14) or any(_postpones(node) for node in tree.body)
    names: dict[type[ast.expr_context], set[str]] = {ast.Load: set(), ast.Store: set(), ast.Del: set()}
    queue: list[tuple[ast.AST, bool]] = [(tree, False)]
    while queue:
        node, in_function = queue.pop()
        if isinstance(node, ast.Name):
            names[type(node.ctx)].add(node.id)
        inside = in_function
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inside = not isinstance(node, ast.ClassDef)
        unread = postponed or (in_function and isinstance(node, ast.AnnAssign))
        queue += [
            (child, inside)
            for field, value in ast.iter_fields(node)
            if not (unread and field in {"annotation", "returns"})
            for child in (value if isinstance(value, list) else [value])
            if isinstance(child, ast.AST)
        ]
    return names[ast.Load] - names[ast.Del]


def _postpones(node: ast.stmt) -> bool:
    if not isinstance(node, ast.ImportFrom) or node.module != "__future__":
        return False
    return any(alias.name == "annotations" for alias in node.names)
