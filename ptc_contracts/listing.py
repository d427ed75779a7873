"""Lists of runs, a page at a time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ptc_contracts import scripts
from ptc_contracts.keys import ALL_RUNS
from ptc_contracts.record import shown
from ptc_contracts.result import ExecutionStatus
from ptc_contracts.run import RunPage, RunState, RunSummary
from ptc_contracts.stages import Stage

if TYPE_CHECKING:
    from redis import Redis

LARGEST_PAGE = 1000

_LOOKS = 500
"""Runs that the server looks at in one go: 3 ms, in which it serves nobody else."""

_FIELDS = (
    *("state", "status", "project", "key"),  # what a list may be narrowed to, in the order of the script
    *("execution_id", "stage", "iteration", "max_iterations", "submitted_at", "started_at", "ended_at"),
)


def list_runs(
    redis: Redis,
    *,
    state: RunState | None = None,
    key: str | None = None,
    status: ExecutionStatus | None = None,
    project: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> RunPage:
    """List the runs for which all holds that is given, the newest first.

    Raises:
        ValueError: the limit is no whole number from 1 to 1000, the cursor is none, or a text is none or empty.
    """
    if type(limit) is not int or not 1 <= limit <= LARGEST_PAGE:
        raise ValueError(f"limit must be a whole number from 1 to {LARGEST_PAGE}, not {limit!r}")
    for name, text in (("key", key), ("project", project)):
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{name} must be a text, not {text!r}")
        if text == "":
            raise ValueError(f"{name} must not be empty: leave it out for all runs")
    wanted = (state.value if state else "", status.value if status else "", shown(project or ""), key or "")
    runs: list[tuple[RunSummary, str]] = []
    score = _score(cursor)
    while score and len(runs) <= limit:
        score, found = _looked(redis, score, limit + 1 - len(runs), wanted)
        runs += found
    if len(runs) <= limit:
        return RunPage(runs=[run for run, _ in runs], cursor=None)
    return RunPage(runs=[run for run, _ in runs[:limit]], cursor=runs[limit - 1][1])


def _looked(
    redis: Redis, highest: str, most: int, wanted: tuple[str, ...]
) -> tuple[str, list[tuple[RunSummary, str]]]:
    """Look at some runs; return where to go on, and those that were wanted, each with its score."""
    last, found = redis.register_script(scripts.LIST)(
        keys=[ALL_RUNS], args=[highest, _LOOKS, most, *wanted, *_FIELDS]
    )
    return f"({last.decode()}" if last else "", [
        (_summary(run_id.decode(), callers, fields), score.decode())
        for run_id, score, callers, fields in found
    ]


def _score(cursor: str | None) -> str:
    """Turn a cursor into the highest score that may follow."""
    if cursor is None:
        return "+inf"
    if not isinstance(cursor, str) or not cursor.replace(".", "", 1).isdecimal():
        raise ValueError(f"{cursor!r} is not the cursor of a list of runs")
    return f"({cursor}"


def _summary(run_id: str, callers: int, values: list[bytes | None]) -> RunSummary:
    fields = {name: value.decode() for name, value in zip(_FIELDS, values, strict=True) if value is not None}
    submitted_at = _moment(fields["submitted_at"])
    assert submitted_at is not None  # noqa: S101 it was a text
    status = fields.get("status")
    return RunSummary(
        run_id=run_id,
        key=fields["key"],
        execution_id=fields.get("execution_id", ""),
        project=fields.get("project") or None,
        state=RunState(fields["state"]),
        stage=Stage(fields["stage"]),
        iteration=int(fields["iteration"]),
        max_iterations=int(fields["max_iterations"]),
        status=ExecutionStatus(status) if status else None,
        submitted_at=submitted_at,
        started_at=_moment(fields.get("started_at")),
        ended_at=_moment(fields.get("ended_at")),
        callers=callers,
    )


def _moment(milliseconds: str | None) -> datetime | None:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC) if milliseconds else None
