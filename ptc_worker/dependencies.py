"""Which packages a project needs, and which of them may be installed. Never a guess from an import's name."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import deque
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ptc_contracts.progress import Outcome, Verdict
from ptc_worker.gate import syntax_tree

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from ptc_contracts.result import CodeArtifact

_NOT_PACKAGES = frozenset({"python", "python3", "pytest"})
"""Names that plans list and that are there already."""

_AUTHORS_TOOLS = frozenset(
    {"black", "build", "coverage", "flake8", "isort", "mypy", "pip", "pre-commit", "pylint", "pytest-cov"}
    | {"pytest-xdist", "ruff", "setuptools", "tox", "twine", "wheel"}
)
"""Packages that drafts list in requirements files for whoever works on them: no test needs them."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a draft needs beyond the standard library and itself."""

    requirements: tuple[str, ...]
    """Requirement specifiers to install, sorted."""
    drafted: bool
    """Whether any of them comes from the draft alone."""
    unknown: tuple[str, ...]
    """Imported modules that nothing provides, as sentences."""
    warnings: tuple[str, ...]
    """Dependencies of the plan that cannot be installed as they stand."""


def needs_of(
    plan_dependencies: Sequence[str], files: Sequence[CodeArtifact], allowed: Collection[str] | None
) -> Needs:
    """Find out what has to be installed for a draft.

    What the plan names is trusted unless `allowed` restricts it. What only the draft names (its imports and
    its `requirements.txt`) is installed if the curated table knows it, and is reported otherwise: models
    invent package names, and others register what models invent.
    """
    trusted, warnings = _trusted(plan_dependencies, allowed)
    table = import_table()
    known = {canonicalize_name(name) for name in table.values()}
    chosen = dict(trusted)
    unknown = []
    for requirement, where in _declared(files):
        name = canonicalize_name(requirement.name)
        if name in chosen or name in _AUTHORS_TOOLS or _is_there(requirement):
            continue
        if name in known and _may(name, allowed):
            chosen[name] = str(requirement)
        else:
            unknown.append(f"{where} names the package {requirement.name!r}, which is not available here")
    for module, where in _imports(files, table).items():
        distribution = canonicalize_name(table.get(module, module))
        if distribution in chosen or _provided_by(module, trusted):
            continue
        if module not in table and _resembles(module, trusted):
            continue
        if module in table and _may(distribution, allowed):
            chosen[distribution] = distribution
        else:
            unknown.append(
                f"{where} imports {module!r}, which is neither in the project, nor in the standard library, "
                "nor in a package that the plan names"
            )
    return Needs(
        requirements=tuple(sorted(chosen.values())),
        drafted=len(chosen) > len(trusted),
        unknown=tuple(dict.fromkeys(unknown)),
        warnings=tuple(warnings),
    )


def missing_verdict(sentences: Sequence[str]) -> Verdict:
    """Tell the model, in sentences, what cannot be had."""
    told = [f"- {sentence}" for sentence in sentences]
    return Verdict(
        outcome=Outcome.MISSING_DEPENDENCY,
        feedback="\n".join(["The tests were not run, for something is missing:", *told]),
    )


@cache
def import_table() -> dict[str, str]:
    """Read the curated table: module to distribution."""
    with Path(__file__).with_name("imports.toml").open("rb") as file:
        table: dict[str, str] = tomllib.load(file)["modules"]
    return table


def _trusted(
    dependencies: Sequence[str], allowed: Collection[str] | None
) -> tuple[dict[str, str], list[str]]:
    trusted: dict[str, str] = {}
    warnings = []
    for text in dependencies:
        try:
            requirement = Requirement(text.strip())
        except InvalidRequirement:
            warnings.append(f"dependency {text!r} is not a package specifier and was not installed")
            continue
        name = canonicalize_name(requirement.name)
        if requirement.url:
            warnings.append(f"dependency {text!r} was not installed: only packages of the index are")
        elif not _may(name, allowed):
            warnings.append(f"dependency {text!r} was not installed: PTC_ALLOWED_DEPENDENCIES leaves it out")
        elif not _is_there(requirement):
            trusted[name] = str(requirement)
    return trusted, warnings


def _is_there(requirement: Requirement) -> bool:
    name = requirement.name.lower()
    return name in _NOT_PACKAGES or name in sys.stdlib_module_names


def _may(name: str, allowed: Collection[str] | None) -> bool:
    return allowed is None or name in {canonicalize_name(entry) for entry in allowed}


def _provided_by(module: str, trusted: Collection[str]) -> bool:
    """Tell whether a trusted distribution may well bring a module of another name (`python-foo`, `foo-bar`)."""
    wanted = canonicalize_name(module)
    parts = {part for name in trusted for part in (name, *name.split("-"), name.replace("-", ""))}
    return wanted in parts or wanted.replace("-", "") in parts


def _resembles(module: str, trusted: Collection[str]) -> bool:
    """Tell whether a trusted distribution's name holds the module's (`pyzmq`, `grpcio`): its tests will tell."""
    wanted = canonicalize_name(module).replace("-", "")
    return len(wanted) > 2 and any(wanted in name.replace("-", "") for name in trusted)  # noqa: PLR2004


def _declared(files: Sequence[CodeArtifact]) -> Iterator[tuple[Requirement, str]]:
    """Read what the draft's own requirements files ask for; options and addresses in them are left out."""
    for file in files:
        if not re.fullmatch(r"requirements[\w-]*\.txt", PurePosixPath(file.file_path).name):
            continue
        for line in file.content.splitlines():
            text = line.partition("#")[0].strip()
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            if not requirement.url:
                yield requirement, file.file_path


def _imports(files: Sequence[CodeArtifact], table: Collection[str]) -> dict[str, str]:
    """Find every top-level module the draft imports from outside, with the place of its first import."""
    own = _own_modules(files, table)
    found: dict[str, str] = {}
    for file in files:
        tree = syntax_tree(file.content) if file.file_path.endswith(".py") else None
        for node, module in _imported(tree) if tree else ():
            top = module.partition(".")[0]
            if top not in own and top not in sys.stdlib_module_names and top not in _TEST_MODULES:
                found.setdefault(top, f"{file.file_path}:{node.lineno}")
    return found


_TEST_MODULES = frozenset({"pytest", "_pytest", "pytest_asyncio", "conftest"})


def _imported(tree: ast.Module) -> Iterator[tuple[ast.stmt, str]]:
    """Walk the imports that must succeed: those guarded by `try` or `TYPE_CHECKING` may fail."""
    queue: deque[ast.AST] = deque([tree])
    while queue:
        node = queue.popleft()
        match node:
            case ast.Import():
                yield from ((node, alias.name) for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                yield node, module
            case ast.Try(handlers=[_, *_]):
                queue += [*node.orelse, *node.finalbody]
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                queue += node.orelse
            case _:
                queue += ast.iter_child_nodes(node)


def _own_modules(files: Sequence[CodeArtifact], table: Collection[str]) -> set[str]:
    """Name what the project itself can import: every file and folder of code, for tests may extend the path.

    A name that the table knows must stand at the root or in `src`: `app/redis.py` is not what `import redis` finds.
    """
    paths = [
        PurePosixPath(f.file_path).with_suffix("") for f in files if f.file_path.endswith((".py", ".pyi"))
    ]
    tops = {path.parts[path.parts[0] == "src" :][0] for path in paths if path.parts != ("src",)}
    return tops | {part for path in paths for part in path.parts if part not in table}
