"""Sound drafts of many layouts pass the gate and the linter; each broken in one place is refused for that place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import make_plan

from ptc_contracts.verdicts import GateIssue, Severity
from ptc_worker.filetypes import artifact
from ptc_worker.gate import examine
from ptc_worker.linter import lint
from ptc_worker.parsing import parse_answer

if TYPE_CHECKING:
    from ptc_contracts import CodeArtifact, PTCExecutionPlan

DRAFTS = {path.stem: path for path in sorted(Path(__file__).with_name("drafts").glob("*.txt"))}

Draft = tuple["PTCExecutionPlan", dict[str, str]]


def _draft(name: str) -> Draft:
    """Read a draft as a model would have written it, and from its first line the plan's fields."""
    fields, _, answer = DRAFTS[name].read_text().partition("\n")
    given: dict[str, Any] = json.loads(fields)
    files = parse_answer(answer).files
    return make_plan(**given), {file.file_path: file.content for file in files}


def _issues(draft: Draft, severity: Severity) -> list[GateIssue]:
    plan, contents = draft
    files: list[CodeArtifact] = [artifact(path, content) for path, content in contents.items()]
    return [i for i in [*examine(plan, files, None), *lint(files)] if i.severity is severity]


@pytest.mark.parametrize("name", DRAFTS)
def test_a_sound_draft_is_let_in(name: str) -> None:
    """A false alarm costs a whole iteration, and comes again in the next one."""
    issues = _issues(_draft(name), Severity.ERROR)

    assert [str(issue) for issue in issues] == []


BROKEN = [
    ("flask_app", "app/routes.py", "from .models import User", "from .model import User", "app/routes.py:14 unresolved-import"),
    ("flask_app", "app/__init__.py", "import db", "import database", "app/__init__.py:3 unresolved-import, app/__init__.py:10 F821, app/__init__.py:15 F821"),
    ("flask_app", "app/models.py", "from app.extensions", "from app.extension", "app/models.py:5 unresolved-import"),
    ("flask_app", "app/routes.py", None, None, "app/routes.py missing-file, app/__init__.py:4 unresolved-import"),
    ("flask_app", "tests/conftest.py", "create_app({", "create_app(CONFIG, {", "tests/conftest.py:7 F821"),
    ("flask_app", "requirements.txt", "pytest\n", "pytest\nflask-magic-auth\n", "requirements.txt unknown-package"),
    ("flask_app", "docker-compose.yml", "build: .", "build: a: b", "docker-compose.yml:4 yaml"),
    ("flask_app", "README.md", None, None, "README.md missing-file"),
    ("src_layout", "src/ledger/core.py", "class Entry", "class Entries", "src/ledger/__init__.py:3 unresolved-import, tests/test_core.py:2 unresolved-import"),
    ("src_layout", "src/ledger/cli.py", "def main", "def run", "src/ledger/__main__.py:3 unresolved-import"),
    ("src_layout", "src/ledger/errors.py", None, None, "src/ledger/__init__.py:4 unresolved-import"),
    ("src_layout", "pyproject.toml", "[project.scripts]", "[project.scripts", "pyproject.toml:13 toml"),
    ("relative_imports", "shop/cart/__init__.py", "from .. import", "from . import", "shop/cart/__init__.py:1 unresolved-import"),
    ("relative_imports", "shop/money/rounding.py", "to_cents", "cents", "shop/cart/pricing.py:3 unresolved-import"),
    ("relative_imports", "tests/test_cart.py", "import shop.cart.items", "import shop.items", "tests/test_cart.py:1 unresolved-import"),
    ("namespace_package", "acme/common/ids.py", "    global last\n", "", "tests/test_invoice.py:2 unresolved-import"),
    ("namespace_package", "acme/billing/invoice.py", "from acme.common import", "from acme.commons import", "acme/billing/invoice.py:5 unresolved-import"),
    ("conditional_imports", "fastjson/__init__.py", "import platform\n", "import platform\nimport speedy_json\n", "fastjson/__init__.py:4 unknown-package"),
    ("conditional_imports", "fastjson/__init__.py", "import platform\n", "", "fastjson/__init__.py:23 F821"),
    ("pytest_plugin", "tests/test_plugin.py", "from builders import build", "from builders import construct as build", "tests/test_plugin.py:1 unresolved-import"),
    ("fixtures_folder", "api/main.py", "import items, users", "import items, users, orders", "api/main.py:5 unresolved-import"),
    ("fixtures_folder", "api/deps.py", "from functools import lru_cache\n", "", "api/deps.py:5 F821"),
    ("dataclasses_and_types", "geometry/shapes.py", "from dataclasses import dataclass, field", "from dataclasses import dataclass", "geometry/shapes.py:34 F821"),
    ("dataclasses_and_types", "tests/test_shapes.py", "WIDTH, Area", "DEPTH, WIDTH, Area", "tests/test_shapes.py:4 unresolved-import"),
    ("scripts", "scripts/common.py", "def load", "def read", "scripts/report.py:6 unresolved-import, tests/test_report.py:5 unresolved-import, tests/test_report.py:6 unresolved-import"),
    ("django_site", "polls/tests/test_views.py", "from ..views", "from .views", "polls/tests/test_views.py:1 unresolved-import"),
    ("django_site", "polls/views.py", "Question\n", "Questions\n", "polls/views.py:4 unresolved-import, polls/views.py:8 F821"),
    ("alembic_and_celery", "worker/db.py", None, None, "alembic/env.py:4 unresolved-import"),
    ("stub_files", "textkit/__init__.py", "from .words import", "from .word import", "textkit/__init__.py:1 unresolved-import"),
    ("single_module", "durations.py", "import re\n", "", "durations.py:4 F821"),
    ("single_module", "durations.py", "if not (match := _PATTERN.fullmatch(text)):", "if (not text, text):", "durations.py:13 F634, durations.py:15 F821"),
    ("hardware_mocks", "thermostat/sensor.py", "import Adafruit_DHT", "import Adafruit_DTH", "thermostat/sensor.py:1 unknown-package, thermostat/sensor.py:8 F821"),
    ("custom_test_names", "pytest.ini", None, None, "tests/ no-tests"),
    ("fullstack", "web/src/App.test.tsx", None, None, "tests/ no-tests"),
    ("fullstack", "web/package.json", '"name": "web",', '"name": "web"', "web/package.json:1 json"),
]  # fmt: skip
"""A draft, a file of it, what stands there, what stands there instead (None: the file is left out), and the errors."""


@pytest.mark.parametrize(("name", "path", "old", "new", "errors"), BROKEN)
def test_a_draft_that_is_broken_in_one_place_is_refused_for_it(
    name: str, path: str, old: str | None, new: str | None, errors: str
) -> None:
    """The model is told the place and the reason, and nothing else."""
    plan, contents = _draft(name)
    if old is None or new is None:
        del contents[path]
    else:
        assert old in contents[path]
        contents[path] = contents[path].replace(old, new, 1)
    issues = _issues((plan, contents), Severity.ERROR)
    told = [f"{i.file}:{i.line} {i.code}" if i.line else f"{i.file} {i.code}" for i in issues]

    assert ", ".join(dict.fromkeys(told)) == errors
