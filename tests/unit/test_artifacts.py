"""The processor puts results on disk, and says of them what code written for the original relies on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import make_result

from ptc_contracts import (
    ArtifactType,
    CodeArtifact,
    ExecutionStatus,
    LLMUsage,
    PTCError,
    TestResult,
)
from roma_bridge import ArtifactProcessor, ArtifactProcessorError

if TYPE_CHECKING:
    from ptc_contracts import PTCArtifactResult


def artifact(path: str, kind: str = "source_code", content: str = "1") -> CodeArtifact:
    """Make a file."""
    return CodeArtifact(file_path=path, content=content, artifact_type=ArtifactType(kind))


def verdict(**fields: Any) -> TestResult:
    """Make what tests said."""
    return TestResult(**{"test_command": "pytest -q", "exit_code": 0, "duration_seconds": 1.5, **fields})


def test_it_is_made_with_the_originals_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name or by position; they are attributes."""
    monkeypatch.chdir(tmp_path)

    plain, given = ArtifactProcessor(), ArtifactProcessor("out", False, False, True)  # noqa: FBT003

    assert vars(plain) == {"base_path": tmp_path, "overwrite": True, "create_dirs": True, "dry_run": False}
    assert vars(given) == {
        "base_path": Path("out"),
        "overwrite": False,
        "create_dirs": False,
        "dry_run": True,
    }


def test_a_result_is_written_and_counted(tmp_path: Path) -> None:
    """Whatever its status; folders are made."""
    result = make_result(status="PARTIAL_SUCCESS", execution_id="e-1")
    result.artifacts = [artifact("src/a.py"), artifact("src/b.py"), artifact("tests/test_a.py", "test")]

    told = ArtifactProcessor(tmp_path / "new" / "out").process_result(result)

    assert told == {
        "execution_id": "e-1",
        "status": "PARTIAL_SUCCESS",
        "total_artifacts": 3,
        "written": 3,
        "skipped": 0,
        "errors": 0,
        "files_by_type": {"source_code": 2, "test": 1},
    }
    assert contents(tmp_path / "new/out") == {"src/a.py": "1", "src/b.py": "1", "tests/test_a.py": "1"}


def test_files_are_replaced_by_default(tmp_path: Path) -> None:
    """Of two with one path, the last counts."""
    (tmp_path / "a.py").write_text("old")

    told = ArtifactProcessor(tmp_path).process_result(make_result(("a.py", "1"), ("a.py", "2")))

    assert (told["written"], contents(tmp_path)) == (2, {"a.py": "2"})


def test_files_that_exist_are_kept_and_counted_as_skipped(tmp_path: Path) -> None:
    """A link counts as one, wherever it leads."""
    (tmp_path / "a.py").write_text("old")
    (tmp_path / "b.py").symlink_to(tmp_path / "nowhere")
    processor = ArtifactProcessor(tmp_path, overwrite=False)

    told = processor.process_result(make_result(("a.py", "1"), ("b.py", "2"), ("c.py", "3")))

    assert (told["written"], told["skipped"], told["errors"]) == (1, 2, 0)
    assert told["files_by_type"] == {"source_code": 3}
    assert ((tmp_path / "a.py").read_text(), (tmp_path / "c.py").read_text()) == ("old", "3")
    assert not (tmp_path / "nowhere").exists()


def test_one_file_is_written_or_kept(tmp_path: Path) -> None:
    """`write_artifact` tells which."""
    assert ArtifactProcessor(tmp_path).write_artifact(artifact("a.py")) is True
    assert ArtifactProcessor(tmp_path).write_artifact(artifact("a.py", content="2")) is True
    assert ArtifactProcessor(tmp_path, overwrite=False).write_artifact(artifact("a.py")) is False
    assert contents(tmp_path) == {"a.py": "2"}


def test_a_file_that_cannot_be_written_is_an_error_that_says_why(tmp_path: Path) -> None:
    """It is one of PTC's."""
    (tmp_path / "a.py").mkdir()

    with pytest.raises(ArtifactProcessorError, match=r"a\.py was not written: a folder is in its place"):
        ArtifactProcessor(tmp_path).write_artifact(artifact("a.py"))
    assert issubclass(ArtifactProcessorError, PTCError)


