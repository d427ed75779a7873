"""Transcripts: what workers write, the replay server plays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from cluster import FAKE_KEY
from support import PATIENCE_SECONDS, answer_with, logged_here, make_plan

from ptc_contracts.bill import ModelCall
from ptc_contracts.keys import content_id
from ptc_contracts.progress import Progress
from ptc_worker.llm.calls import Answer
from ptc_worker.llm.replay.recordings import Turn, load, recorded
from ptc_worker.prompts import build_prompt
from ptc_worker.recording import record
from ptc_worker.redaction import REDACTED, Redactor

if TYPE_CHECKING:
    from pathlib import Path

    from cluster import Cluster

    from ptc_contracts import PTCExecutionPlan

SECRET = "made-up-0123456789"


def transcribe(
    folder: Path,
    plan: PTCExecutionPlan,
    text: str,
    iteration: int = 1,
    request: int = 1,
    *,
    cut: bool = False,
) -> None:
    """Record one answer of a model to a plan."""
    record(
        folder,
        Redactor([SECRET]),
        plan,
        iteration=iteration,
        request_number=request,
        prompt=build_prompt(plan, Progress()),
        answer=Answer(text=text, truncated=cut, provider="claude", model="m"),
        call=ModelCall(call_id="c", iteration=iteration, provider="claude", model="m", prompt_tokens=7),
    )


def test_what_was_recorded_is_played(tmp_path: Path) -> None:
    """Each plan, iteration and request has its answer; what was not recorded has none."""
    plan, other = make_plan("A"), make_plan("B")
    transcribe(tmp_path, plan, "cut", cut=True)
    transcribe(tmp_path, plan, "the rest", request=2)
    transcribe(tmp_path, plan, "third", iteration=3)
    transcribe(tmp_path, other, "other's", iteration=2)

    recordings = load([tmp_path])

    def played(of: PTCExecutionPlan, number: int, request: int = 1) -> tuple[str, str] | None:
        part = recorded(recordings, Turn(content_id(of), number, request))
        return part and (part["text"], part["finish"])

    assert [played(plan, 1), played(plan, 1, 2), played(plan, 1, 3)] == [
        ("cut", "length"),
        ("the rest", "stop"),
        None,
    ]
    assert [played(plan, 2), played(plan, 3), played(plan, 3, 2)] == [None, ("third", "stop"), None]
    assert [played(other, 1), played(other, 2)] == [None, ("other's", "stop")]


def test_a_transcript_tells_all_but_secrets(tmp_path: Path) -> None:
    """The plan is found by its own content id even where its text had to be redacted."""
    plan = make_plan(f"Log in with {SECRET}", metadata={"note": SECRET})
    transcribe(tmp_path, plan, f"password = '{SECRET}'")
    (folder,) = tmp_path.iterdir()
    transcript = json.loads((folder / "turn-1.1.json").read_text())

    part = recorded(load([tmp_path]), Turn(content_id(plan), 1))

    assert part == {"text": f"password = '{REDACTED}'", "finish": "stop"}
    assert sorted(path.name for path in folder.iterdir()) == ["plan.json", "turn-1.1.json"]
    assert [file.name for file in folder.iterdir() if SECRET in file.read_text()] == []
    assert f"Log in with {REDACTED}" in transcript["messages"][0]["content"]
    assert (transcript["provider"], transcript["model"], transcript["call"]["prompt_tokens"]) == (
        "claude",
        "m",
        7,
    )


def test_of_two_runs_the_later_one_is_played(tmp_path: Path) -> None:
    """A turn that is answered again replaces what was recorded."""
    plan = make_plan()
    for text in ("first", "second \ud800 é"):
        transcribe(tmp_path, plan, text)

    part = recorded(load([tmp_path]), Turn(content_id(plan), 1))

    assert part == {"text": "second ? é", "finish": "stop"}


WRITE = """
import sys
from pathlib import Path
from support import make_plan
from test_recording import transcribe

for _ in range(200):
    transcribe(Path(sys.argv[1]), make_plan(), sys.argv[2] * 100_000)
"""


def test_workers_that_record_the_same_turn_leave_one_whole_transcript(tmp_path: Path) -> None:
    """Whoever reads while they write finds the one or the other."""
    plan = make_plan()
    transcribe(tmp_path, plan, "a" * 100_000)
    search = os.pathsep.join([*sys.path, os.path.dirname(__file__)])  # noqa: PTH120
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path), letter], env={"PYTHONPATH": search})
        for letter in "ab"
    ]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        part = recorded(load([tmp_path]), Turn(content_id(plan), 1))
        assert part is not None
        seen.add(part["text"])

    assert [writer.wait() for writer in writers] == [0, 0]
    assert seen <= {"a" * 100_000, "b" * 100_000}
    assert len(list(tmp_path.glob("*/*"))) == 2
    assert list(tmp_path.glob("**/*.unfinished")) == []


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    """No run fails for its transcript, and no log fills with it."""
    folder = tmp_path / "file"
    folder.write_text("in the way")
    with logged_here() as lines:
        for iteration in (1, 2, 3):
            transcribe(folder, make_plan(), "x", iteration)

    assert [line["event"] for line in lines] == ["nothing_recorded"]


def test_a_worker_records_what_plays_again_and_its_key_shows_nowhere(
    empty_cluster: Cluster, tmp_path: Path
) -> None:
    """Neither in the transcripts, prompts with findings included, nor in the result, nor in the log."""
    folder = tmp_path / "transcripts"
    worker = empty_cluster.start_worker(environment=empty_cluster.environment | {"PTC_RECORD": str(folder)})
    halves = FAKE_KEY[:10], FAKE_KEY[10:]
    tests = f"from it import works\n\n\ndef test_it():\n    said = {halves[0]!r} + {halves[1]!r}\n    print(said)\n    assert works(), said"
    red = answer_with(it_py="def works():\n    return False", tests__test_it_py=tests)
    plan = empty_cluster.record([red, answer_with(it_py="def works():\n    return None")], max_iterations=2)

    result: Any = empty_cluster.ptc.submit(plan).get(timeout=PATIENCE_SECONDS)

    written = "".join(path.read_text() for path in folder.rglob("*.json"))
    assert REDACTED in result.test_results.stdout
    assert REDACTED in written
    assert FAKE_KEY not in written + result.model_dump_json() + worker.log.read_text()
    kept = load([folder])
    for number in (1, 2):
        turn = Turn(plan=content_id(plan), number=number)
        played, served = recorded(kept, turn), recorded(empty_cluster.replay.recordings, turn)
        assert played is not None
        assert served is not None
        assert played["text"] == served["text"]
