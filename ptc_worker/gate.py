"""What is wrong with a draft that can be seen without running it. Milliseconds, before any sandbox is spent."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import accumulate
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ptc_contracts.paths import untidy_reason
from ptc_contracts.verdicts import GateIssue, GateStage, Outcome, Severity, Verdict
from ptc_worker import javascript
from ptc_worker.dependencies import needs_of, own_imports
from ptc_worker.filetypes import artifact, is_pytest_file, is_test, language
from ptc_worker.modules import Modules
from ptc_worker.syntax import syntax_issues

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from ptc_contracts.plan import PTCExecutionPlan
    from ptc_contracts.result import CodeArtifact

_MAX_TOLD = 12
_MAX_TOLD_CHARS = 6_000
_MAX_MESSAGE_CHARS = 400
_MAX_KEPT = 50

_NOT_TEXT = {
    ".bin", ".bmp", ".db", ".docx", ".exe", ".gif", ".gz", ".h5", ".ico", ".jar", ".jpeg", ".jpg", ".lock", ".mp3",
    ".mp4", ".npy", ".npz", ".otf", ".parquet", ".pdf", ".pkl", ".png", ".pt", ".pyc", ".so", ".sqlite", ".sqlite3",
    ".tar", ".ttf", ".wav", ".webp", ".whl", ".woff", ".woff2", ".xlsx", ".zip",
}  # fmt: skip
"""Endings of files that a model cannot write, or that a tool writes."""

_PYTEST_CONFIG = {"pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg"}

_RUN_HERE = {"python", "javascript", "typescript"}

_PLACE = re.compile(r"\b(?:line|column|char) \d+")


def examine(
    plan: PTCExecutionPlan, files: Sequence[CodeArtifact], allowed: Collection[str] | None
) -> list[GateIssue]:
    """List what is wrong with a draft, or worth telling; one without errors is let into a sandbox.

    The plan's tests count as files of the project. `allowed` are the packages that may be installed, None for all.
    """
    own = [file for file in files if file.file_path not in plan.test_files]
    together = _with_given(files, plan.test_files)
    modules = Modules(together)
    return [
        *(issue for file in own for issue in syntax_issues(file)),
        *javascript.syntax_issues(own),
        *(
            i
            for i in javascript.import_issues(together)
            if i.file not in plan.test_files and plan.enable_testing
        ),
        *_missing_tests(plan, together),
        *_missing_files(plan, together),
        *_unresolved_imports(plan, together, modules),
        *_unknown_packages(plan, together, modules, allowed),
    ]


def has_errors(issues: Sequence[GateIssue], stage: GateStage | None = None) -> bool:
    """Tell whether any issue, of a stage if one is named, keeps a draft from being run."""
    return any(i.severity is Severity.ERROR and stage in {None, i.stage} for i in issues)


def red_verdict(issues: Sequence[GateIssue]) -> Verdict:
    """Word issues as a verdict that sends the draft back: errors first, each once, the first ones of very many."""
    issues = sorted(map(_shortened, issues), key=lambda issue: issue.severity is not Severity.ERROR)
    told = [f"- {sentence}" for sentence in _sentences(issues)]
    shown = _fitting(told[:_MAX_TOLD])
    more = [f"- … and {len(told) - len(shown)} more"] if len(told) > len(shown) else []
    opening = "The project was not run, for these problems can be seen without it:"
    return Verdict(
        outcome=Outcome.GATE,
        feedback="\n".join([opening, *shown, *more]),
        issues=issues[:_MAX_KEPT],
        signature=_signature(issues),
    )


def has_python_tests(files: Sequence[CodeArtifact]) -> bool:
    """Tell whether there is anything that pytest would collect, by its own names or by the project's."""
    return any(is_pytest_file(file.file_path) or _names_tests(file) for file in files)


def _names_tests(file: CodeArtifact) -> bool:
    return PurePosixPath(file.file_path).name in _PYTEST_CONFIG and "python_files" in file.content


def _with_given(files: Sequence[CodeArtifact], given: Mapping[str, str]) -> list[CodeArtifact]:
    """Put the plan's tests in the place of the draft's files of that name, as a run of them does."""
    own = [file for file in files if file.file_path not in given]
    return own + [artifact(path, content) for path, content in given.items()]


def _missing_tests(plan: PTCExecutionPlan, files: Sequence[CodeArtifact]) -> Iterator[GateIssue]:
    others = any(is_test(f.file_path) and language(f.file_path) not in _RUN_HERE for f in files)
    if not plan.enable_testing or others or has_python_tests(files) or javascript.has_node_tests(files):
        return
    told = None
    if any(language(file.file_path) == "python" for file in files):
        told = "there is no test file named test_*.py"
    elif javascript.is_node_project(files):
        told = "there is no test file named *.test.js or *.test.ts"
    if told:
        yield GateIssue(file="tests/", code="no-tests", message=told, stage=GateStage.INTEGRATION)