def test_an_error_keeps_no_other_file_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is counted, and the log says which file and why."""
    (tmp_path / "src").write_text("a file")

    told = ArtifactProcessor(tmp_path).process_result(make_result(("src/a.py", "1"), ("b.py", "2")))

    assert (told["written"], told["skipped"], told["errors"]) == (1, 0, 1)
    assert told["files_by_type"] == {"source_code": 1}
    assert [record.getMessage() for record in caplog.records] == [
        f"artifact not written: {tmp_path}/src/a.py was not written: Not a directory"
    ]


@pytest.mark.parametrize("dry_run", [True, False])
def test_missing_folders_are_errors_where_none_may_be_made(tmp_path: Path, *, dry_run: bool) -> None:
    """The base folder included."""
    result = make_result(("a.py", "1"), ("src/b.py", "2"))

    there = ArtifactProcessor(tmp_path, create_dirs=False, dry_run=dry_run)
    missing = ArtifactProcessor(tmp_path / "out", create_dirs=False, dry_run=dry_run)

    assert [missing.process_result(result)[key] for key in ("written", "errors")] == [0, 2]
    assert contents(tmp_path) == {}
    assert [there.process_result(result)[key] for key in ("written", "errors")] == [1, 1]
    with pytest.raises(ArtifactProcessorError, match=r"b\.py was not written: its folder does not exist"):
        there.write_artifact(artifact("src/b.py"))


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_dry_run_tells_what_a_real_one_does_and_changes_nothing(tmp_path: Path, *, overwrite: bool) -> None:
    """Files that exist, folders that are missing or links, and paths that lead out."""
    for name in ("dry", "real"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept.py").write_text("old")
        (tmp_path / name / "link").symlink_to(tmp_path)
        (tmp_path / name / "folder").mkdir()
    result = make_result(("kept.py", "1"), ("link/out.py", "2"), ("folder", "3"), ("new/deep/a.py", "4"))
    result.artifacts.append(CodeArtifact.model_construct(file_path="../up.py", content="5"))
    before = snapshot(tmp_path / "dry")

    dry = ArtifactProcessor(tmp_path / "dry", overwrite=overwrite, dry_run=True).process_result(result)

    assert snapshot(tmp_path / "dry") == before
    assert dry == ArtifactProcessor(tmp_path / "real", overwrite=overwrite).process_result(result)
    assert (dry["written"], dry["skipped"], dry["errors"]) == ((2, 0, 3) if overwrite else (1, 1, 3))


def test_a_dry_run_does_not_even_make_its_folder(tmp_path: Path) -> None:
    """There may be none yet."""
    processor = ArtifactProcessor(tmp_path / "out", dry_run=True)

    assert processor.write_artifact(artifact("src/a.py")) is True
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"file_path": "../up.py"},
        {"file_path": "a/../../up.py"},
        {"file_path": "a\nb.py"},
        {"file_path": "a\x00b.py"},
        {"file_path": "  "},
        {"file_path": None},
        {"content": None},
        {"content": b"\xff"},
        {"content": "\ud800"},
        {"artifact_type": "poem"},
    ],
    ids=str,
)
def test_what_nobody_checked_is_checked_before_it_is_written(tmp_path: Path, fields: dict[str, Any]) -> None:
    """`model_construct` and changes in place let anything pass."""
    made = CodeArtifact.model_construct(**{"file_path": "a.py", "content": "1", **fields})
    result = make_result()
    result.artifacts = [made, artifact("b.py")]

    told = ArtifactProcessor(tmp_path / "out").process_result(result)

    assert (told["written"], told["errors"]) == (1, 1)
    assert contents(tmp_path) == {"out/b.py": "1"}


def test_a_path_that_was_edited_to_lead_elsewhere_stays_below_the_base_path(tmp_path: Path) -> None:
    """A leading slash does not count, here as everywhere."""
    edited = artifact("a.py")
    edited.file_path = f"{tmp_path}/victim.py"

    ArtifactProcessor(tmp_path / "out").write_artifact(edited)

    assert contents(tmp_path) == {f"out{tmp_path}/victim.py": "1"}


@pytest.mark.parametrize(
    ("result", "warnings"),
    [
        (make_result(("a.py", "1"), test_results=verdict()), []),
        (
            make_result(status="FAILURE", error_message="no model answered", warnings=["w 1", "w 2"]),
            [
                "Result status is FAILURE: no model answered",
                "No artifacts in result",
                "No test results - tests may not have run",
                "PTC error: no model answered",
                "PTC warning: w 1",
                "PTC warning: w 2",
            ],
        ),
        (
            make_result(
                *[(path, "1") for path in ("b.py", "a.py", "c.py", "a.py", "b.py")],
                status="TIMEOUT",
                test_results=verdict(exit_code=1, tests_failed=2),
            ),
            [
                "Result status is TIMEOUT - code may be incomplete",
                "Duplicate file paths: {'b.py', 'a.py'}",
                "2 test(s) failed",
            ],
        ),
    ],
    ids=["green", "failure", "timeout"],
)
def test_a_result_is_judged_in_the_originals_words_and_order(
    result: PTCArtifactResult, warnings: list[str]
) -> None:
    """Callers compare them."""
    assert ArtifactProcessor().validate_result(result) == warnings


def test_warnings_are_added_to_what_was_done(tmp_path: Path) -> None:
    """They stop nothing by themselves."""
    result = make_result(("a.py", "1"))

    told = ArtifactProcessor(tmp_path).process_with_validation(result)

    assert told["validation_warnings"] == ["No test results - tests may not have run"]
    assert (told["written"], contents(tmp_path)) == (1, {"a.py": "1"})


def test_warnings_stop_a_caller_who_wants_none(tmp_path: Path) -> None:
    """Nothing is written; a result without warnings is."""
    strict, told = (
        ArtifactProcessor(tmp_path),
        "Validation failed with 2 warnings: 1 test(s) failed; PTC warning: odd",
    )
    doubtful = make_result(("a.py", "1"), test_results=verdict(tests_failed=1), warnings=["odd"])

    with pytest.raises(ArtifactProcessorError) as refused:
        strict.process_with_validation(doubtful, fail_on_warnings=True)
    assert (str(refused.value), contents(tmp_path)) == (told, {})

    fine = make_result(("a.py", "1"), test_results=verdict())
    assert strict.process_with_validation(fine, fail_on_warnings=True)["validation_warnings"] == []
    assert contents(tmp_path) == {"a.py": "1"}


def test_a_summary_has_the_originals_lines() -> None:
    """Types by name, at most five paths of each, tests, tokens and the known cost."""
    result = make_result(
        execution_id="e-1",
        duration_seconds=1.234,
        test_results=verdict(tests_passed=7, tests_failed=1, duration_seconds=0.5),
        llm_usage=[
            LLMUsage(provider="claude", model="m", total_tokens=4000, cost_usd=0.0128),
            LLMUsage(provider="kimi", model="k", total_tokens=250),
        ],
    )
    result.artifacts = [artifact("tests/test_a.py", "test"), *(artifact(f"src/{n}.py") for n in range(7))]

    assert ArtifactProcessor().get_artifact_summary(result).split("\n") == [
        "Execution: e-1",
        "Status: SUCCESS",
        "Duration: 1.23s",
        "Artifacts: 8",
        "  source_code: 7 files",
        "    - src/0.py",
        "    - src/1.py",
        "    - src/2.py",
        "    - src/3.py",
        "    - src/4.py",
        "    ... and 2 more",
        "  test: 1 files",
        "    - tests/test_a.py",
        "",
        "Test Results:",
        "  Command: pytest -q",
        "  Passed: 7",
        "  Failed: 1",
        "  Duration: 0.50s",
        "",
        "LLM Usage:",
        "  Total tokens: 4,250",
        "  Total cost: $0.0128",
    ]


def test_a_summary_leaves_out_what_is_not_known() -> None:
    """No tests, no usage; an unknown price is not told as 0."""
    bare = make_result(status=ExecutionStatus.FAILURE)
    unpriced = make_result(llm_usage=[LLMUsage(provider="kimi", model="k", total_tokens=10)])

    lines = ["Execution: x", "Status: FAILURE", "Duration: 0.00s", "Artifacts: 0"]
    assert ArtifactProcessor().get_artifact_summary(bare).split("\n") == lines
    assert ArtifactProcessor().get_artifact_summary(unpriced).split("\n")[4:] == [
        "",
        "LLM Usage:",
        "  Total tokens: 10",
    ]


def test_a_summary_can_be_printed() -> None:
    """A name from outside writes no line of its own, and does nothing to a terminal."""
    result = make_result(("\u202eyp.a", "1"), execution_id="e\nStatus: FAILURE\x1b[2J")

    assert ArtifactProcessor().get_artifact_summary(result).split("\n")[::5] == [
        "Execution: e Status: FAILURE",
        "    - yp.a",
    ]


def contents(folder: Path) -> dict[str, str]:
    """Read all files below a folder."""
    return {
        str(f.relative_to(folder)): f.read_text()
        for f in folder.rglob("*")
        if f.is_file() and not f.is_symlink()
    }


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Note what is below a folder, and when it changed last."""
    found = (Path(at) / name for at, folders, files in os.walk(folder) for name in (".", *folders, *files))
    return {str(place): (place.lstat().st_ino, place.lstat().st_mtime_ns) for place in found}
