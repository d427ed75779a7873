"""Recorded answers: which plan they belong to, and which turn each one answers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NotRequired

from pydantic import BaseModel, Field, TypeAdapter
from typing_extensions import TypedDict

from ptc_contracts import ConfigurationError, PTCExecutionPlan
from ptc_contracts.keys import content_id
from ptc_worker.prompts import PLAN_MARK, TURN_MARK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


class Part(TypedDict):
    """A recorded answer that may have ended before it was whole."""

    text: str
    finish: NotRequired[Literal["stop", "length", "refusal"]]


Recorded = str | Sequence[str | Part | None]
"""What an iteration's requests are answered: one text, or a part for each request; None where none is known."""

Recordings = dict[str, Sequence[Recorded]]
"""What is recorded of each iteration, in turn, by the content id of the plan that it belongs to."""


@dataclass(frozen=True)
class Turn:
    """Which answer a request asks for."""

    plan: str
    number: int
    """The iteration."""
    request: int = 1
    """Which request of the iteration."""

    @classmethod
    def of(cls, text: str) -> Turn | None:
        """Find plan and turn in the text of a prompt; None if it is not one of ours."""
        plan = PLAN_MARK.search(text)
        turns = TURN_MARK.findall(text)
        if not plan or not turns:
            return None
        number, request = turns[-1]
        return cls(plan[1], int(number), int(request or 1))

    def __str__(self) -> str:
        return f"{self.plan}:{self.number}" + (f".{self.request}" if self.request > 1 else "")


def recorded(recordings: Recordings, turn: Turn) -> Part | None:
    """Return the answer to a turn, None where there is no recording of it."""
    iterations = recordings.get(turn.plan, ())
    if not (1 <= turn.number <= len(iterations)):
        return None
    parts = iterations[turn.number - 1]
    parts = [parts] if isinstance(parts, str) else parts
    part = parts[turn.request - 1] if 1 <= turn.request <= len(parts) else None
    return Part(text=part) if isinstance(part, str) else part


def load(paths: Iterable[Path]) -> Recordings:
    """Read recordings from folders and JSONL files.

    A folder holds `plan.json` and `answer-1.md`, `answer-2.md` …, or the transcripts that workers write
    (`PTC_RECORD`), or folders that do. A line of a JSONL file is `{"plan": {…}, "answers": ["…", "…"]}`; in place of a text, the answers to several
    requests of one iteration are a list of texts and of `{"text": "…", "finish": "length"}`.

    Raises:
        ConfigurationError: a path holds no recording, or one that cannot be read.
    """
    recordings: Recordings = {}
    for path in paths:
        found = dict(_read(path))
        if not found:
            raise ConfigurationError(
                f"{path} holds no recording: expected plan.json with answer-1.md, transcripts, or JSONL"
            )
        recordings |= found
    return recordings


def _read(path: Path) -> Iterator[tuple[str, Sequence[Recorded]]]:
    try:
        if path.is_file():
            for line in path.read_text("utf-8").splitlines():
                entry = json.loads(line)
                plan = PTCExecutionPlan.model_validate(entry["plan"])
                yield content_id(plan), _ANSWERS.validate_python(entry["answers"])
            return
        for plan_file in sorted(path.glob("**/plan.json")):
            plan = PTCExecutionPlan.model_validate_json(plan_file.read_text("utf-8"))
            answers = sorted(plan_file.parent.glob("answer-*.md"), key=_number)
            if answers:
                yield content_id(plan), [answer.read_text("utf-8") for answer in answers]
        yield from _transcribed(path)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(f"recordings in {path} cannot be read: {error}") from error


_ANSWERS: TypeAdapter[list[str | list[str | Part | None]]] = TypeAdapter(list[str | list[str | Part | None]])


def _transcribed(folder: Path) -> Iterator[tuple[str, Sequence[Recorded]]]:
    """Put transcripts in order, plan by plan; what was not transcribed in between stays unknown."""
    plans: dict[str, dict[tuple[int, int], Part]] = defaultdict(dict)
    for file in folder.glob("**/turn-*.json"):
        said = _Transcript.model_validate_json(file.read_bytes())
        part = Part(text=said.answer, finish="length" if said.truncated else "stop")
        plans[said.plan][said.iteration, said.request] = part
    for plan, parts in plans.items():
        iterations, requests = (max(numbers) for numbers in zip(*parts, strict=True))
        yield plan, [[parts.get((i, r)) for r in range(1, requests + 1)] for i in range(1, iterations + 1)]


class _Transcript(BaseModel):
    plan: str
    iteration: int = Field(ge=1, le=1000)
    request: int = Field(ge=1, le=1000)
    answer: str
    truncated: bool


def _number(answer: Path) -> int:
    return int(answer.stem.rpartition("-")[2])
