"""What a draft needs is found out without a guess: from the plan, the curated table and the project itself."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import packages_distributions

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from shipped import SNAPSHOT, modules_of

from ptc_contracts.verdicts import Outcome
from ptc_worker.dependencies import Needs, import_table, missing_verdict, needs_of
from ptc_worker.filetypes import artifact


def _needs(
    *plan: str, allowed: set[str] | None = None, files: dict[str, str] | None = None, code: str = ""
) -> Needs:
    drafted = {"app.py": code, **(files or {})}
    return needs_of(plan, [artifact(path, content) for path, content in drafted.items()], allowed)


@pytest.mark.parametrize(
    "code",
    [
        "",
        "import os, sys, json\nimport xml.etree.ElementTree as tree\nfrom __future__ import annotations\n",
        "import pytest\nfrom _pytest import monkeypatch\nimport conftest\n",
        "from . import models\nfrom .models import User\nfrom ..deep import thing\n",
        "import app\nfrom app import x\n",
        "x = '''\nimport nonesuch\n'''\n# import nonesuch\n",
    ],
)
def test_a_draft_that_uses_what_is_there_needs_nothing(code: str) -> None:
    """The standard library, pytest, relative imports and the draft's own modules are no packages."""
    needs = _needs(code=code)

    assert needs == Needs(requirements=(), drafted=False, issues=(), warnings=())


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("models.py", "import models"),
        ("store/__init__.py", "from store import x"),
        ("store/db.py", "import store.db"),
        ("src/ledger/parse.py", "from ledger.parse import read"),
        ("src/ledger.py", "import ledger"),
        ("tests/helpers.py", "from helpers import make"),
        ("backend/models.py", "from models import User"),
        ("stubs/fast.pyi", "import fast"),
        ("redis.py", "import redis"),
        ("src/redis/__init__.py", "import redis"),
        ("yaml/loader.py", "import yaml"),
    ],
)
def test_the_drafts_own_modules_come_first(path: str, code: str) -> None:
    """What the project can import itself is not installed, even if the table knows the name."""
    needs = _needs(code=code, files={path: ""})

    assert (needs.requirements, needs.unknown) == ((), ())


@pytest.mark.parametrize("path", ["app/redis.py", "src/app/redis.py", "app/redis/client.py"])
def test_a_module_deep_in_the_project_does_not_hide_a_package(path: str) -> None:
    """`import redis` does not find `app/redis.py`."""
    needs = _needs(files={path: "import redis\n"})

    assert (needs.requirements, needs.unknown) == (("redis",), ())


def test_what_the_plan_names_is_installed_as_it_stands() -> None:
    """The plan's author is trusted, version, extras and marker included; what is there already is left out."""
    needs = _needs(
        " fastapi>=0.100 ", "Made-Up_Name", "uvicorn[standard] ; python_version > '3'", "sqlite3", "Python>=3.11", "pytest"
    )  # fmt: skip

    assert needs.requirements == ("Made-Up_Name", "fastapi>=0.100", 'uvicorn[standard]; python_version > "3"')
    assert (needs.drafted, needs.warnings) == (False, ())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "FastAPI for the web part",
        "-e .",
        "-r requirements.txt",
        "--index-url=https://example.org",
        "requests\n--index-url https://example.org",
        "../local",
        "/etc/passwd",
        "git+https://example.org/a.git",
        "https://example.org/a.whl",
        "package @ https://example.org/a.whl",
        "package @ file:///tmp/a.whl",
        "requests; rm -rf /",
        "a b",
        "$(id)",
    ],
)
def test_a_dependency_that_is_no_package_of_the_index_is_warned_of(text: str) -> None:
    """Options, addresses, paths and prose are never handed to an installer."""
    needs = _needs(text, "flask")

    assert needs.requirements == ("flask",)
    assert len(needs.warnings) == 1
    assert repr(text) in needs.warnings[0]
    assert "not installed" in needs.warnings[0]


