"""What is wrong with a draft that can be seen without running it. Milliseconds, before any sandbox is spent."""

from __future__ import annotations

import ast
import json
import symtable
import threading
import tomllib
import warnings
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ptc_contracts.verdicts import GateIssue, Outcome, Verdict
from ptc_worker.filetypes import is_free_form, is_pytest_file, language

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ptc_contracts.plan import PTCExecutionPlan
    from ptc_contracts.result import CodeArtifact

_MAX_TOLD = 12

_MAX_CHARS = {"py": 64_000, "toml": 20_000}
"""Longest file of a kind that is examined, and so accepted. Both parsers take quadratic time for some texts, and
CPython's keeps every other thread waiting: a dotted name of 64,000 characters takes it 1 to 3 s, a lease has 8 s.
The longest generated file that was measured has 9,100."""

_MAX_COMPILED_CHARS = 20_000
"""Longest source that is compiled, and not only parsed: a longer one can exhaust the stack of a thread."""

_warnings_lock = threading.Lock()  # the list of warning filters is one for all threads


def examine(plan: PTCExecutionPlan, files: Sequence[CodeArtifact]) -> list[GateIssue]:
    """List what is wrong with a draft; an empty list lets it into a sandbox."""
    issues = [issue for file in files for issue in _syntax_issues(file)]
    if plan.enable_testing and (missing := _missing_tests(files)):
        issues.append(missing)
    return issues


def red_verdict(issues: Sequence[GateIssue]) -> Verdict:
    """Word issues as a verdict that sends the draft back."""
    told = [f"- {issue}" for issue in issues[:_MAX_TOLD]]
    if len(issues) > _MAX_TOLD:
        told.append(f"- … and {len(issues) - _MAX_TOLD} more")
    return Verdict(
        outcome=Outcome.GATE,
        feedback="\n".join(["The project was not run, for these problems can be seen without it:", *told]),
    )


def has_python_tests(files: Sequence[CodeArtifact]) -> bool:
    """Tell whether there is anything that pytest would collect."""
    return any(is_pytest_file(file.file_path) for file in files)


def syntax_tree(source: str) -> ast.Module | None:
    """Parse Python without a warning, None if it cannot be parsed."""
    if len(source) > _MAX_CHARS["py"]:
        return None
    try:
        with _quiet():
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def toml_tree(source: str) -> dict[str, Any] | None:
    """Parse TOML; None if it cannot be read or is too long to be."""
    if len(source) > _MAX_CHARS["toml"]:
        return None
    try:
        return tomllib.loads(source)
    except (ValueError, RecursionError, MemoryError):
        return None


def _missing_tests(files: Sequence[CodeArtifact]) -> GateIssue | None:
    python = any(language(file.file_path) == "python" for file in files)
    if not python or has_python_tests(files):
        return None
    return GateIssue(
        file="tests/", line=None, code="no-tests", message="there is no test file named test_*.py"
    )


def _syntax_issues(file: CodeArtifact) -> Iterator[GateIssue]:
    kind = PurePosixPath(file.file_path).suffix[1:].lower()
    if is_free_form(file.file_path):
        return
    if len(file.content) > (most := _MAX_CHARS.get(kind, len(file.content))):
        yield GateIssue(
            file=file.file_path,
            line=None,
            code="too-long",
            message=f"it is longer than {most} characters; split it into several files",
        )
        return
    try:
        match kind:
            case "py":
                _compile(file)
            case "json":
                json.loads(file.content)
            case "toml":
                tomllib.loads(file.content)
    except SyntaxError as error:
        yield GateIssue(file=file.file_path, line=error.lineno, code="syntax", message=f"{error.msg}")
    except json.JSONDecodeError as error:
        yield GateIssue(file=file.file_path, line=error.lineno, code="json", message=error.msg)
    except tomllib.TOMLDecodeError as error:
        yield GateIssue(file=file.file_path, line=None, code="toml", message=str(error))
    except (ValueError, RecursionError, MemoryError) as error:
        reason = "nested too deeply" if not isinstance(error, ValueError) else str(error)
        yield GateIssue(file=file.file_path, line=None, code="syntax", message=reason)


def _compile(file: CodeArtifact) -> None:
    """Compile without running, or only parse and resolve names where compiling could take for ever.

    CPython writes the body of a `finally` once for every way out of its `try`: a kilobyte of nested ones takes
    it minutes, during which no other thread runs.
    """
    source = file.content
    with _quiet():
        if len(source) > _MAX_COMPILED_CHARS or source.count("finally") > 1:
            symtable.symtable(source, file.file_path, "exec")
        else:
            compile(source, file.file_path, "exec", dont_inherit=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the compiler's warnings in; what it only warns of is the author's business."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
