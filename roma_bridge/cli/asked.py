"""What a command line asks for, and which of its options go together."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

SUBMIT = "submit"
"""What is asked for when no option asks for anything else."""


class Option(click.Option):
    """An option that knows its place in the help, and what it goes with."""

    def __init__(
        self,
        *names: Any,  # noqa: ANN401 as click's own
        section: str,
        goes_with: Collection[str] | None = None,
        **facts: Any,  # noqa: ANN401 as click's own
    ) -> None:
        """Declare an option.

        Args:
            names: Its names, as for click.
            section: Below which head the help lists it.
            goes_with: The tasks that it means something for; all of them if None.
            facts: Whatever else click takes.
        """
        super().__init__(*names, **facts)
        self.section = section
        self.goes_with = goes_with


class Task(Option):
    """An option that asks for something else than that plans be submitted."""


class Seconds(click.FloatRange):
    """A range of seconds that, unlike click's, does not hold `nan`, which would never be over."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 as click's own
        """Read it, and refuse what is no number."""
        seconds = super().convert(value, param, ctx)
        if isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


class Text(click.types.StringParamType):
    """A text that is not empty, as a shell's variable that is not set leaves it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 as click's own
        """Refuse what is empty."""
        return super().convert(value, param, ctx) or self.fail("it must not be empty", param, ctx)


local_look = click.option(
    "--local", is_flag=True, help="Look at the server that --local keeps (unless REDIS_URL is set)."
)
"""For commands that look at what a server keeps and need no worker."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A command line, read."""

    plans: tuple[str, ...]
    output: Path | None
    force: bool
    no_wait: bool
    as_json: bool
    quiet: bool
    no_color: bool
    timeout: float | None
    priority: str | None
    expires: float | None
    jobs: int
    changes: tuple[str, ...]
    local: bool
    replay: Path | None
    continue_run: str | None
    dry_run: bool
    new: str | None
    schema: bool
    runs: bool
    state: str | None
    status: str | None
    project: str | None
    key: str | None
    limit: int
    watch: str | None
    result: str | None
    cancel: str | None
    caller: str | None
    completion: str | None


def task_of(ctx: click.Context, asked: Asked) -> str:
    """Tell what a command line asks for: the name of a task's parameter, or `SUBMIT`.

    Raises:
        click.UsageError: it asks for several things, or holds what does not go together.
    """
    given = [
        param
        for param in ctx.command.params
        if isinstance(param, Option) and ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    ]
    tasks = [param for param in given if isinstance(param, Task)]
    if len(tasks) > 1:
        raise _exclude(tasks[0], tasks[1])
    task = tasks[0].name if tasks else SUBMIT
    for param in given:
        if param.goes_with is not None and task not in param.goes_with:
            raise _exclude(param, tasks[0]) if tasks else _needs(ctx, param)
    _refuse_contradictions(asked, task, tasks[0].opts[0] if tasks else "")
    return task


def _refuse_contradictions(asked: Asked, task: str, name: str) -> None:
    if asked.replay and not asked.local:
        raise click.UsageError("--replay needs --local: a worker that runs elsewhere has its own settings")
    if asked.local and asked.no_wait:
        raise click.UsageError("--local and --no-wait exclude each other: the worker ends with this command")
    for given, other in (
        (asked.output, "--output"),
        (asked.timeout is not None, "--timeout"),
        (asked.quiet, "--quiet"),
    ):
        if asked.no_wait and given:
            raise click.UsageError(
                f"--no-wait and {other} exclude each other: it returns before anything ends"
            )
    if asked.continue_run and asked.plans:
        raise click.UsageError("--continue and PLANS exclude each other: the run's own plan goes on")
    takes_plans = {SUBMIT, "dry_run"}
    if task in takes_plans and not (asked.plans or asked.continue_run):
        raise click.UsageError(
            "give PLANS: files, quoted globs, or - for standard input; or another task, see --help"
        )
    if task == "new" and len(asked.plans) > 1:
        raise click.UsageError("--new writes one file: give one PATH")
    if task not in {*takes_plans, "new"} and asked.plans:
        raise click.UsageError(f"{name} and PLANS exclude each other")


def _exclude(one: click.Option, other: click.Option) -> click.UsageError:
    return click.UsageError(f"{one.opts[0]} and {other.opts[0]} exclude each other")


def _needs(ctx: click.Context, param: Option) -> click.UsageError:
    tasks = [
        other.opts[0]
        for other in ctx.command.params
        if isinstance(other, Task) and other.name in (param.goes_with or ())
    ]
    return click.UsageError(f"{param.opts[0]} needs {' or '.join(tasks)}")
