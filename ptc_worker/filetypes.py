"""What a file is for and which language it is in, told from its path."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ptc_contracts.result import ArtifactType, CodeArtifact

if TYPE_CHECKING:
    from collections.abc import Iterable

_LANGUAGES = {
    ".py": "python", ".pyi": "python", ".js": "javascript", ".mjs": "javascript", ".cjs": "javascript",
    ".jsx": "javascript", ".ts": "typescript", ".mts": "typescript", ".cts": "typescript", ".tsx": "typescript", ".go": "go", ".rs": "rust", ".java": "java",
    ".kt": "kotlin", ".c": "c", ".h": "c", ".cpp": "cpp", ".hpp": "cpp", ".cs": "csharp", ".rb": "ruby",
    ".php": "php", ".swift": "swift", ".sh": "shell", ".sql": "sql", ".html": "html", ".css": "css",
    ".json": "json", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".ini": "ini", ".cfg": "ini", ".xml": "xml",
    ".md": "markdown", ".markdown": "markdown", ".mdx": "markdown", ".rst": "restructuredtext", ".txt": "text", ".csv": "csv",
}  # fmt: skip
_NAMED = {"Dockerfile": "dockerfile", "Makefile": "makefile"}

_CONFIG = {".json", ".toml", ".yaml", ".yml", ".ini", ".cfg", ".env", ".lock"}
_CONFIG_NAMES = {
    "requirements.txt", "constraints.txt", "Dockerfile", "Makefile", "Procfile", ".gitignore", ".dockerignore",
    ".env", ".env.example", "setup.py",
}  # fmt: skip
_DOCUMENTATION = {".md", ".markdown", ".mdx", ".rst", ".txt", ".adoc"}
_DOCUMENTATION_NAMES = {"LICENSE", "README", "CHANGELOG", "NOTICE"}
_DATA = {".csv", ".tsv", ".jsonl", ".parquet", ".sql"}
_DATA_FOLDERS = {"data", "fixtures", "testdata"}
_COMMENTED = ("tsconfig", "jsconfig", "tslint", "devcontainer", ".eslintrc", ".swcrc", ".babelrc")
"""How the names of JSON files begin whose readers allow comments."""
TEST_FOLDERS = {"tests", "test", "__tests__"}


def artifact(path: str, content: str) -> CodeArtifact:
    """Make an artifact with its type and language."""
    return CodeArtifact(
        file_path=path, content=content, artifact_type=artifact_type(path), language=language(path)
    )


def language(path: str) -> str | None:
    """Name the language of a file, None if its path does not tell."""
    file = PurePosixPath(path)
    return _NAMED.get(file.name) or _LANGUAGES.get(file.suffix.lower())


def artifact_type(path: str) -> ArtifactType:
    """Tell what a file is for."""
    file = PurePosixPath(path)
    suffix = file.suffix.lower()
    if is_test(path):
        return ArtifactType.TEST
    if file.name in _CONFIG_NAMES or suffix in _CONFIG - ({".json"} if _in(file, _DATA_FOLDERS) else set()):
        return ArtifactType.CONFIG
    if suffix in _DATA or (suffix == ".json" and _in(file, _DATA_FOLDERS)):
        return ArtifactType.DATA
    if suffix in _DOCUMENTATION or file.name in _DOCUMENTATION_NAMES:
        return ArtifactType.DOCUMENTATION
    return ArtifactType.SOURCE_CODE


def is_test(path: str) -> bool:
    """Tell whether a file belongs to the tests: by its name, or because it is code in their folder."""
    file = PurePosixPath(path)
    stem = file.name.split(".")[0]
    marked = ".test." in file.name or ".spec." in file.name
    code = language(path) in {"python", "javascript", "typescript", "go"}
    named = stem.startswith("test_") or stem.endswith("_test") or stem == "conftest" or marked
    return code and (named or _in(file, TEST_FOLDERS))


def is_free_form(path: str) -> bool:
    """Tell whether a file may break its language's rules: test data may do so on purpose, editors' JSON does."""
    file = PurePosixPath(path)
    commented = file.name.startswith(_COMMENTED) or _in(file, {".vscode", ".devcontainer"})
    return _in(file, _DATA_FOLDERS) or (commented and file.suffix == ".json")


def is_template(path: str, content: str) -> bool:
    """Tell whether a file becomes one of its language only when its placeholders are filled in."""
    placed = language(path) == "yaml" or _in(PurePosixPath(path), {"templates"})
    return placed and ("{{" in content.replace("${{", "") or "{%" in content)


def is_pytest_file(path: str) -> bool:
    """Tell whether pytest collects this file by its name."""
    name = PurePosixPath(path).name
    return name.endswith(".py") and (name.startswith("test_") or name.endswith("_test.py"))


def import_path(paths: Iterable[str]) -> list[str]:
    """Name the folders in which Python looks for a project's modules, the first one first.

    Beside the root, `src` and `tests` these are the folders of a project's parts, which hold tests of their own.
    """
    folders = {
        parent for path in paths for parent in PurePosixPath(path).parents if parent.name in TEST_FOLDERS
    }
    parts = sorted({str(folder.parent) for folder in folders if folder.parent.name} - {"src"})
    return ["src", ".", "tests", *(place for part in parts for place in (f"{part}/src", part))]


def _in(file: PurePosixPath, folders: set[str]) -> bool:
    return any(part in folders for part in file.parts[:-1])
