"""The programs in an environment that is a folder."""

from __future__ import annotations

from functools import cache
from importlib.metadata import distributions
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from ptc_worker.node.installed import find_node
from ptc_worker.sandbox.protocol import Tools

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SYSTEM_PATH = "/usr/bin:/bin"


@cache
def tools_in(folder: Path) -> Tools:
    """Find them, once; programs inside see the folder under the same path."""
    (site_packages,) = folder.glob("lib/python*/site-packages")
    node, modules = folder / "node" / "bin", folder / "node" / "node_modules"
    return Tools(
        python=str(folder / "bin" / "python"),
        path=":".join([str(folder / "bin"), *([str(node)] if node.exists() else []), SYSTEM_PATH]),
        plugins=plugins_among(plugins_in([str(site_packages)])),
        inside=str(site_packages / "ptc_inside"),
        node=str(node / "node") if node.exists() else "",
        node_options=find_node().options if node.exists() else (),
        node_modules=str(modules) if modules.exists() else "",
    )


def plugins_in(folders: Sequence[str]) -> dict[str, list[str]]:
    """Map the distributions in these folders to the pytest plugins that they bring, by the names of their entry points."""
    return {
        distribution.name: [point.name for point in distribution.entry_points.select(group="pytest11")]
        for distribution in distributions(path=[*folders])
    }


def plugins_among(brought: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Choose the pytest plugins of distributions named pytest-…; of those that are named otherwise only anyio's."""
    return tuple(
        point
        for distribution, points in brought.items()
        if (name := canonicalize_name(distribution)).startswith("pytest-") or name == "anyio"
        for point in points
    )
