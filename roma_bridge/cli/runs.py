"""What there is to do with runs that somebody submitted before: list, watch, show and cancel them."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ptc_contracts import ExecutionStatus, RunNotFinishedError
from ptc_contracts.run import Departure, RunState
from roma_bridge.cli.endings import interruptible
from roma_bridge.cli.here import hint, place, server
from roma_bridge.cli.submitting import awaited, handed_over
from roma_bridge.cli.tables import columns, name_cell, span
from roma_bridge.handle import PlanHandle

if TYPE_CHECKING:
    from ptc_contracts.run import RunSummary
    from roma_bridge.cli.asked import Asked
    from roma_bridge.client import PTC

_PAGE = 200

NOTHING_CHANGED = 8


def listed(asked: Asked) -> int:
    """List runs, the newest first."""
    with server(local=asked.local) as ptc:
        found = _found(ptc, asked)
    if asked.as_json:
        click.echo(json.dumps([asdict(run) for run in found], indent=2, default=_written))
        return 0
    if not found:
        click.echo("there is no such run", err=True)
        return 0
    head = ("run", "plan", "project", "state", "iteration", "submitted")
    click.echo("\n".join(columns(head, [_cells(run) for run in found])))
    return 0


def _found(ptc: PTC, asked: Asked) -> list[RunSummary]:
    found: list[RunSummary] = []
    cursor: str | None = None
    while len(found) < asked.limit:
        page = ptc.list_runs(
            state=RunState(asked.state) if asked.state else None,
            status=ExecutionStatus(asked.status) if asked.status else None,
            project=asked.project,
            key=asked.key,
            limit=min(_PAGE, asked.limit - len(found)),
            cursor=cursor,
        )
        found += page.runs
        if (cursor := page.cursor) is None:
            break
    return found


def _cells(run: RunSummary) -> tuple[str, ...]:
    state = run.status.value if run.status else f"{run.state.value} ({run.stage.value})"
    ago = span(max(0.0, (datetime.now(UTC) - run.submitted_at).total_seconds()))
    iteration = f"{run.iteration} of {run.max_iterations}"
    return (
        run.run_id,
        name_cell(run.execution_id),
        name_cell(run.project or ""),
        state,
        iteration,
        f"{ago} ago",
    )


def _written(value: Any) -> str:  # noqa: ANN401 whatever JSON has no form for
    return value.isoformat() if isinstance(value, datetime) else str(value)


def watched(asked: Asked) -> int:
    """Follow a run to its end."""
    with place(local=asked.local) as where:
        handle = PlanHandle.of(asked.watch or "", where.ptc)
        with interruptible(lambda: [handle], where.afterwards):
            result = awaited(where, handle, asked)
        return handed_over(result, asked, "")


def shown(asked: Asked) -> int:
    """Show how a run ended.

    Raises:
        RunNotFinishedError: it has not.
    """
    run_id = asked.result or ""
    with server(local=asked.local) as ptc:
        handle = PlanHandle.of(run_id, ptc)
        if not handle.ready():
            watch = hint("--watch", run_id, local=asked.local)
            what = "has not ended; to go on with it" if asked.local else "goes on; follow it with"
            raise RunNotFinishedError(f"run {run_id} {what}: {watch}")
        return handed_over(handle.get(), asked, "")


def cancelled(asked: Asked) -> int:
    """Take a caller away from a run, and say what became of the run."""
    with server(local=asked.local) as ptc:
        departure, others = ptc.cancel(asked.cancel or "", asked.caller, force=asked.force)
    if asked.as_json:
        facts = {"run_id": asked.cancel, "departure": departure.value, "others": others}
        click.echo(json.dumps(facts))
    else:
        words = _DEPARTURES[departure].format(others=others, caller=asked.caller)
        click.echo(f"run {asked.cancel}: {words}")
    return NOTHING_CHANGED if departure in {Departure.SHARED, Departure.STRANGER} else 0


_DEPARTURES = {
    Departure.STOPPED: "cancelled; it stops within a second or two",
    Departure.LEFT: "goes on: {others} more wait for it; --force stops it for all",
    Departure.SHARED: "goes on: {others} wait for it; name one with --caller, or stop it for all with --force",
    Departure.STRANGER: "goes on: {caller!r} does not wait for it, {others} do; --force stops it for all",
    Departure.ENDED: "had ended before",
}
