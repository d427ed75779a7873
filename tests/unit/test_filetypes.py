"""What a file is for and which language it is in."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptc_contracts import ArtifactType
from ptc_worker.filetypes import artifact, artifact_type, is_pytest_file, is_test, language

_TYPES = {
    "src/app.py": ArtifactType.SOURCE_CODE,
    "index.ts": ArtifactType.SOURCE_CODE,
    "page.html": ArtifactType.SOURCE_CODE,
    "contest.py": ArtifactType.SOURCE_CODE,
    "unknown.xyz": ArtifactType.SOURCE_CODE,
    "tests/test_app.py": ArtifactType.TEST,
    "app_test.py": ArtifactType.TEST,
    "tests/conftest.py": ArtifactType.TEST,
    "tests/__init__.py": ArtifactType.TEST,
    "src/button.test.tsx": ArtifactType.TEST,
    "__tests__/button.js": ArtifactType.TEST,
    "pkg/parse_test.go": ArtifactType.TEST,
    "pyproject.toml": ArtifactType.CONFIG,
    "package.json": ArtifactType.CONFIG,
    "compose.yml": ArtifactType.CONFIG,
    "Dockerfile": ArtifactType.CONFIG,
    "docker/Makefile": ArtifactType.CONFIG,
    "requirements.txt": ArtifactType.CONFIG,
    "setup.py": ArtifactType.CONFIG,
    ".gitignore": ArtifactType.CONFIG,
    ".env": ArtifactType.CONFIG,
    ".env.example": ArtifactType.CONFIG,
    "poetry.lock": ArtifactType.CONFIG,
    "tests/settings.json": ArtifactType.CONFIG,
    "README.md": ArtifactType.DOCUMENTATION,
    "docs/index.rst": ArtifactType.DOCUMENTATION,
    "LICENSE": ArtifactType.DOCUMENTATION,
    "tests/README.md": ArtifactType.DOCUMENTATION,
    "users.csv": ArtifactType.DATA,
    "data/users.json": ArtifactType.DATA,
    "tests/fixtures/users.json": ArtifactType.DATA,
    "schema.sql": ArtifactType.DATA,
}

_LANGUAGES = {
    "a.py": "python",
    "A.PY": "python",
    "a.pyi": "python",
    "a.test.tsx": "typescript",
    "a.mjs": "javascript",
    "main.go": "go",
    "Dockerfile": "dockerfile",
    "sub/Makefile": "makefile",
    "README.markdown": "markdown",
    "c.yml": "yaml",
    "setup.cfg": "ini",
    "LICENSE": None,
    ".py": None,
    "a.unknown": None,
    "py": None,
}


@pytest.mark.parametrize(("path", "expected"), _TYPES.items())
def test_a_files_type_is_told_from_its_path(path: str, expected: ArtifactType) -> None:
    """Tests come before configuration, configuration before data, data before prose, and the rest is code."""
    found = artifact_type(path)

    assert found is expected


@pytest.mark.parametrize(("path", "expected"), _LANGUAGES.items())
def test_a_files_language_is_told_from_its_name(path: str, expected: str | None) -> None:
    """The ending decides, whatever its case; a few names stand for themselves, and no guess is made."""
    found = language(path)

    assert found == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    {
        "test_a.py": True,
        "deep/down/test_a.py": True,
        "a_test.py": True,
        "conftest.py": False,
        "tests/a.py": False,
        "tests/test_data/a.py": False,
        "test_a.txt": False,
        "test_a.pyi": False,
        "contest_a.py": False,
        "mytest.py": False,
    }.items(),
)
def test_only_names_that_pytest_collects_count_as_its_files(path: str, *, expected: bool) -> None:
    """A file that merely lies among the tests would not be collected."""
    found = is_pytest_file(path)

    assert found is expected


def test_an_artifact_carries_what_its_path_tells() -> None:
    """A generated file goes out with its type and its language."""
    made = artifact("tests/test_a.py", "pass\n")

    assert (made.file_path, made.content) == ("tests/test_a.py", "pass\n")
    assert (made.artifact_type, made.language) == (ArtifactType.TEST, "python")


@settings(deadline=None)
@given(name=st.text(st.sampled_from("ab_.test/"), min_size=1))
def test_whatever_pytest_collects_is_a_test(name: str) -> None:
    """The two answers agree: no file that pytest runs is taken for source code."""
    path = name.strip("/") + ".py"

    assert not is_pytest_file(path) or is_test(path)
