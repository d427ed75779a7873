"""What the text of a file is by the grammar of its language, and where it breaks it."""

from __future__ import annotations

import ast
import json
import re
import symtable
import threading
import tomllib
import warnings
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from ptc_contracts.verdicts import GateIssue
from ptc_worker.filetypes import is_free_form, is_template

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ptc_contracts.result import CodeArtifact

_MAX_CHARS = {"py": 64_000, "toml": 20_000}
"""Longest file of a kind that is examined, and so accepted. Both parsers take quadratic time for some texts, and
CPython's keeps every other thread waiting: a dotted name of 64,000 characters takes it 1 to 3 s, a lease has 8 s.
The longest generated file that was measured has 9,100."""

_MAX_COMPILED_CHARS = 20_000
"""Longest source that is compiled, and not only parsed: a longer one can exhaust the stack of a thread."""

_MAX_YAML_CHARS = 200_000
"""Longest YAML that is examined; a longer one, such as a lock file, is accepted as it is. This long takes 0.2 s."""

_MAX_YAML_DEPTH = 100
"""Deepest YAML that is accepted: libyaml's time for open brackets is quadratic, 14 s for 100,000 of them."""

_warnings_lock = threading.Lock()  # the list of warning filters is one for all threads


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


def syntax_issues(file: CodeArtifact) -> Iterator[GateIssue]:
    """Find the first place where a file of Python, JSON, TOML or YAML breaks its grammar."""
    kind = PurePosixPath(file.file_path).suffix[1:].lower()
    if is_free_form(file.file_path) or is_template(file.file_path, file.content):
        return
    if len(file.content) > (most := _MAX_CHARS.get(kind, len(file.content))):
        told = f"it is longer than {most} characters; split it into several files"
        yield GateIssue(file=file.file_path, code="too-long", message=told)
        return
    try:
        _read(kind, file)
    except SyntaxError as error:
        yield GateIssue(file=file.file_path, line=error.lineno, code="syntax", message=f"{error.msg}")
    except json.JSONDecodeError as error:
        yield GateIssue(file=file.file_path, line=error.lineno, code="json", message=error.msg)
    except tomllib.TOMLDecodeError as error:
        yield GateIssue(file=file.file_path, line=_line_in(error), code="toml", message=str(error))
    except yaml.YAMLError as error:
        yield _yaml_issue(file.file_path, error)
    except (ValueError, RecursionError, MemoryError) as error:
        reason = "nested too deeply" if not isinstance(error, ValueError) else str(error)
        yield GateIssue(file=file.file_path, code="syntax", message=reason)


def _read(kind: str, file: CodeArtifact) -> None:
    match kind:
        case "py":
            _compile(file)
        case "json":
            json.loads(file.content)
        case "toml":
            tomllib.loads(file.content)
        case "yaml" | "yml":
            _read_yaml(file.content)


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


def _read_yaml(source: str) -> None:
    """Read YAML event by event: nothing is constructed, so tags may be unknown and documents many."""
    if len(source) > _MAX_YAML_CHARS:
        return
    depth = 0
    for event in yaml.parse(source, Loader=yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_YAML_DEPTH:
            raise RecursionError


def _yaml_issue(path: str, error: yaml.YAMLError) -> GateIssue:
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "it is not YAML"
    return GateIssue(file=path, line=mark.line + 1 if mark else None, code="yaml", message=reason)


def _line_in(error: tomllib.TOMLDecodeError) -> int | None:
    """Read the line off the message: Python before 3.14 tells it nowhere else."""
    found = re.search(r"\(at line (\d+),", str(error))
    return int(found[1]) if found else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the compiler's warnings in; what it only warns of is the author's business."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
