"""Writes what models were asked and answered into a folder, without secrets, in the form that `ptc-replay` plays."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from ptc_contracts.keys import content_id

if TYPE_CHECKING:
    from pathlib import Path

    from ptc_contracts import PTCExecutionPlan
    from ptc_contracts.bill import ModelCall
    from ptc_worker.llm.calls import Answer
    from ptc_worker.llm.protocol import Prompt
    from ptc_worker.redaction import Redactor

log = structlog.get_logger(__name__)


def record(
    folder: Path,
    redactor: Redactor,
    plan: PTCExecutionPlan,
    *,
    iteration: int,
    request_number: int,
    prompt: Prompt,
    answer: Answer,
    call: ModelCall | None,
) -> None:
    """Write the transcript of one answered request, and the plan beside it.

    `<folder>/<content id>/turn-<iteration>.<request>.json`: of several runs of a plan the last one stays. The content
    id is the plan's own, even where its text holds a secret, so that the same plan finds its recording. A folder
    that cannot be written costs the transcript and a line in the log, never the run.
    """
    plan_id = content_id(plan)
    transcript = {
        "plan": plan_id,
        "iteration": iteration,
        "request": request_number,
        "recorded_at": datetime.now(UTC).isoformat(),
        "provider": answer.provider,
        "model": answer.model,
        "truncated": answer.truncated,
        "system": prompt.system,
        "messages": [{"role": message.role, "content": message.content} for message in prompt.messages],
        "answer": answer.text,
        "call": call.model_dump(mode="json") if call else None,
    }
    try:
        turn = folder / plan_id / f"turn-{iteration}.{request_number}.json"
        turn.parent.mkdir(parents=True, exist_ok=True)
        _write(turn.with_name("plan.json"), redactor.value(plan.model_dump(mode="json")))
        _write(turn, redactor.value(transcript))
    except OSError as error:
        _tell(folder, error.strerror or type(error).__name__)


def _write(path: Path, content: object) -> None:
    """Write a document whole or not at all: other workers may write it at the same time, and readers read it."""
    unfinished = path.with_name(f".{uuid4().hex}.unfinished")
    text = json.dumps(content, ensure_ascii=False, indent=1)
    try:
        unfinished.write_bytes(text.encode(errors="replace"))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@cache
def _tell(folder: Path, reason: str) -> None:
    """Log once for each folder and reason, for the next call will meet the same."""
    log.warning("nothing_recorded", folder=str(folder), error=reason)
