"""Which packages a project needs, and which of them may be installed. Never a guess from an import's name."""

from __future__ import annotations

import re
import sys
import tomllib
from configparser import Error as ConfigParserError
from configparser import RawConfigParser
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ptc_contracts.verdicts import GateIssue, GateStage, Outcome, Verdict
from ptc_worker.failures import normalised, signature_of
from ptc_worker.modules import Import, Modules
from ptc_worker.syntax import toml_tree

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from ptc_contracts.result import CodeArtifact

_NOT_PACKAGES = frozenset({"python", "python3", "pytest", "pytest-asyncio"})
"""Names that plans and drafts list and that are there already."""

_AUTHORS_TOOLS = re.compile(
    r"autopep8|bandit|black|build|coverage|cython|hatch(ling)?|ipykernel|ipython|isort|jupyter(lab)?|locust|mypy|notebook"
    r"|nox|pip(-tools|-audit)?|poetry(-core)?|pre-commit|pydocstyle|pylint|pyright|ruff|safety|setuptools(-scm)?|tox|twine"
    r"|wheel|yapf|(flake8|mkdocs|sphinx|types)(-.+)?|.+-stubs"
    r"|pytest-(cov|html|instafail|randomly|repeat|rerunfailures|sugar|timeout|xdist)"
)
"""Packages that drafts list in requirements files for whoever works on them: no test needs them."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a draft needs beyond the standard library and itself."""

    requirements: tuple[str, ...]
    """Requirement specifiers to install, sorted."""
    drafted: bool
    """Whether any of them comes from the draft alone."""
    issues: tuple[GateIssue, ...]
    """Packages that are listed, and modules that are imported, and that nothing here provides."""
    warnings: tuple[str, ...]
    """Dependencies of the plan that cannot be installed as they stand."""

    @property
    def unknown(self) -> tuple[str, ...]:
        """What nothing provides, as sentences."""
        return tuple(str(issue) for issue in self.issues)


def needs_of(
    plan_dependencies: Sequence[str],
    files: Sequence[CodeArtifact],
    allowed: Collection[str] | None,
    modules: Modules | None = None,
) -> Needs:
    """Find out what has to be installed for a draft.

    What the plan names is trusted unless `allowed` restricts it. What only the draft names (its imports, its
    `requirements.txt`, `pyproject.toml` and `setup.cfg`) is installed if the curated table knows it, and is
    reported otherwise: models invent package names, and others register what models invent. Of several
    distributions that bring the same module one is installed. Whoever has read the files already gives their
    `modules`.
    """
    modules = modules or Modules(files)
    trusted, warnings = _trusted(plan_dependencies, allowed)
    table = import_table()
    curated = _curated_names()
    chosen = dict(trusted)
    unknown: dict[str, GateIssue] = {}
    for declared in _declared(files):
        requirement = declared.requirement
        named = canonicalize_name(requirement.name)
        name = curated.get(named, named)
        if chosen.keys() & {named, name, *_rivals(name)} or _is_tool(named) or _is_there(requirement):
            continue
        if named in curated and _may(name, allowed):
            chosen[name] = str(requirement) if name == named else name
        elif not declared.optional:
            unknown.setdefault(named, _unknown_package(declared))
    for module, wanted in _imports(files, modules, table):
        distribution = canonicalize_name(table.get(module, module))
        if chosen.keys() & {distribution, *_others_with(module)} or _provided_by(module, trusted):
            continue
        if module not in table and _resembles(module, trusted):
            continue
        if module in table and _may(distribution, allowed):
            chosen[distribution] = distribution
        elif not wanted.optional and not modules.mentions(module):
            unknown.setdefault(f"import {module}", _unknown_import(module, wanted))
    return Needs(
        requirements=tuple(sorted(chosen.values())),
        drafted=len(chosen) > len(trusted),
        issues=tuple(unknown.values()),
        warnings=tuple(warnings),
    )


def own_imports(
    plan_dependencies: Sequence[str], files: Sequence[CodeArtifact], modules: Modules
) -> Iterator[Import]:
    """Find the imports that must succeed and that nothing but the project's own files can serve."""
    trusted, _ = _trusted(plan_dependencies, None)
    own = _own_modules(files, import_table()) & modules.tops
    for wanted in modules.imports:
        top = wanted.module.partition(".")[0]
        if not wanted.optional and (wanted.level or (top in own and not _may_be_foreign(top, trusted))):
            yield wanted


def _may_be_foreign(top: str, trusted: Collection[str]) -> bool:
    """Tell whether a module may come from outside though the project has one of its name (`alembic/env.py`)."""
    return _is_always_there(top) or top in _listed_tops() or _provided_by(top, trusted)


@cache
def _listed_tops() -> frozenset[str]:
    return frozenset(module.partition(".")[0] for module in import_table())


def _unknown_package(declared: _Declared) -> GateIssue:
    told = f"names the package {declared.requirement.name!r}, which is not available here"
    return _unknown(declared.where, None, told)


def _unknown_import(module: str, wanted: Import) -> GateIssue:
    told = (
        f"imports {module!r}, which is neither in the project, nor in the standard library, nor in a package that "
        "the plan names"
    )
    return _unknown(wanted.file, wanted.line, told)


def _unknown(file: str, line: int | None, told: str) -> GateIssue:
    return GateIssue(file=file, line=line, code="unknown-package", message=told, stage=GateStage.INTEGRATION)


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


def _is_tool(name: str) -> bool:
    return _AUTHORS_TOOLS.fullmatch(name) is not None


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


def _imports(
    files: Sequence[CodeArtifact], modules: Modules, table: Collection[str]
) -> Iterator[tuple[str, Import]]:
    """Find what the draft imports from outside, each time it does.

    A module is named as the table has it; one that the table does not have by its top, or whole in a namespace.
    """
    own = _own_modules(files, table)
    namespaces = {key.partition(".")[0] for key in table if "." in key}
    for wanted in modules.imports:
        for module in _dotted_names(wanted):
            top = module.partition(".")[0]
            if top not in own and not _is_always_there(top):
                unlisted = module if top in namespaces else top
                yield _listed(module, table) or unlisted, wanted


def _dotted_names(wanted: Import) -> list[str]:
    """Name what an import may mean by its dotted names; a relative one means nothing from outside."""
    if wanted.level:
        return []
    return [f"{wanted.module}.{name}" for name in wanted.names] or [wanted.module]


def _listed(module: str, table: Collection[str]) -> str | None:
    """Find the entry of the table that a dotted name belongs to."""
    parents = accumulate(module.split("."), "{}.{}".format)
    return next((parent for parent in parents if parent in table), None)


def _is_always_there(top: str) -> bool:
    """Tell whether a module is of the standard library, or of what every environment runs tests with."""
    return top in sys.stdlib_module_names or top in _TEST_MODULES


_TEST_MODULES = frozenset({"pytest", "_pytest", "py", "iniconfig", "pytest_asyncio", "conftest", "__main__"})


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
