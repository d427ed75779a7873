"""Puts a result's files on disk, and says in words what it holds."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

from pydantic import ValidationError

from ptc_contracts import ArtifactType, CodeArtifact, ExecutionStatus, PTCError
from roma_bridge.files import Tree, UnwritableError
from roma_bridge.terminal import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ptc_contracts import PTCArtifactResult

log = logging.getLogger(__name__)

LISTED_PER_TYPE = 5
"""Most paths of one type that a summary lists."""


class ArtifactProcessorError(PTCError):
    """A file cannot be written, or a result was refused for its warnings; the message says why."""


class Processed(TypedDict):
    """What became of a result's files; `written`, `skipped` and `errors` add up to `total_artifacts`."""

    execution_id: str
    status: str
    total_artifacts: int
    written: int
    """Files that were written, or would have been in a dry run."""
    skipped: int
    """Files that exist and were kept."""
    errors: int
    """Files that could not be written, or may not be; the log names each, and says why."""
    files_by_type: dict[str, int]
    """The files that were written or skipped, by wire value of their type."""
    validation_warnings: NotRequired[list[str]]
    """What `validate_result` says; only `process_with_validation` adds it."""


class ArtifactProcessor:
    """Writes the files of results below one directory, and never outside of it.

    Below `base_path` no symbolic link is followed: a folder that is one is an error, a link in the place of a
    file counts as a file that exists. A file is whole or not there, whatever happens.
    """

    def __init__(
        self,
        base_path: Path | str | None = None,
        overwrite: bool = True,  # noqa: FBT001, FBT002 callers may give it by position
        create_dirs: bool = True,  # noqa: FBT001, FBT002 the same
        dry_run: bool = False,  # noqa: FBT001, FBT002 the same
    ) -> None:
        """Say where files go, and how.

        Args:
            base_path: the directory; by default the working directory at this moment.
            overwrite: replace files that exist; else they are kept.
            create_dirs: make folders that are missing, `base_path` included; else they are errors.
            dry_run: tell what would be written, and change nothing.
        """
        self.base_path = Path(base_path or Path.cwd())
        self.overwrite = overwrite
        self.create_dirs = create_dirs
        self.dry_run = dry_run

    def process_result(self, result: PTCArtifactResult) -> Processed:
        """Write all files of a result, whatever its status; one that cannot be written keeps no other back."""
        outcomes: Counter[str] = Counter()
        types: Counter[str] = Counter()
        tree = self._tree()
        for artifact in result.artifacts:
            try:
                checked = _checked(artifact)
                written = self._write(tree, checked)
            except ArtifactProcessorError as error:
                log.warning("artifact not written: %s", error)
                outcomes["errors"] += 1
            else:
                outcomes["written" if written else "skipped"] += 1
                types[checked.artifact_type.value] += 1
        return Processed(
            execution_id=result.execution_id,
            status=ExecutionStatus(result.status).value,
            total_artifacts=len(result.artifacts),
            written=outcomes["written"],
            skipped=outcomes["skipped"],
            errors=outcomes["errors"],
            files_by_type=dict(types),
        )

    def process_with_validation(
        self,
        result: PTCArtifactResult,
        fail_on_warnings: bool = False,  # noqa: FBT001, FBT002 callers may give it by position
    ) -> Processed:
        """Write all files of a result, and add what `validate_result` says of it.

        Raises:
            ArtifactProcessorError: it says something, and `fail_on_warnings` is set; nothing was written.
        """
        warnings = self.validate_result(result)
        if warnings and fail_on_warnings:
            told = "; ".join(warnings)
            raise ArtifactProcessorError(f"Validation failed with {len(warnings)} warnings: {told}")
        return {**self.process_result(result), "validation_warnings": warnings}

    def write_artifact(self, artifact: CodeArtifact) -> bool:
        """Write one file, or return False when it exists and is kept; a dry run tells the same.

        Raises:
            ArtifactProcessorError: it cannot be written, or may not be.
        """
        return self._write(self._tree(), _checked(artifact))

    def validate_result(self, result: PTCArtifactResult) -> list[str]:
        """List what a caller should know before using a result; empty when there is nothing."""
        return list(_warnings(result))

    def get_artifact_summary(self, result: PTCArtifactResult) -> str:
        """Say in words, line by line, how a result ended, its files by type, its tests and its cost."""
        parts = (_ending(result), _files(result), _tests(result), _usage(result))
        return "\n".join(line for part in parts for line in part)

    def _tree(self) -> Tree:
        return Tree(self.base_path, make_folders=self.create_dirs, dry_run=self.dry_run)

    def _write(self, tree: Tree, artifact: CodeArtifact) -> bool:
        try:
            return tree.write(artifact.file_path, artifact.content, overwrite=self.overwrite)
        except UnwritableError as error:
            raise ArtifactProcessorError(str(error)) from error


