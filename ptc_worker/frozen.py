"""Which files no answer may change: tests that a draft or the plan has set, and what configures how tests run."""

from __future__ import annotations

import json
from configparser import Error as ConfigParserError
from configparser import RawConfigParser
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ptc_worker.filetypes import TEST_FOLDERS, is_test
from ptc_worker.syntax import toml_tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ptc_contracts.result import CodeArtifact

_RUNNERS_OWN = ("pytest.ini", ".pytest.ini", "conftest.py", "sitecustomize.py", "usercustomize.py")
_RUNNERS_STEMS = ("vitest.config", "vitest.workspace", "jest.config", "jest.setup", ".mocharc")
_IN_PART = {"pyproject.toml", "setup.cfg", "tox.ini", "package.json"}
"""Files of which one part configures the tests."""


def is_test_material(path: str) -> bool:
    """Tell whether a file is a test, what tests read (all in their folders), or nothing but their configuration."""
    folders = PurePosixPath(path).parts[:-1]
    return is_test(path) or is_runners_own(path) or any(folder in TEST_FOLDERS for folder in folders)


def frozen_files(files: Iterable[CodeArtifact]) -> list[CodeArtifact]:
    """Choose what is frozen of a draft: its tests, and all that configures them."""
    return [file for file in files if is_test_material(file.file_path) or _settings_of_tests(file)]


def is_change_of_tests(file: CodeArtifact, frozen: Sequence[CodeArtifact]) -> bool:
    """Tell whether an answer's file would change frozen tests, or how tests run.

    A new test file changes nothing that stands. New configuration of tests does, and so does a file where a frozen
    one's folder must be, or below one.
    """
    path = file.file_path.casefold()
    standing = {kept.file_path.casefold(): kept for kept in frozen}
    if _name(file) in _IN_PART:
        before = standing.get(path)
        return _settings_of_tests(file) != (_settings_of_tests(before) if before else {})
    if path in standing:
        return file.content != standing[path].content
    return is_runners_own(file.file_path) or any(_in_the_way(path, kept) for kept in standing)


def is_removal_of_tests(path: str, frozen: Sequence[CodeArtifact]) -> bool:
    """Tell whether a deletion would take a frozen file away, or the configuration of tests in it."""
    return path.casefold() in {kept.file_path.casefold() for kept in frozen}


def _in_the_way(path: str, kept: str) -> bool:
    return kept.startswith(f"{path}/") or path.startswith(f"{kept}/")


def is_runners_own(path: str) -> bool:
    """Tell whether a file does nothing but configure how tests, or Python itself, run."""
    name = PurePosixPath(path).name.casefold()
    return name in _RUNNERS_OWN or name.endswith(".pth") or name.startswith(_RUNNERS_STEMS)


def _settings_of_tests(file: CodeArtifact) -> dict[str, object]:
    """Read the part of a project's configuration that tells how its tests run; empty if there is none."""
    match _name(file):
        case "pyproject.toml":
            tool = (toml_tree(file.content) or {}).get("tool")
            return {"pytest": tool["pytest"]} if isinstance(tool, dict) and "pytest" in tool else {}
        case "setup.cfg" | "tox.ini":
            return _sections(file.content, ("tool:pytest", "pytest"))
        case "package.json":
            return _scripts(file.content)
    return {}


def _sections(text: str, names: Sequence[str]) -> dict[str, object]:
    parser = RawConfigParser(strict=False)
    try:
        parser.read_string(text)
    except ConfigParserError:
        return {}
    return {name: parser.items(name) for name in names if parser.has_section(name)}


def _scripts(text: str) -> dict[str, object]:
    try:
        package = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(package, dict):
        return {}
    scripts = package.get("scripts")
    tests = {k: v for k, v in scripts.items() if "test" in k} if isinstance(scripts, dict) else {}
    runners = {name: package[name] for name in ("jest", "vitest", "mocha") if name in package}
    return {**({"scripts": tests} if tests else {}), **runners}


def _name(file: CodeArtifact) -> str:
    return PurePosixPath(file.file_path).name.casefold()
