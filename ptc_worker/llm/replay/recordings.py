"""Recorded answers: which plan they belong to, and which turn each one answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptc_contracts import ConfigurationError, PTCExecutionPlan
from ptc_contracts.keys import content_id
from ptc_worker.prompts import PLAN_MARK, TURN_MARK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Recordings = dict[str, list[str]]
"""Answers in turn, by the content id of the plan that they answer."""


@dataclass(frozen=True)
class Turn:
    """Which answer a request asks for."""

    plan: str
    number: int

    @classmethod
    def of(cls, text: str) -> Turn | None:
        """Find plan and turn in the text of a prompt; None if it is not one of ours."""
        plan = PLAN_MARK.search(text)
        turns = TURN_MARK.findall(text)
        return cls(plan[1], int(turns[-1])) if plan and turns else None


def load(paths: Iterable[Path]) -> Recordings:
    """Read recordings from folders and JSONL files.

    A folder holds `plan.json` and `answer-1.md`, `answer-2.md` …, or folders that do. A line of a JSONL file
    is `{"plan": {…}, "answers": ["…", "…"]}`.

    Raises:
        ConfigurationError: a path holds no recording, or one that cannot be read.
    """
    recordings: Recordings = {}
    for path in paths:
        found = dict(_read(path))
        if not found:
            raise ConfigurationError(
                f"{path} holds no recording: expected plan.json with answer-1.md, or JSONL"
            )
        recordings |= found
    return recordings


def _read(path: Path) -> Iterator[tuple[str, list[str]]]:
    try:
        if path.is_file():
            for line in path.read_text("utf-8").splitlines():
                entry = json.loads(line)
                yield content_id(PTCExecutionPlan.model_validate(entry["plan"])), list(entry["answers"])
            return
        for plan_file in sorted(path.glob("**/plan.json")):
            plan = PTCExecutionPlan.model_validate_json(plan_file.read_text("utf-8"))
            answers = sorted(plan_file.parent.glob("answer-*.md"), key=_number)
            if answers:
                yield content_id(plan), [answer.read_text("utf-8") for answer in answers]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(f"recordings in {path} cannot be read: {error}") from error


def _number(answer: Path) -> int:
    return int(answer.stem.rpartition("-")[2])