def _checked(artifact: CodeArtifact) -> CodeArtifact:
    """Read a file anew, for nobody checked what was edited in place or made by `model_construct`."""
    try:
        return CodeArtifact.model_validate(dict(artifact))
    except ValidationError as error:
        reasons = "; ".join(f"{each['loc'][0]}: {each['msg']}" for each in error.errors(include_url=False))
        raise ArtifactProcessorError(f"a file was not written: {reasons}") from error


def _warnings(result: PTCArtifactResult) -> Iterator[str]:
    if result.status == ExecutionStatus.FAILURE:
        yield f"Result status is FAILURE: {result.error_message}"
    if result.status == ExecutionStatus.TIMEOUT:
        yield "Result status is TIMEOUT - code may be incomplete"
    if not result.artifacts:
        yield "No artifacts in result"
    counts = Counter(artifact.file_path for artifact in result.artifacts)
    if repeated := [repr(path) for path, count in counts.items() if count > 1]:
        yield f"Duplicate file paths: {{{', '.join(repeated)}}}"
    if result.test_results is None:
        yield "No test results - tests may not have run"
    elif result.test_results.tests_failed:
        yield f"{result.test_results.tests_failed} test(s) failed"
    if result.error_message:
        yield f"PTC error: {result.error_message}"
    yield from (f"PTC warning: {warning}" for warning in result.warnings)


def _ending(result: PTCArtifactResult) -> Iterator[str]:
    yield f"Execution: {one_line(result.execution_id)}"
    yield f"Status: {ExecutionStatus(result.status).value}"
    yield f"Duration: {result.duration_seconds:.2f}s"


def _files(result: PTCArtifactResult) -> Iterator[str]:
    yield f"Artifacts: {len(result.artifacts)}"
    paths: dict[str, list[str]] = {}
    for artifact in result.artifacts:
        paths.setdefault(ArtifactType(artifact.artifact_type).value, []).append(artifact.file_path)
    for name, those in sorted(paths.items()):
        yield f"  {name}: {len(those)} files"
        yield from (f"    - {one_line(path)}" for path in those[:LISTED_PER_TYPE])
        if more := those[LISTED_PER_TYPE:]:
            yield f"    ... and {len(more)} more"


def _tests(result: PTCArtifactResult) -> Iterator[str]:
    if tests := result.test_results:
        yield ""
        yield "Test Results:"
        yield f"  Command: {one_line(tests.test_command)}"
        yield f"  Passed: {tests.tests_passed}"
        yield f"  Failed: {tests.tests_failed}"
        yield f"  Duration: {tests.duration_seconds:.2f}s"


def _usage(result: PTCArtifactResult) -> Iterator[str]:
    if result.llm_usage:
        yield ""
        yield "LLM Usage:"
        yield f"  Total tokens: {result.total_tokens_used:,}"
        if result.total_cost_usd:  # 0 is what an unknown price adds up to
            yield f"  Total cost: ${result.total_cost_usd:.4f}"
