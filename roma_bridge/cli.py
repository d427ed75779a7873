"""`ptc-enqueue`: submit a plan file, watch it, and get the files."""

from __future__ import annotations

import json
import signal
import sys
from collections import deque
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn
from uuid import uuid4

import click
from dotenv import load_dotenv

from ptc_contracts import (
    CacheStrategy,
    ExecutionStatus,
    InvalidPlanError,
    PTCError,
    PTCExecutionPlan,
    RunNotFinishedError,
    ServerUnavailableError,
)
from roma_bridge.summary import summary
from roma_bridge.watching import Watch, follow, submission_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from roma_bridge.client import PlanHandle
    from roma_bridge.local import LocalStack

EXIT_CODES = {
    0: "the plan ended as SUCCESS or CACHE_HIT (with --no-wait: it was submitted)",
    1: "PARTIAL_SUCCESS: there is code, but its tests are not green (with --warm: not every plan ended green)",
    2: "the command line, the plan file or a setting is wrong",
    3: "FAILURE: no usable code",
    4: "TIMEOUT: the plan's time ran out",
    5: "Redis cannot be reached",
    6: "the run goes on: --timeout was over",
    7: "the files cannot be written",
    8: "--cancel changed nothing: others wait for the run",
    130: "interrupted; the run goes on (with --local: it is left for the next --local)",
}

_STATUS_EXIT = {
    ExecutionStatus.SUCCESS: 0,
    ExecutionStatus.CACHE_HIT: 0,
    ExecutionStatus.PARTIAL_SUCCESS: 1,
    ExecutionStatus.FAILURE: 3,
    ExecutionStatus.TIMEOUT: 4,
}
_ERROR_EXIT = {ServerUnavailableError: 5, RunNotFinishedError: 6}


@click.command(
    epilog="\b\nExit codes:\n" + "\n".join(f"{code:4} {meaning}" for code, meaning in EXIT_CODES.items())
)
@click.argument("plan", type=click.File("rb"), required=False)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the files below this directory (default: one named after the run).",
)
@click.option(
    "--force",
    is_flag=True,
    help="Replace files that exist in the output directory; with --cancel: stop the run even if others wait.",
)
@click.option("--no-wait", is_flag=True, help="Submit, print the run's id and return.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the result as JSON on standard output, and write no files unless --output is given.",
)
@click.option(
    "--timeout", type=click.FloatRange(min=0), help="Wait at most so many seconds; the run goes on."
)
@click.option(
    "--expires",
    type=click.FloatRange(min=0, min_open=True),
    help="End the run as TIMEOUT if no worker begins it within so many seconds (default: PTC_EXPIRES, or never).",
)
@click.option("--cancel", metavar="RUN", help="Stop a run, in place of submitting a plan.")
@click.option(
    "--caller",
    metavar="EXECUTION_ID",
    help="With --cancel: who no longer wants the run; it stops when the last one leaves.",
)
@click.option(
    "--warm",
    metavar="PLANS",
    type=click.File("rb"),
    help="In place of PLAN: submit all of a file's, one JSON object a line, so that the cache has them. No files.",
)
@click.option("--jobs", type=click.IntRange(min=1), help="With --warm: most plans under way (default: 8).")
@click.option(
    "--local",
    is_flag=True,
    help="Do it all here: start a server (unless REDIS_URL is set) and a worker for the time of this command.",
)
@click.option(
    "--replay",
    type=click.Path(path_type=Path, exists=True),
    help="With --local: answer from recordings instead of asking a model.",
)
@click.version_option(version("ptc-worker"), prog_name="ptc-enqueue")
@click.help_option("-h", "--help")
def enqueue(
    plan: BinaryIO | None,
    output: Path | None,
    *,
    force: bool,
    no_wait: bool,
    as_json: bool,
    timeout: float | None,
    expires: float | None,
    cancel: str | None,
    caller: str | None,
    warm: BinaryIO | None,
    jobs: int | None,
    local: bool,
    replay: Path | None,
) -> None:
    """Submit PLAN, a JSON file or - for standard input, wait for it, and write the files it made.

    Settings come from the environment and from .env in the working directory. Progress goes to standard
    error, the summary or the JSON to standard output. `ptc-enqueue dead` shows the runs that were given up.
    """
    load_dotenv(Path.cwd() / ".env")
    _needs("--caller", caller, "--cancel", cancel)
    _needs("--jobs", jobs, "--warm", warm)
    if cancel and plan is None:
        with plain_errors():
            _cancel(cancel, caller, force=force, as_json=as_json)
        return
    if warm:
        _refuse_with_warm(
            {"PLAN": plan, "--output": output, "--force": force, "--no-wait": no_wait, "--cancel": cancel}
            | {"--replay": replay}
        )
        with plain_errors(), _interruptible():
            code = _warm(warm.read(), jobs or 8, timeout, expires, local=local, as_json=as_json)
        sys.exit(code)
    if plan is None or cancel:
        raise click.UsageError("give a PLAN, --warm PLANS or --cancel RUN")
    _refuse_contradictions(replay=replay, local=local, no_wait=no_wait)
    text = plan.read()
    with plain_errors(), _interruptible(), ExitStack() as stack:
        from roma_bridge.client import PTC, read_plan  # Celery takes 0.2 s: not for --help

        checked = _for_replay(read_plan(text)) if replay else read_plan(text)
        here: LocalStack | None = None
        if local:
            from roma_bridge.local import local_stack

            here = stack.enter_context(local_stack(replay))
        handle = (here.ptc if here else PTC()).submit(checked, expires=expires)
        if no_wait:
            _tell_submission(handle, as_json=as_json)
            return
        result = follow(handle, timeout, here)
        if as_json:
            click.echo(result.model_dump_json(indent=2))
        folder = output or (None if as_json else Path(handle.run_id or f"{handle.key}-cached"))
        if folder is not None and result.artifacts:
            from roma_bridge.files import write_files

            write_files(result, folder, overwrite=force)
        if not as_json:
            click.echo(summary(result, folder))
    sys.exit(_STATUS_EXIT[result.status])