def _missing_files(plan: PTCExecutionPlan, files: Sequence[CodeArtifact]) -> Iterator[GateIssue]:
    """Find what the plan's file structure asks for and the draft lacks; a key that is no path asks for nothing."""
    present = _paths_and_folders(files)
    structure = plan.scaffolding.file_structure or {}
    wanted = {path: key for key in structure if (path := _path_in(key))}
    root = _only_root(wanted)
    for path, key in wanted.items():
        if path.casefold() in present:
            continue
        without_root = path.partition("/")[2].casefold()
        moved = root is not None and root.casefold() not in present and without_root in present
        must = not moved and _can_be_written(key) and "optional" not in structure[key].lower()
        yield GateIssue(
            file=path,
            code="missing-file",
            message="the plan's file structure names it, and the draft does not have it",
            severity=Severity.ERROR if must else Severity.WARNING,
            stage=GateStage.INTEGRATION,
        )


def _paths_and_folders(files: Sequence[CodeArtifact]) -> set[str]:
    paths = [PurePosixPath(file.file_path.casefold()) for file in files]
    return {str(place) for path in paths for place in (path, *path.parents)}


def _path_in(key: str) -> str | None:
    """Give the path that a key of a file structure means, None if it is a pattern or none that a draft may have."""
    path = key.strip().removeprefix("./").strip("/")
    is_pattern = any(sign in path for sign in "*?[]{}<>()") or "..." in path
    return None if not path or is_pattern or untidy_reason(path) else path


def _only_root(paths: Collection[str]) -> str | None:
    """Name the folder that holds all of a file structure: some drafts are written as if they lay in it."""
    tops = {path.partition("/")[0] for path in paths if "/" in path}
    return tops.pop() if len(tops) == 1 and not any(path in tops for path in paths if "." in path) else None


def _can_be_written(key: str) -> bool:
    """Tell whether a model can be asked for it: drafts hold texts, and no empty folders.

    A key with white space in it may be a path with a remark, or a line of a drawn tree: no draft could ever have it.
    """
    suffix = PurePosixPath(key.strip()).suffix.lower()
    is_folder = key.strip().endswith("/") or (not suffix and language(key) is None and "." not in key)
    return not is_folder and suffix not in _NOT_TEXT and len(key.split()) == 1


def _unresolved_imports(
    plan: PTCExecutionPlan, files: Sequence[CodeArtifact], modules: Modules
) -> Iterator[GateIssue]:
    for wanted in own_imports(plan.scaffolding.dependencies, files, modules):
        if reason := modules.lacking(wanted):
            yield GateIssue(
                file=wanted.file,
                line=wanted.line,
                code="unresolved-import",
                message=reason,
                stage=GateStage.INTEGRATION,
            )


def _unknown_packages(
    plan: PTCExecutionPlan,
    files: Sequence[CodeArtifact],
    modules: Modules,
    allowed: Collection[str] | None,
) -> Iterator[GateIssue]:
    """Ask what the sandbox stage would ask; where no test of Python is run, nobody misses a package."""
    missed = plan.enable_testing and has_python_tests(files)
    for issue in needs_of(plan.scaffolding.dependencies, files, allowed, modules).issues:
        yield issue if missed else issue.model_copy(update={"severity": Severity.WARNING})


def _shortened(issue: GateIssue) -> GateIssue:
    if len(issue.message) <= _MAX_MESSAGE_CHARS:
        return issue
    return issue.model_copy(update={"message": issue.message[:_MAX_MESSAGE_CHARS] + "…"})


def _sentences(issues: Sequence[GateIssue]) -> list[str]:
    """Word each issue once, with the first line of those where it stands."""
    first = {(issue.file, issue.code, issue.message): issue for issue in reversed(issues)}
    return [
        str(issue) if issue.severity is Severity.ERROR else f"{issue} (not the reason; worth a look)"
        for issue in issues
        if first[issue.file, issue.code, issue.message] is issue
    ]


def _fitting(lines: Sequence[str]) -> list[str]:
    """Keep the first lines that fit into what a model is told."""
    sizes = accumulate(len(line) + 1 for line in lines)
    return [line for line, size in zip(lines, sizes, strict=True) if size <= _MAX_TOLD_CHARS]


def _signature(issues: Sequence[GateIssue]) -> str:
    """Hash what refuses a draft, wherever in its files it stands: 16 hexadecimal digits."""
    errors = {
        (issue.file, issue.code, _PLACE.sub("", issue.message))
        for issue in issues
        if issue.severity is Severity.ERROR
    }
    return hashlib.sha256(json.dumps(sorted(errors)).encode()).hexdigest()[:16]
