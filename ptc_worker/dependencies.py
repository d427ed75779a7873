"""Which packages a project needs, and which of them may be installed. Never a guess from an import's name."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import deque
from configparser import Error as ConfigParserError
from configparser import RawConfigParser
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ptc_contracts.verdicts import Outcome, Verdict
from ptc_worker.failures import normalised, signature_of
from ptc_worker.gate import syntax_tree, toml_tree

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

    What the plan names is trusted unless `allowed` restricts it. What only the draft names (its imports, its
    `requirements.txt`, `pyproject.toml` and `setup.cfg`) is installed if the curated table knows it, and is
    reported otherwise: models invent package names, and others register what models invent. Of several
    distributions that bring the same module one is installed.
    """
    trusted, warnings = _trusted(plan_dependencies, allowed)
    table = import_table()
    curated = _curated_names()
    chosen = dict(trusted)
    unknown = []
    for declared in _declared(files):
        requirement = declared.requirement
        named = canonicalize_name(requirement.name)
        name = curated.get(named, named)
        if chosen.keys() & {named, name, *_rivals(name)} or named in _AUTHORS_TOOLS or _is_there(requirement):
            continue
        if named in curated and _may(name, allowed):
            chosen[name] = str(requirement) if name == named else name
        elif not declared.optional:
            unknown.append(
                f"{declared.where} names the package {requirement.name!r}, which is not available here"
            )
    for module, where in _imports(files, table).items():
        distribution = canonicalize_name(table.get(module, module))
        if chosen.keys() & {distribution, *_others_with(module)} or _provided_by(module, trusted):
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
        signature=signature_of(Outcome.MISSING_DEPENDENCY, map(normalised, sentences)),
    )


def import_table() -> dict[str, str]:
    """Read the curated table: module to distribution; of a namespace, its parts (`google.protobuf`)."""
    table: dict[str, str] = _tables()["modules"]
    return table


@cache
def _tables() -> dict[str, Any]:
    with Path(__file__).with_name("imports.toml").open("rb") as file:
        return tomllib.load(file)


@cache
def _curated_names() -> dict[str, str]:
    """Map each name that stands in the table, and each other one for the same modules, to the one that is installed."""
    table = import_table()
    others = {
        name: table[module]
        for module, names in _tables()["others"].items()
        for name in names
        if module in table
    }
    return {
        canonicalize_name(name): canonicalize_name(distribution)
        for name, distribution in (others | {name: name for name in table.values()}).items()
    }


def _others_with(module: str) -> frozenset[str]:
    """Name the distributions beside the table's that bring a module."""
    return frozenset(canonicalize_name(name) for name in _tables()["others"].get(module, ()))


@cache
def _rivals(distribution: str) -> frozenset[str]:
    """Name the distributions that bring the same modules as one of the table's."""
    return frozenset(name for name, installed in _curated_names().items() if installed == distribution)


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
    """Tell whether a trusted distribution may well bring a module of another name (`python-foo`, `foo-bar`).

    A part of a namespace that the table does not have may come with any package of that namespace.
    """
    wanted = canonicalize_name(module if module in import_table() else module.partition(".")[0])
    parts = {part for name in trusted for part in (name, *name.split("-"), name.replace("-", ""))}
    return wanted in parts or wanted.replace("-", "") in parts


def _resembles(module: str, trusted: Collection[str]) -> bool:
    """Tell whether a trusted distribution's name holds the module's (`pyzmq`, `grpcio`): its tests will tell."""
    wanted = canonicalize_name(module.partition(".")[0]).replace("-", "")
    return len(wanted) > 2 and any(wanted in name.replace("-", "") for name in trusted)  # noqa: PLR2004


@dataclass(frozen=True)
class _Declared:
    """What a file of the draft says it needs."""

    requirement: Requirement
    where: str
    optional: bool = False
    """Whether it may be for other purposes than its tests: documentation, releases."""