def test_only_what_is_allowed_is_installed() -> None:
    """The operator's list stands above the plan and above the table; spelling does not matter."""
    needs = _needs("Flask", "made_up", allowed={"FLASK", "pyyaml"}, code="import yaml\nimport requests\n")

    assert needs.requirements == ("Flask", "pyyaml")
    assert needs.warnings == (
        "dependency 'made_up' was not installed: PTC_ALLOWED_DEPENDENCIES leaves it out",
    )
    assert [sentence.partition(",")[0] for sentence in needs.unknown] == ["app.py:2: imports 'requests'"]


@pytest.mark.parametrize(
    ("code", "distribution"),
    [
        ("import requests", "requests"),
        ("import yaml", "pyyaml"),
        ("from bs4 import BeautifulSoup", "beautifulsoup4"),
        ("import sklearn.linear_model", "scikit-learn"),
        ("from PIL import Image", "pillow"),
        ("def f():\n    import dateutil.parser", "python-dateutil"),
        ("class A:\n    if True:\n        from jose import jwt", "python-jose"),
        ("try:\n    import yaml\nfinally:\n    pass", "pyyaml"),
        ("try:\n    pass\nexcept E:\n    pass\nelse:\n    import yaml", "pyyaml"),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import yaml", "pyyaml"),
    ],
)
def test_a_draft_may_import_what_the_table_knows(code: str, distribution: str) -> None:
    """The table, and not the module's name, says what is installed."""
    needs = _needs(code=code)

    assert (needs.requirements, needs.drafted, needs.unknown) == ((distribution,), True, ())


@pytest.mark.parametrize(
    "code",
    [
        "try:\n    import nonesuch\nexcept ImportError:\n    nonesuch = None\n",
        "try:\n    import tomllib\nexcept ImportError:\n    import nonesuch as tomllib\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import nonesuch\n",
        "import typing\nif typing.TYPE_CHECKING:\n    from nonesuch import x\n",
    ],
)
def test_a_guarded_import_may_fail(code: str) -> None:
    """What the draft itself can do without is neither installed nor missed."""
    needs = _needs(code=code)

    assert (needs.requirements, needs.unknown) == ((), ())


def test_an_unknown_import_is_told_with_its_first_place_and_never_installed() -> None:
    """Names that models invent are names that others register."""
    code = "import os\nimport nonesuch.deep\n\ndef f():\n    from nonesuch import x\n\nimport nonesuch\n"
    needs = _needs(code=code)

    assert needs.requirements == ()
    assert needs.unknown == (
        (
            "app.py:2: imports 'nonesuch', which is neither in the project, nor in the standard library, "
            "nor in a package that the plan names"
        ),
    )


@pytest.mark.parametrize(
    ("dependency", "module"),
    [
        ("beautifulsoup4", "bs4"),
        ("PyYAML>=6", "yaml"),
        ("google-cloud-storage", "google.cloud.storage"),
        ("azure-storage-blob", "azure.storage.blob"),
        ("python-telegram-bot", "telegram"),
        ("discord.py", "discord"),
        ("Flask-Login", "flask_login"),
        ("factory-boy", "factory"),
        ("psycopg2", "psycopg2"),
        ("PyGithub", "github"),
        ("pyusb", "usb"),
        ("djangorestframework", "rest_framework"),
        ("PyMuPDF", "fitz"),
        ("mysqlclient", "MySQLdb"),
    ],
)
def test_a_package_of_the_plan_may_bring_a_module_of_another_name(dependency: str, module: str) -> None:
    """A trusted package is not doubted, nor installed twice, because its module is called otherwise."""
    needs = _needs(dependency, code=f"import {module}\n")

    assert needs.requirements == (dependency,)
    assert (needs.drafted, needs.unknown) == (False, ())


def test_a_namespace_that_no_package_of_the_plan_brings_is_unknown() -> None:
    """`google` could be any of a hundred packages."""
    needs = _needs("requests", code="from google.cloud import storage\n")

    assert needs.requirements == ("requests",)
    assert len(needs.unknown) == 1
    assert "'google.cloud.storage'" in needs.unknown[0]


