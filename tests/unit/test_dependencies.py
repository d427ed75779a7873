"""What a draft needs is found out without a guess: from the plan, the curated table and the project itself."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ptc_contracts.progress import Outcome
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

    assert needs == Needs(requirements=(), drafted=False, unknown=(), warnings=())


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
    assert [sentence.partition(",")[0] for sentence in needs.unknown] == ["app.py:2 imports 'requests'"]


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
            "app.py:2 imports 'nonesuch', which is neither in the project, nor in the standard library, "
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
    assert "'google'" in needs.unknown[0]


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
    assert needs.unknown == ("requirements.txt names the package 'made-up', which is not available here",)


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


def test_a_missing_dependency_is_told_as_a_verdict() -> None:
    """The model reads the sentences; no test ran."""
    verdict = missing_verdict(["a is missing", "b is missing"])

    assert verdict.outcome is Outcome.MISSING_DEPENDENCY
    assert verdict.feedback.splitlines()[1:] == ["- a is missing", "- b is missing"]
    assert verdict.test_results is None


@pytest.mark.parametrize(("module", "distribution"), import_table().items())
def test_each_line_of_the_table_is_a_module_and_a_package_name(module: str, distribution: str) -> None:
    """A line with a version, an address or a module of the standard library would be a mistake."""
    requirement = Requirement(distribution)

    assert module.isidentifier()
    assert module not in sys.stdlib_module_names
    assert requirement.name == distribution


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