def _declared(files: Sequence[CodeArtifact]) -> Iterator[_Declared]:
    """Read what the draft's own files ask for; options and addresses, and what is for other Pythons, are left out."""
    for file in files:
        for text, optional in _lines(file):
            try:
                requirement = Requirement(text.partition("#")[0].strip())
            except InvalidRequirement:
                continue
            if not requirement.url and (requirement.marker is None or requirement.marker.evaluate()):
                yield _Declared(requirement, file.file_path, optional)


def _lines(file: CodeArtifact) -> Iterator[tuple[str, bool]]:
    """Give the requirements that a file lists, each with whether it is optional."""
    match PurePosixPath(file.file_path).name:
        case name if re.fullmatch(r"requirements[\w-]*\.txt", name):
            yield from ((line, False) for line in file.content.splitlines())
        case "pyproject.toml":
            tree = toml_tree(file.content) or {}
            yield from _project_lines(tree)
            yield from _poetry_lines(tree)
        case "setup.cfg":
            yield from _setup_lines(file.content)


def _project_lines(tree: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    itself = re.compile(rf"{re.escape(str(_at(tree, 'project').get('name')))}\s*\[", re.IGNORECASE)
    yield from ((text, False) for text in _texts(_at(tree, "project").get("dependencies")))
    for group in (
        *_at(tree, "project", "optional-dependencies").values(),
        *_at(tree, "dependency-groups").values(),
    ):
        yield from ((text, True) for text in _texts(group) if not itself.match(text))


def _poetry_lines(tree: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Give Poetry's names; its versions (`^1.2`) are its own."""
    poetry = _at(tree, "tool", "poetry")
    yield from ((name, False) for name in _at(poetry, "dependencies"))
    yield from ((name, True) for name in _at(poetry, "dev-dependencies"))
    for group in _at(poetry, "group"):
        yield from ((name, True) for name in _at(poetry, "group", group, "dependencies"))


def _setup_lines(content: str) -> Iterator[tuple[str, bool]]:
    parser = RawConfigParser()
    try:
        parser.read_string(content)
    except ConfigParserError:
        return
    yield from ((line, False) for line in parser.get("options", "install_requires", fallback="").splitlines())
    if parser.has_section("options.extras_require"):
        for _, lines in parser.items("options.extras_require"):
            yield from ((line, True) for line in lines.splitlines())


def _at(tree: dict[str, Any], *path: str) -> dict[str, Any]:
    """Go down a tree that a model wrote; where there is no table, find an empty one."""
    for name in path:
        below = tree.get(name)
        tree = below if isinstance(below, dict) else {}
    return tree


def _texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _imports(files: Sequence[CodeArtifact], table: Collection[str]) -> dict[str, str]:
    """Find what the draft imports from outside, with the place of its first import.

    A module is named as the table has it; one that the table does not have by its top, or whole in a namespace.
    """
    own = _own_modules(files, table)
    namespaces = {key.partition(".")[0] for key in table if "." in key}
    found: dict[str, str] = {}
    for file in files:
        tree = syntax_tree(file.content) if file.file_path.endswith(".py") else None
        for node, module in _imported(tree) if tree else ():
            top = module.partition(".")[0]
            if top not in own and top not in sys.stdlib_module_names and top not in _TEST_MODULES:
                unlisted = module if top in namespaces else top
                found.setdefault(_listed(module, table) or unlisted, f"{file.file_path}:{node.lineno}")
    return found


def _listed(module: str, table: Collection[str]) -> str | None:
    """Find the entry of the table that a dotted name belongs to."""
    parents = accumulate(module.split("."), "{}.{}".format)
    return next((parent for parent in parents if parent in table), None)


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
                yield from ((node, f"{module}.{alias.name}") for alias in node.names)
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
    listed = {module.partition(".")[0] for module in table}
    return tops | {part for path in paths for part in path.parts if part not in listed}