@pytest.mark.parametrize(
    "code",
    [
        "import google.protobuf",
        "from google import protobuf",
        "from google.protobuf import message",
        "import google.protobuf.message as m",
    ],
)
def test_a_part_of_a_namespace_is_known_by_itself(code: str) -> None:
    """`google.protobuf` is one package, whatever else is called `google`."""
    needs = _needs(code=code)

    assert (needs.requirements, needs.unknown) == (("protobuf",), ())


def test_a_neighbour_in_the_namespace_does_not_bring_what_the_table_knows() -> None:
    """A plan that names one part of a namespace has not named the others."""
    needs = _needs("zope.event", code="import zope.interface\nimport zope.event\n")

    assert (needs.requirements, needs.unknown) == (("zope-interface", "zope.event"), ())


@pytest.mark.parametrize(
    ("plan", "code", "listed"),
    [
        ("opencv-python", "import cv2", ""),
        ("opencv-contrib-python-headless>=4", "import cv2", "opencv-python-headless\n"),
        ("psycopg2", "import psycopg2", "psycopg2-binary==2.9\n"),
        ("PyMySQL", "import pymysql", "pymysql\n"),
        ("fpdf", "import fpdf", "fpdf2\n"),
        ("opencv-python", "import cv2", "opencv-contrib-python\n"),
    ],
)
def test_of_several_packages_with_one_module_the_plans_own_is_installed_alone(
    plan: str, code: str, listed: str
) -> None:
    """Two of them would overwrite each other's files."""
    needs = _needs(plan, code=code, files={"requirements.txt": listed})

    assert (needs.requirements, needs.drafted, needs.unknown) == ((plan,), False, ())


def test_of_several_packages_with_one_module_a_draft_gets_the_tables() -> None:
    """It is the one that can be installed here; the version that the draft gave was the other's."""
    needs = _needs(
        code="import cv2\nimport psycopg2\n",
        files={"requirements.txt": "opencv-python==4.1\nopencv-contrib-python\npsycopg2>=2\n"},
    )

    assert (needs.requirements, needs.unknown) == (("opencv-python-headless", "psycopg2-binary"), ())


def test_the_operator_decides_on_what_is_installed_instead() -> None:
    """A package that is left out does not come in another's place."""
    needs = _needs(allowed={"opencv-python"}, files={"requirements.txt": "opencv-python\n"})

    assert needs.requirements == ()
    assert len(needs.unknown) == 1


def test_a_requirements_file_of_the_draft_is_read_like_its_imports() -> None:
    """What the table knows is installed at the draft's version, the rest is told, options are left out."""
    lines = [
        "# ours",
        "",
        "requests==2.31.0  # pinned",
        "PyYAML>=6",
        "flask",
        "pytest",
        "sqlite3",
        "made-up==1.0",
        "-r other.txt",
        "--index-url https://example.org",
        "evil @ https://example.org/evil.whl",
        "git+https://example.org/evil.git",
    ]
    needs = _needs("Flask>=3", files={"requirements.txt": "\r\n".join(lines)})

    assert needs.requirements == ("Flask>=3", "PyYAML>=6", "requests==2.31.0")
    assert needs.drafted
    assert needs.unknown == ("requirements.txt: names the package 'made-up', which is not available here",)


@pytest.mark.parametrize(
    ("path", "is_read"),
    [
        ("requirements.txt", True),
        ("requirements-dev.txt", True),
        ("backend/requirements_test.txt", True),
        ("requirements.md", False),
        ("my-requirements.txt", False),
    ],
)
def test_requirements_files_are_known_by_their_name(path: str, *, is_read: bool) -> None:
    """Prose about requirements is not a list of them."""
    needs = _needs(files={path: "requests\n"})

    assert bool(needs.requirements) is is_read


