"""Which files no answer may change: tests that a draft or the plan has set, and what configures how tests run."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ptc_worker.filetypes import TEST_FOLDERS, import_path, is_pytest_file, is_test
from ptc_worker.javascript import is_javascript, node_tests
from ptc_worker.modules import Modules
from ptc_worker.syntax import toml_tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ptc_contracts.result import CodeArtifact
    from ptc_worker.modules import Import

_PYTESTS_OWN = {"pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "conftest.py"}
_INTERPRETERS_OWN = {"sitecustomize.py", "usercustomize.py"}
_OTHER_RUNNERS = ("vitest.config", "vitest.workspace", "jest.config", "jest.setup", ".mocharc")
"""How files begin that configure what is never run here."""
_IN_PART = {"pyproject.toml", "setup.cfg", "tox.ini", "package.json"}
"""Files of which one part configures the tests."""

_SECTION = re.compile(r"^\[(?:tool:)?pytest\b.*?(?=^\[|\Z)", re.MULTILINE | re.DOTALL)
_PYTHON_FILES = re.compile(r"^\s*python_files\s*=\s*((?:\[[^\]]*\])|(?:.*(?:\n[ \t]+.*)*))", re.MULTILINE)
_NODES_RUNNER = re.compile(r"\bnode\b.*--test\b")
_Name = tuple[str, ...]


def is_test_material(path: str) -> bool:
    """Tell whether a file is a test, what tests read (all in their folders), or nothing but their configuration."""
    *folders, name = PurePosixPath(path).parts
    marked = ".test." in name or ".spec." in name
    in_folder = any(folder.casefold() in TEST_FOLDERS for folder in folders)
    return is_test(path) or is_runners_own(path) or marked or in_folder


def is_part_of_tests(file: CodeArtifact) -> bool:
    """Tell whether all of a frozen file belongs to the tests, and not one part."""
    return _name(file) not in _IN_PART or is_test_material(file.file_path)


def frozen_files(files: Sequence[CodeArtifact]) -> list[CodeArtifact]:
    """Choose what is frozen of a draft: its tests, and all that configures them.

    Tests for a runner that is not there, and its configuration, are not: they prove nothing, and have to go.
    """
    nodes, patterns = node_tests(files), _patterns(files)
    return [
        file
        for file in files
        if (path := file.file_path) in nodes.files
        or (is_test_material(path) and path not in nodes.empty and not _is_another_runners(path))
        or _settings_of_tests(file)
        or _is_named_like_tests(path, patterns)
    ]


def _is_collected(file: CodeArtifact, configured: Iterable[CodeArtifact]) -> bool:
    """Tell whether a runner would take a file for a test, by its usual names or those that a project has configured."""
    named = is_pytest_file(file.file_path) or _is_named_like_tests(file.file_path, _patterns(configured))
    return named or file.file_path in node_tests([file]).files


def _is_named_like_tests(path: str, patterns: Iterable[str]) -> bool:
    texts = (path, PurePosixPath(path).name)
    return any(fnmatchcase(text, pattern) for pattern in patterns for text in texts)


def is_exchange(file: CodeArtifact, standing: Iterable[CodeArtifact]) -> bool:
    """Tell whether an answer's file would take the place of one that stands, or stand in its way."""
    path = file.file_path.casefold()
    return any(
        (file.file_path, file.content) != (kept.file_path, kept.content)
        if (place := kept.file_path.casefold()) == path
        else place.startswith(f"{path}/") or path.startswith(f"{place}/")
        for kept in standing
    )


def is_change_of_tests(file: CodeArtifact, frozen: Sequence[CodeArtifact], imported: Imported) -> bool:
    """Tell whether an answer's file would change frozen tests, how they run, or what they import.

    So do new configuration of tests, a file where a frozen one's folder must be, or below one, and a new test file: it
    is loaded beside the others, and may mend for them what the code does wrong.
    """
    if not is_part_of_tests(file):
        return _is_change_of_settings(file, frozen)
    if any(kept.file_path == file.file_path for kept in frozen):
        return is_exchange(file, frozen)
    path = file.file_path
    own = is_runners_own(path) or _is_collected(file, frozen)
    return own or is_exchange(file, frozen) or imported.hidden_by(path)


def is_removal_of_tests(path: str, frozen: Sequence[CodeArtifact]) -> bool:
    """Tell whether a deletion would take a frozen file away, or the configuration of tests in it."""
    return path.casefold() in {kept.file_path.casefold() for kept in frozen}


def is_runners_own(path: str) -> bool:
    """Tell whether a file does nothing but configure how tests, Python or Node run, or takes the place of packages."""
    name = PurePosixPath(path).name.casefold()
    return name in _PYTESTS_OWN or is_interpreters_own(path)


def is_interpreters_own(path: str) -> bool:
    """Tell whether a file does nothing but change what Python or Node load; no dispute is about that."""
    *folders, name = PurePosixPath(path.casefold()).parts
    return name in _INTERPRETERS_OWN or name.endswith(".pth") or "node_modules" in folders


