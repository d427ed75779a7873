"""Tells what a machine has that a sandbox is to be made of; run by its own Python, as a program."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from hashlib import sha256
from importlib.metadata import distributions
from typing import Any

_ASK_SECONDS = 30


def facts() -> dict[str, Any]:
    """Gather them: the Python, its packages with their pytest plugins, Node, and the machine."""
    sites = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    installed = list(distributions(path=sites))[::-1]  # of two of one name the first counts: it is imported
    return {
        "version": platform.python_version(),
        "home": os.path.dirname(os.path.realpath(sys._base_executable)),  # type: ignore[attr-defined]  # noqa: SLF001 it has no other name
        "machine": platform.machine(),
        "libc": platform.libc_ver(),
        "sites": sites,
        "packages": {found.metadata["Name"]: found.version for found in installed},
        "requires": {found.metadata["Name"]: found.requires or [] for found in installed},
        "plugins": {
            found.metadata["Name"]: [point.name for point in found.entry_points.select(group="pytest11")]
            for found in installed
            if found.entry_points.select(group="pytest11")
        },
        "node": _node(),
        "stamp": stamp(sites),
    }


def stamp(sites: list[str]) -> str:
    """Sum up what decides whether these facts still hold: names of packages have their versions in them."""
    names = [sorted(os.listdir(site)) if os.path.isdir(site) else [] for site in sites]
    what = [sys.version, platform.machine(), shutil.which("node"), names]
    return sha256(json.dumps(what).encode()).hexdigest()


def _node() -> dict[str, Any] | None:
    program = shutil.which("node")
    if program is None:
        return None
    ask = (
        "JSON.stringify({version: process.versions.node, modules: require('node:module').builtinModules, "
        "flags: [...process.allowedNodeEnvironmentFlags]})"
    )
    try:
        told = subprocess.run(  # noqa: S603 the machine's own program
            [program, "-p", ask],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_SECONDS,
            check=True,
        )
        return {"program": program, **json.loads(told.stdout)}
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


if __name__ == "__main__":
    print(json.dumps(facts()))  # noqa: T201 a program that answers