@pytest.mark.parametrize(
    "content", ["def f(:\n", "x = 1\0", "\ud800", "(" * 1000, "-" * 100_000 + "1", "x" * 10**6]
)
def test_a_file_that_cannot_be_parsed_takes_nothing_from_the_others(content: str) -> None:
    """Its imports are not known; those of the other files are."""
    needs = _needs(code="import yaml\n", files={"broken.py": content})

    assert (needs.requirements, needs.unknown) == (("pyyaml",), ())


PYPROJECT = """
[project]
name = "Mine"
dependencies = ["requests==2.31.0", "made-up", "tomli; python_version < '3'"]
[project.optional-dependencies]
test = ["httpx>=0.20", "pytest"]
all = ["mine[test]", "made-up-docs"]
[dependency-groups]
dev = ["PyYAML", {include-group = "test"}, "ruff", "made-up-tool"]
[build-system]
requires = ["flask"]
"""

POETRY = """
[tool.poetry.dependencies]
python = "^3.11"
requests = "^2.31"
made-up = {version = "*", extras = ["x"]}
[tool.poetry.dev-dependencies]
httpx = "*"
made-up-docs = "*"
[tool.poetry.group.dev.dependencies]
pyyaml = "*"
"""

SETUP = """
[metadata]
name = mine
[options]
install_requires =
    requests==2.31.0
    made-up
[options.extras_require]
dev =
    httpx>=0.20
    PyYAML
    made-up-docs
"""


@pytest.mark.parametrize(
    ("path", "content", "requirements"),
    [
        ("pyproject.toml", PYPROJECT, ("PyYAML", "httpx>=0.20", "requests==2.31.0")),
        ("pyproject.toml", POETRY, ("httpx", "pyyaml", "requests")),
        ("backend/setup.cfg", SETUP, ("PyYAML", "httpx>=0.20", "requests==2.31.0")),
    ],
)
def test_a_drafts_project_file_is_read_like_its_requirements(
    path: str, content: str, requirements: tuple[str, ...]
) -> None:
    """What the project needs must be known to the table; of its extras and groups only what the table knows counts."""
    needs = _needs(files={path: content})

    assert (needs.requirements, needs.drafted) == (requirements, True)
    assert needs.unknown == (f"{path}: names the package 'made-up', which is not available here",)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[project",
        "project = 3",
        "[project]\ndependencies = 'requests'",
        "[project]\ndependencies = [1, {a = 2}, '', 'requests @ https://example.org/a.whl']",
        "[project]\noptional-dependencies = ['requests']",
        "[project.optional-dependencies]\na = 1",
        "[tool]\npoetry = 1",
        "[tool.poetry]\ngroup = {dev = 1}\ndependencies = ['requests']",
        "a = " + "[" * 10_000,
        "[options]\ninstall_requires",
    ],
)
@pytest.mark.parametrize("path", ["pyproject.toml", "setup.cfg"])
def test_a_project_file_of_another_form_says_nothing(path: str, content: str) -> None:
    """Models write every form there is; none of them ends a stage."""
    needs = _needs(files={path: content})

    assert (needs.requirements, needs.unknown) == ((), ())


def test_a_missing_dependency_is_told_as_a_verdict() -> None:
    """The model reads the sentences; no test ran."""
    verdict = missing_verdict(["a is missing", "b is missing"])

    assert verdict.outcome is Outcome.MISSING_DEPENDENCY
    assert verdict.feedback.splitlines()[1:] == ["- a is missing", "- b is missing"]
    assert verdict.test_results is None


def test_what_is_missing_has_a_signature() -> None:
    """Equal for the same packages, whatever line asks for them and in whatever order."""
    one = missing_verdict(["a.py:1 imports 'x'", "b is missing"])
    moved = missing_verdict(["b is missing", "a.py:7 imports 'x'"])
    other = missing_verdict(["a.py:1 imports 'y'", "b is missing"])

    assert one.signature == moved.signature != other.signature
    assert len(one.signature) == 16


