"""Which packages of npm a draft needs, which of them may be installed, and how they come into an environment."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptc_worker.installer import InstallError, passed_on, run_installer
from ptc_worker.javascript import all_package_json, imported_modules

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from ptc_contracts.result import CodeArtifact
    from ptc_worker.halt import Halt
    from ptc_worker.node.installed import Node

_NAME = re.compile(r"(@[a-z0-9~-][a-z0-9._~-]*/)?[a-z0-9~-][a-z0-9._~-]*")
_RANGE = re.compile(r"[\w.*^~<>=| +-]{0,100}")
"""Versions and tags of a registry; no addresses, folders and aliases."""

_OPTIONS = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error")


_CPUS = {"x86_64": "x64", "aarch64": "arm64"}
"""What npm calls the machines whose names differ."""


@dataclass(frozen=True)
class NodeNeeds:
    """The packages that a draft needs from npm's registry."""

    packages: tuple[tuple[str, str], ...]
    """Names and version ranges to install, sorted."""
    missing: tuple[str, ...]
    """Packages that are imported and cannot be had, as sentences."""


def node_needs(
    plan_dependencies: Sequence[str],
    files: Sequence[CodeArtifact],
    allowed: Collection[str] | None,
    builtin: Collection[str],
) -> NodeNeeds:
    """Find out what has to be installed: what `package.json` and the plan name, and `allowed` too where that is set.

    There may be several of these; where they differ on a version, the one that is least deep counts.
    What only a draft names is not installed: models invent names of packages, and others register what models invent.
    """
    described = all_package_json(files)
    declared = {name: version for facts in described for name, version in _declared(facts)}
    own = [facts.get("name") for facts in described]
    trusted = {_name_of(name) for name in plan_dependencies}
    if allowed is not None:
        trusted &= set(allowed)
    wanted = {
        name: version for name, version in declared.items() if name in trusted and _is_plain(name, version)
    }
    missing = []
    for name, path in sorted(_imported(files).items()):
        if name in wanted or name in builtin or name in own:
            continue
        if name not in declared:
            missing.append(f"{path} imports the package {name!r}, which package.json does not name")
        elif name not in trusted:
            missing.append(f"{path} imports the package {name!r}, which may not be installed here")
        else:
            missing.append(
                f"package.json asks for {name!r} by {declared[name]!r}, which is no range of versions"
            )
    return NodeNeeds(tuple(sorted(wanted.items())), tuple(missing))


def _declared(facts: object) -> Iterator[tuple[str, str]]:
    for group in ("devDependencies", "dependencies"):
        named = facts.get(group) if hasattr(facts, "get") else None
        for name, version in named.items() if isinstance(named, dict) else ():
            yield name, version if isinstance(version, str) else ""


def _name_of(dependency: str) -> str:
    """Return the name in a plan's dependency: `express`, `express@4`, `@scope/name ^1`."""
    found = _NAME.match(dependency.strip().lower())
    return found[0] if found else ""


def _is_plain(name: str, version: str) -> bool:
    return bool(_NAME.fullmatch(name) and _RANGE.fullmatch(version))


def _imported(files: Sequence[CodeArtifact]) -> dict[str, str]:
    """Map each package that is imported to the first file that does."""
    found: dict[str, str] = {}
    for file in files:
        for module in imported_modules(file):
            name = "/".join(module.split("/")[: 2 if module.startswith("@") else 1])
            if _NAME.fullmatch(name):
                found.setdefault(name, file.file_path)
    return found


@dataclass(frozen=True)
class NodeAddition:
    """Node in an environment, with packages from npm's registry beside it."""

    node: Node
    """The Node of this machine."""
    packages: tuple[tuple[str, str], ...]
    """Names and version ranges."""

    @property
    def recipe(self) -> str:
        """What makes its files differ."""
        return json.dumps(["node", str(self.node.program), self.node.version, self.packages])

    def add(self, cache_dir: Path, folder: Path, deadline: float, halt: Halt) -> None:
        """Copy Node, and let npm install the packages; no script of theirs is run."""
        programs = folder / "node" / "bin"
        programs.mkdir(parents=True)
        shutil.copy(self.node.program, programs / "node")
        if self.packages:
            self.add_packages(cache_dir, folder, deadline, halt)

    def add_packages(
        self, cache_dir: Path, folder: Path, deadline: float, halt: Halt, machine: str = ""
    ) -> None:
        """Let npm install the packages without Node, where it must be for a machine of this kind."""
        if self.node.npm is None:
            raise InstallError(f"there is no npm beside {self.node.program} to install packages with")
        home = folder / "node"
        home.mkdir(parents=True, exist_ok=True)
        (home / "package.json").write_text(json.dumps({"private": True, "dependencies": dict(self.packages)}))
        run_installer(
            [
                *(str(self.node.program), str(self.node.npm), "install", *_OPTIONS),
                *(_platform(machine) if machine else ()),
                *("--prefix", str(home)),
            ],
            {
                "npm_config_cache": str(cache_dir / "npm"),
                "npm_config_git": "/bin/false",  # what others depend on comes from the registry, too
                **passed_on("npm_config_", "NPM_CONFIG_", "NODE_EXTRA_CA_CERTS"),
            },
            cache_dir,
            deadline,
            halt,
        )


def _platform(machine: str) -> tuple[str, ...]:
    """Tell npm for which machine it chooses among packages of programs."""
    return "--os=linux", f"--cpu={_CPUS.get(machine, machine)}"
