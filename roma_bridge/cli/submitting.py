"""Submits plans, waits for them, and hands over what they made."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import click

from ptc_contracts import (
    CacheStrategy,
    ConfigurationError,
    PTCError,
    RunNotFinishedError,
)
from roma_bridge.cli.continuing import continued
from roma_bridge.cli.endings import exit_code, interruptible, uninterrupted, worst
from roma_bridge.cli.here import place
from roma_bridge.cli.jobs import Jobs
from roma_bridge.cli.plans import Given, read
from roma_bridge.cli.tables import batch_table
from roma_bridge.files import UnwritableError, write_files
from roma_bridge.show.summary import summary
from roma_bridge.show.watching import follow, submission_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ptc_contracts import PTCArtifactResult, PTCExecutionPlan
    from roma_bridge.cli.asked import Asked
    from roma_bridge.cli.here import Place
    from roma_bridge.handle import PlanHandle


def submit(asked: Asked) -> int:
    """Submit all plans, hand over their results, and return the exit code."""
    given = [] if asked.continue_run else read(asked.plans, asked.changes)
    with place(local=asked.local, replay=asked.replay) as where:
        if asked.continue_run:
            given = [continued(where.ptc, asked.continue_run, asked.changes, local=asked.local)]
        if asked.replay:
            given = [Given(each.file, each.line, _for_replay(each.plan, where)) for each in given]
        if asked.no_wait:
            return _sent(where, given, asked)
        return _one(where, given[0], asked) if len(given) == 1 else _several(where, given, asked)


def _one(where: Place, given: Given, asked: Asked) -> int:
    handle: PlanHandle | None = None
    with interruptible(lambda: [handle] if handle and not handle.from_cache else [], where.afterwards):
        with uninterrupted():
            handle = where.ptc.submit(given.plan, **_options(asked))
        result = awaited(where, handle, asked)
    return handed_over(result, asked, _run_folder(handle))


def awaited(where: Place, handle: PlanHandle, asked: Asked) -> PTCArtifactResult:
    """Wait for one run, with or without a word on the way.

    Raises:
        RunNotFinishedError: `--timeout` is over.
        ConfigurationError: the worker of `--local` has ended; the run is cancelled, for it would begin with the next one.
    """
    try:
        return follow(handle, asked.timeout, where.stack, quiet=asked.quiet)
    except ConfigurationError:
        _give_up([handle])
        raise
    except RunNotFinishedError as error:
        raise where.unfinished(handle.run_id, error) from None


def _give_up(handles: Sequence[PlanHandle]) -> None:
    for handle in handles:
        try:
            handle.cancel()
        except PTCError:  # what is reported is why we give up
            return


def handed_over(result: PTCArtifactResult, asked: Asked, folder: str) -> int:
    """Write a result's files where they are wanted, print it, and return the exit code.

    Without `--output` they go into a folder of this name, here; into none if it is empty, or with `--json`.

    Raises:
        UnwritableError: a file cannot be written; the result was printed.
    """
    below = "" if asked.output or asked.as_json else folder
    written, trouble = None, None
    if result.artifacts and (asked.output or below):
        try:
            write_files(result, asked.output or Path(), below=below, overwrite=asked.force)
            written = (asked.output or Path()) / below
        except UnwritableError as error:
            trouble = error
    if asked.as_json:
        click.echo(result.model_dump_json(indent=2).encode())  # UTF-8 whatever the terminal knows
    else:
        click.echo(summary(result, written))
    if trouble:
        raise trouble
    return exit_code(result.status)


def _sent(where: Place, given: Sequence[Given], asked: Asked) -> int:
    """Submit all plans and print their runs; where an outage came half-way, those of which we know.

    Raises:
        ServerUnavailableError: not all plans may have been submitted.
    """
    batch = where.ptc.submit_plans([each.plan for each in given], **_options(asked))
    for handle in batch.handles:
        facts = {
            "execution_id": handle.plan.execution_id,
            "run_id": handle.run_id,
            "key": handle.key,
            "joined": handle.joined,
            "from_cache": handle.from_cache,
        }
        click.echo(json.dumps(facts) if asked.as_json else handle.run_id or submission_line(handle))
    if batch.interrupted:
        raise batch.interrupted
    return 0


def _several(where: Place, given: Sequence[Given], asked: Asked) -> int:
    folders = _folders(given)

    def deliver(each: Given, handle: PlanHandle, result: PTCArtifactResult) -> Path | None:
        try:
            return write(each, handle, result)
        finally:  # also of what cannot be written
            if asked.as_json:
                click.echo(result.model_dump_json().encode())

    def write(each: Given, handle: PlanHandle, result: PTCArtifactResult) -> Path | None:
        if not result.artifacts or (asked.as_json and not asked.output):
            return None
        root, below = asked.output or Path(), folders.get(each.plan.execution_id) or _run_folder(handle)
        write_files(result, root, below=below, overwrite=asked.force)
        return root / below

    torn = (
        asked.as_json and sys.stdout is not None and sys.stdout.isatty()
    )  # lines of one stream through what is drawn on the other
    batch = Jobs(
        where.ptc,
        given,
        asked.jobs,
        deliver,
        _options(asked),
        quiet=asked.quiet or torn,
        brings_worker=where.brings_worker,
    )
    try:
        finish(batch, where, asked.timeout)
    except BaseException:
        if batch.begun:
            _tell_rows(batch, as_json=asked.as_json)
        raise
    _tell_rows(batch, as_json=asked.as_json)
    return worst(row.exit_code for row in batch.all_rows)


def _tell_rows(batch: Jobs, *, as_json: bool) -> None:
    """Print the table; with JSON on standard output, where a line takes the place of each result that never came."""
    rows = batch.all_rows
    if as_json:
        without = [row for row in rows if row.without_result]
        click.echo("".join(f"{json.dumps(row.as_object())}\n" for row in without), nl=False)
        click.echo(batch_table(rows), err=True)
    else:
        click.echo(batch_table(rows))


def finish(batch: Jobs, where: Place, timeout: float | None) -> None:
    """Work a batch off; see `Jobs.run`."""
    try:
        with interruptible(lambda: batch.under_way, where.afterwards) as batch.became:
            batch.run(timeout, where.check)
    except ConfigurationError:
        _give_up(batch.under_way)
        raise


def _folders(given: Sequence[Given]) -> dict[str, str]:
    """Name a directory after each execution_id that makes a plain name and that one plan alone has."""
    counts = Counter(each.plan.execution_id for each in given)
    return {name: name for name, count in counts.items() if count == 1 and _PLAIN_NAME.fullmatch(name)}


_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}", re.ASCII)


def _run_folder(handle: PlanHandle) -> str:
    return handle.run_id or f"{handle.key}-cached"


def _options(asked: Asked) -> dict[str, Any]:
    return {"priority": asked.priority, "expires": asked.expires}


def _for_replay(plan: PTCExecutionPlan, where: Place) -> PTCExecutionPlan:
    """Let what is replayed be a run of its own, which no cache keeps; at a server of the user's by a name of its own."""
    own: dict[str, Any] = {"cache_strategy": CacheStrategy.NEVER}
    if where.stack and where.stack.lasts:
        own["execution_id"] = f"{plan.execution_id}-{uuid4().hex[:8]}"
    return plan.model_copy(update=own)