@pytest.mark.parametrize(("module", "distribution"), import_table().items())
def test_each_line_of_the_table_is_a_module_and_a_package_name(module: str, distribution: str) -> None:
    """A line with a version, an address or a module of the standard library would be a mistake."""
    requirement = Requirement(distribution)

    assert all(part.isidentifier() for part in module.split("."))
    assert module not in sys.stdlib_module_names
    assert requirement.name == distribution


SHIPPED = json.loads(SNAPSHOT.read_text())


def test_the_table_has_what_drafts_commonly_use() -> None:
    """A hundred and fifty modules or more."""
    assert len(import_table()) >= 150


@pytest.mark.parametrize(("module", "distribution"), import_table().items())
def test_each_package_of_the_table_ships_its_module(module: str, distribution: str) -> None:
    """As wheels say themselves; after a change of the table, tests/shipped.py reads them anew."""
    assert module in SHIPPED[canonicalize_name(distribution)]["modules"]


def test_packages_that_are_installed_here_ship_what_the_table_says() -> None:
    """A second opinion, of this Python's own metadata."""
    brought = {
        (module, canonicalize_name(name))
        for module, names in packages_distributions().items()
        for name in names
    }
    installed = {name for _, name in brought}
    promised = {
        (module, canonicalize_name(name)) for module, name in import_table().items() if "." not in module
    }
    checked = {(module, name) for module, name in promised if name in installed}

    assert len(checked) > 20
    assert checked - brought == set()


@pytest.mark.parametrize(
    ("files", "modules"),
    [
        (["a/__init__.py", "a/b/__init__.py", "a/c.py"], ["a"]),
        (["one.py", "_two.py", "three.cpython-311-x86_64-linux-gnu.so", "four.pth"], ["one", "three"]),
        (["google/protobuf/__init__.py", "google/_upb/_message.abi3.so"], ["google.protobuf"]),
        (["ns/deep/er/__init__.py", "ns/single.py"], ["ns.deep.er", "ns.single"]),
        (["x-1.0.data/purelib/x/__init__.py", "x-1.0.data/scripts/run.py", "x-1.0.dist-info/a.py"], ["x"]),
        (["x-stubs/__init__.py", "x/__init__.pyi", "native/__init__.abi3.so"], ["native"]),
    ],
)
def test_a_wheels_files_say_what_can_be_imported(files: list[str], modules: list[str]) -> None:
    """Top-level modules; of a namespace, what lies in it."""
    assert modules_of(files) == modules


@settings(deadline=None)
@given(
    plan=st.lists(
        st.text(st.sampled_from("abz-_.[]<>=@ ;#:/\n0") | st.characters(), max_size=20), max_size=4
    ),
    code=st.text(st.sampled_from("import fromyl.,\n as*") | st.characters(), max_size=60),
    listed=st.text(st.sampled_from("requstflak-_.[]<>=@ ;#:/\n0"), max_size=60),
)
def test_nothing_is_installed_that_neither_plan_nor_table_names(
    plan: list[str], code: str, listed: str
) -> None:
    """Whatever stands in a plan or a draft, installers get names of packages, on one line each."""
    needs = _needs(*plan, code=code, files={"requirements.txt": listed})
    names = {canonicalize_name(Requirement(text).name) for text in needs.requirements}
    known = {canonicalize_name(name) for name in import_table().values()}
    claimed = {canonicalize_name(name) for text in plan for name in re.findall(r"^\s*([\w.-]*\w)", text)}

    assert names <= known | claimed
    assert not any("\n" in text or Requirement(text).url for text in needs.requirements)


def test_an_authors_tools_are_neither_installed_nor_missed() -> None:
    """A linter in the draft's requirements file is no reason to ask again."""
    needs = needs_of([], [artifact("requirements-dev.txt", "black==24.1\npytest-cov\n")], None)

    assert (needs.requirements, needs.unknown) == ((), ())
