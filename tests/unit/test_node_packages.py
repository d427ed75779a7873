"""Packages of npm: what a draft needs is found by reading, and only what its plan names may be installed."""

from __future__ import annotations

import json

import pytest

from ptc_worker.filetypes import artifact
from ptc_worker.node.packages import NodeNeeds, node_needs

BUILTIN = {"fs", "assert", "path"}


def needs(
    source: str,
    dependencies: dict[str, str],
    plan: list[str],
    allowed: set[str] | None = None,
    name: str = "a.mjs",
) -> NodeNeeds:
    """What a draft of one script and a package file needs."""
    package = json.dumps({"name": "own", "dependencies": dependencies})
    return node_needs(plan, [artifact(name, source), artifact("package.json", package)], allowed, BUILTIN)


@pytest.mark.parametrize(
    "source",
    [
        "import fs from 'fs'; import p from 'node:path'; import './x.mjs'; import '#inner'; import 'own/part';",
        "// import 'left-pad'\nconst text = \"require('left-pad')\";",
        "try { await import('left-pad') } catch {}",
        "const name = 'left-pad'; await import(name);",
        "import x from '../left-pad'; export * from '/left-pad';",
    ],
)
def test_what_needs_no_package_asks_for_none(source: str) -> None:
    """Node's own modules, the project's, comments, texts and what may be missing."""
    assert needs(source, {}, []) == NodeNeeds((), ())


@pytest.mark.parametrize(
    "source",
    [
        "import x from 'left-pad';",
        "import 'left-pad/lib/x.js';",
        "export { x } from 'left-pad';",
        "const x = require('left-pad');",
        "function f() { return import('left-pad'); }",
    ],
)
def test_what_is_imported_and_not_declared_is_told(source: str) -> None:
    """However it is imported, and with its file."""
    assert needs(source, {}, ["left-pad"]).missing == (
        "a.mjs imports the package 'left-pad', which package.json does not name",
    )


def test_each_part_of_a_project_may_name_packages() -> None:
    """A `package.json` in a folder counts as well; one that only tests read does not."""
    files = [
        artifact("web/a.mjs", "import 'express'; import 'own/b.mjs';"),
        artifact("web/package.json", '{"name": "own", "dependencies": {"express": "4"}}'),
        artifact("tests/fixtures/package.json", '{"name": [], "dependencies": {"express": "3"}}'),
    ]

    assert node_needs(["express"], files, None, BUILTIN) == NodeNeeds((("express", "4"),), ())


def test_types_need_no_package() -> None:
    """They are gone when the code is run."""
    assert needs("import type { X } from 'left-pad';", {}, [], name="a.ts") == NodeNeeds((), ())


@pytest.mark.parametrize("plan", ["left-pad", "left-pad@1", "left-pad ^1.2", "Left-Pad>=1"])
def test_what_the_plan_names_is_installed(plan: str) -> None:
    """In the version that package.json asks for, however the plan writes it."""
    assert needs("import 'left-pad';", {"left-pad": "^1.3.0"}, [plan]) == NodeNeeds(
        (("left-pad", "^1.3.0"),), ()
    )


def test_what_is_allowed_counts_where_it_is_set() -> None:
    """It bounds what plans may name, and lets no draft have what its plan does not name."""
    dependencies = {"@scope/a": "1.x", "b": "2"}

    assert needs(
        "import '@scope/a/x'; import 'b';", dependencies, ["@scope/a", "b"], {"@scope/a"}
    ) == NodeNeeds(
        (("@scope/a", "1.x"),), ("a.mjs imports the package 'b', which may not be installed here",)
    )


@pytest.mark.parametrize(
    "version",
    [
        "git+https://host/x.git",
        "file:../x",
        "npm:other@1",
        "https://host/x.tgz",
        "owner/repository",
        "link:.",
        "1;x",
    ],
)
def test_only_versions_are_installed(version: str) -> None:
    """Addresses, folders and other packages under a name are refused, and told where they are imported."""
    found = needs("import 'left-pad';", {"left-pad": version}, ["left-pad"])

    assert found.packages == ()
    assert "which is no range of versions" in found.missing[0]


@pytest.mark.parametrize("facts", ["[]", '{"dependencies": ["a"]}', '{"dependencies": {"a": 1}}', "{", '"x"'])
def test_odd_package_files_ask_for_nothing(facts: str) -> None:
    """Whatever stands in one, nothing is raised."""
    found = node_needs(["a"], [artifact("package.json", facts)], None, BUILTIN)

    assert found.missing == ()