class Imported:
    """What tests import: modules of their own, and, where the rest of the project is known, those from outside of it."""

    def __init__(self, tests: Sequence[CodeArtifact], project: Sequence[CodeArtifact] = ()) -> None:
        """Take the tests that stand, and the best draft: what it has is no news."""
        self._tests = [PurePosixPath(file.file_path) for file in tests]
        self._there = {file.file_path for file in project}
        self._roots = import_path(file.file_path for file in [*tests, *project])
        own = {name for file in tests if file.content.strip() for name in _names(file.file_path, self._roots)}
        code = [file.file_path for file in project if not is_test_material(file.file_path)]
        known = {part for place in code for name in _names(place, self._roots) for part in name}
        self._kept: set[_Name] = set()
        for wanted in Modules(tests).imports:
            starts = set(_asked_for(wanted))
            if not own.isdisjoint(starts) or (project and not any(start[0] in known for start in starts)):
                self._kept |= starts

    def hidden_by(self, path: str) -> bool:
        """Tell whether a new file would be imported by the tests in the place of what they import now."""
        if path in self._there:
            return False
        if any(_is_in_front_for_node(PurePosixPath(path), kept) for kept in self._tests):
            return True
        beside = any(path == f"{parent}/__init__.py" for kept in self._tests for parent in kept.parents)
        return not beside and not self._kept.isdisjoint(_names(path, self._roots))


def _asked_for(wanted: Import) -> Iterator[_Name]:
    """Give the names of all modules that an import may load."""
    folders = PurePosixPath(wanted.file).parts[:-1]
    above = folders[: max(0, len(folders) - wanted.level + 1)] if wanted.level else ()
    parts = (*above, *filter(None, wanted.module.split(".")))
    yield from (parts[:depth] for depth in range(1, len(parts) + 1))
    yield from ((*parts, name) for name in wanted.names)


def _is_in_front_for_node(path: PurePosixPath, kept: PurePosixPath) -> bool:
    """Tell whether `require` finds a file before another one whose ending is left out."""
    if not (is_javascript(str(kept)) or kept.suffix == ".json"):
        return False
    before_json = (
        path.suffix == ".js" and kept.suffix == ".json" and path.with_suffix("") == kept.with_suffix("")
    )
    folder = kept.stem == "index" and path in {
        kept.parent.with_name(f"{kept.parent.name}{s}") for s in (".js", ".json")
    }
    return before_json or path == kept.with_suffix("") or (bool(kept.parent.name) and folder)


def _names(path: str, roots: Sequence[str]) -> Iterator[_Name]:
    """Give the names under which Python imports a file: none if it is no module."""
    file = PurePosixPath(path)
    if file.suffix != ".py":
        return
    parts = file.parts[:-1] if file.stem == "__init__" else (*file.parts[:-1], file.stem)
    if parts:
        yield parts
    for root in roots:
        above = PurePosixPath(root).parts
        if above and len(parts) > len(above) and parts[: len(above)] == above:
            yield parts[len(above) :]


def _is_another_runners(path: str) -> bool:
    return PurePosixPath(path).name.casefold().startswith(_OTHER_RUNNERS)


def _is_change_of_settings(file: CodeArtifact, frozen: Sequence[CodeArtifact]) -> bool:
    place = file.file_path.casefold()
    before = next((kept for kept in frozen if kept.file_path.casefold() == place), None)
    standing = _settings_of_tests(before) if before else {}
    if _name(file) == "package.json" and not standing:
        return False  # Node's runner does not read it: whoever says first how it is started changes nothing
    respelled = before is not None and bool(standing) and before.file_path != file.file_path
    return respelled or _settings_of_tests(file) != standing


def _settings_of_tests(file: CodeArtifact) -> dict[str, object]:
    """Read the part of a project's configuration that tells how its tests run; empty if there is none."""
    match _name(file):
        case "pyproject.toml":
            tool = (toml_tree(file.content) or {}).get("tool")
            return {"pytest": tool["pytest"]} if isinstance(tool, dict) and "pytest" in tool else {}
        case "setup.cfg" | "tox.ini":
            found = [section.strip() for section in _SECTION.findall(file.content)]
            return {"pytest": found} if found else {}
        case "package.json":
            return _scripts(file.content)
    return {}


def _scripts(text: str) -> dict[str, object]:
    try:
        package = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    scripts = package.get("scripts") if isinstance(package, dict) else None
    named = scripts.items() if isinstance(scripts, dict) else ()
    return {name: value for name, value in named if "test" in name and _NODES_RUNNER.search(str(value))}


def _patterns(files: Iterable[CodeArtifact]) -> list[str]:
    """Give the patterns of names by which a project's own configuration finds its tests."""
    configured = [file for file in files if _name(file) in _PYTESTS_OWN | _IN_PART]
    lines = (line for file in configured for line in _PYTHON_FILES.findall(file.content))
    return [pattern for line in lines for pattern in re.findall(r"[^\s\[\]\"',]+", line)]


def _name(file: CodeArtifact) -> str:
    return PurePosixPath(file.file_path).name.casefold()