def _needs(name: str, value: object, other: str, given: object) -> None:
    if value and not given:
        raise click.UsageError(f"{name} needs {other}")


def _refuse_contradictions(*, replay: Path | None, local: bool, no_wait: bool) -> None:
    if replay and not local:
        raise click.UsageError("--replay needs --local: a worker that runs elsewhere has its own settings")
    if local and no_wait:
        raise click.UsageError("--local and --no-wait exclude each other: the worker ends with this command")


def _refuse_with_warm(others: Mapping[str, object]) -> None:
    for name, value in others.items():
        if value:
            raise click.UsageError(f"--warm and {name} exclude each other")


def _warm(
    text: bytes, jobs: int, timeout: float | None, expires: float | None, *, local: bool, as_json: bool
) -> int:
    """Submit all plans of a text, tell what became of them, and return the exit code."""
    from roma_bridge.client import PTC  # Celery takes 0.2 s: not for --help
    from roma_bridge.warm import Warming, read_plans
    from roma_bridge.warm import as_json as written
    from roma_bridge.warm import table as worded

    plans = read_plans(text)
    with ExitStack() as stack:
        here: LocalStack | None = None
        if local:
            from roma_bridge.local import local_stack

            here = stack.enter_context(local_stack())
        warming = Warming(here.ptc if here else PTC(), deque(plans), jobs, Watch().say, expires)
        rows = warming.run(timeout, here.check if here else lambda: None)
    click.echo((written if as_json else worded)(rows))
    if any(row.unfinished for row in rows):
        return _ERROR_EXIT[RunNotFinishedError]
    return 0 if all(row.warm for row in rows) else 1


def _cancel(run_id: str, caller: str | None, *, force: bool, as_json: bool) -> None:
    """Take a caller away from a run, and say what became of the run."""
    from ptc_contracts.run import Departure
    from roma_bridge.client import PTC  # Celery takes 0.2 s: not for --help

    departure, others = PTC().cancel(run_id, caller, force=force)
    if as_json:
        click.echo(json.dumps({"run_id": run_id, "departure": departure.value, "others": others}))
    else:
        click.echo(f"run {run_id}: " + _DEPARTURES[departure].format(others=others, caller=caller))
    if departure in {Departure.SHARED, Departure.STRANGER}:
        sys.exit(8)


_DEPARTURES = {
    "stopped": "cancelled; it stops within a second or two",
    "left": "goes on: {others} more wait for it; --force stops it for all",
    "shared": "goes on: {others} wait for it; name one with --caller, or stop it for all with --force",
    "stranger": "goes on: {caller!r} does not wait for it, {others} do; --force stops it for all",
    "ended": "had ended before",
}


def _for_replay(plan: PTCExecutionPlan) -> PTCExecutionPlan:
    """Let what is replayed be a run of its own, which no cache keeps: the server may be the user's."""
    own = {"cache_strategy": CacheStrategy.NEVER, "execution_id": f"{plan.execution_id}-{uuid4().hex[:8]}"}
    return plan.model_copy(update=own)


def _tell_submission(handle: PlanHandle, *, as_json: bool) -> None:
    facts = {
        "run_id": handle.run_id,
        "key": handle.key,
        "joined": handle.joined,
        "from_cache": handle.from_cache,
    }
    click.echo(json.dumps(facts) if as_json else handle.run_id or submission_line(handle))


@contextmanager
def plain_errors() -> Iterator[None]:
    """Print what PTC raises on purpose as a message with its exit code; anything else is a bug and is shown."""
    try:
        yield
    except InvalidPlanError as error:
        _fail("the plan is not valid:\n" + "\n".join(f"  {line}" for line in str(error).splitlines()), 2)
    except PTCError as error:
        from roma_bridge.files import UnwritableError

        code = 7 if isinstance(error, UnwritableError) else _ERROR_EXIT.get(type(error), 2)
        _fail(str(error), code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM, and a terminal that closes, clean up as Ctrl-C does."""
    ends = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in ends]
    try:
        yield
    finally:
        for number, handler in zip(ends, before, strict=True):
            signal.signal(number, handler)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(click.style("ptc-enqueue: ", fg="red") + message, err=True)
    sys.exit(code)


def main() -> None:
    """Run the command."""
    if sys.argv[1:2] == ["dead"]:
        from roma_bridge.dead import dead

        dead.main(sys.argv[2:], prog_name="ptc-enqueue dead")
    enqueue.main(prog_name="ptc-enqueue")


if __name__ == "__main__":
    main()
