"""The command line itself: its options, and who does what they ask for."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from roma_bridge.cli.asked import SUBMIT, Asked, Option, Seconds, Task, Text, task_of
from roma_bridge.cli.cache import cache
from roma_bridge.cli.dead import dead
from roma_bridge.cli.endings import EXIT_CODES, WORST_FIRST, fail, plain_errors
from roma_bridge.cli.outlets import lasting_outlets
from roma_bridge.cli.shells import PROGRAM, SHELLS, completed_plans, script

_PLANS = "enqueue"
"""The command that is meant where none is named."""

_PLANS_IN, _OUT, _RUNS, _MORE = "Plans", "Output", "Runs", "More"
_DOING = (SUBMIT, "dry_run")
_TOLD = (*_DOING, "runs", "result", "watch", "cancel")
_FILES = (SUBMIT, "result", "watch")


class _Program(click.Group):
    """Commands; a first word that is none of them is a plan, or an option of what is done with plans."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put in the command that is meant where none is named."""
        named = bool(args) and args[0] in self.commands
        return super().parse_args(ctx, args if named else [_PLANS, *args])

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 as click's own
        """Read `.env` before any command does its work; whatever ends one early is told alike."""
        with plain_errors():
            _read_dotenv()
            if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
                ctx.color = False
            return super().invoke(ctx)


def _read_dotenv() -> None:
    from dotenv import load_dotenv

    try:
        load_dotenv(Path.cwd() / ".env")
    except (OSError, ValueError) as error:
        fail(f".env cannot be read: {'it is not UTF-8' if isinstance(error, UnicodeError) else error}", 2)


class _AsTheProgram(click.Context):
    """A context whose messages name the program alone, as its user did."""

    @property
    def command_path(self) -> str:
        return PROGRAM


class _Enqueue(click.Command):
    """A command whose options stand below heads, with the program's other commands after them."""

    context_class = _AsTheProgram

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each section, then the commands."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for section in (_PLANS_IN, _OUT, _RUNS, _MORE):
            options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
            found = [
                param.get_help_record(ctx) for param in options if getattr(param, "section", _MORE) == section
            ]
            sections[section] = [record for record in found if record]
        commands = [
            (f"{name} {'|'.join(command.commands)}", command.get_short_help_str(90))
            for name, command in sorted(program.commands.items())
            if isinstance(command, click.Group)
        ]
        for title, records in [*sections.items(), ("Commands", commands)]:
            with formatter.section(title):
                formatter.write_dl(records)


@click.group(
    cls=_Program,
    add_help_option=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
def program() -> None:
    """Do what a command line asks for."""


program.add_command(cache)
program.add_command(dead)

_EPILOG = "\n".join(
    [
        "\b\nExit codes:",
        *(f"{code:4} {meaning}" for code, meaning in EXIT_CODES.items()),
        f"Where several apply, as with several plans: the first of {', '.join(map(str, WORST_FIRST))}.",
    ]
)


@program.command(_PLANS, cls=_Enqueue, hidden=True, epilog=_EPILOG)
@click.argument(
    "plans", nargs=-1, metavar="[PLANS]...", type=click.Path(allow_dash=True), shell_complete=completed_plans
)
@click.option(
    "--set",
    "changes",
    cls=Option,
    section=_PLANS_IN,
    goes_with=(*_DOING, "new"),
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change a field of every plan: max_iterations=5, scaffolding.context='…'.",
)
@click.option(
    "--dry-run",
    cls=Task,
    section=_PLANS_IN,
    is_flag=True,
    help="Submit nothing: check the plans, show their keys, what would answer them and what that may cost.",
)
@click.option(
    "--new",
    cls=Task,
    section=_PLANS_IN,
    metavar="SENTENCE",
    help="Write a plan file from what is to be built; PLANS names it (default: after the sentence).",
)
@click.option("--schema", cls=Task, section=_PLANS_IN, is_flag=True, help="Print the JSON schema of a plan.")
@click.option(
    "--continue",
    "continue_run",
    cls=Option,
    section=_PLANS_IN,
    goes_with=_DOING,
    metavar="RUN",
    help="In place of PLANS: a new run of RUN's plan that starts from the files of RUN and knows how its tests ended.",
)
@click.option(
    "--jobs",
    cls=Option,
    section=_PLANS_IN,
    goes_with=(SUBMIT,),
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Most plans under way at a time.",
)
@click.option(
    "--priority",
    cls=Option,
    section=_PLANS_IN,
    goes_with=(SUBMIT,),
    type=click.Choice(["high", "normal", "low"]),
    help="Which runs go first, of those that nobody has begun (default: normal).",
)
@click.option(
    "--expires",
    cls=Option,
    section=_PLANS_IN,
    goes_with=(SUBMIT,),
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End a run as TIMEOUT if no worker begins it within so many seconds (default: PTC_EXPIRES, or never).",
)
@click.option(
    "--local",
    cls=Option,
    section=_PLANS_IN,
    goes_with=_TOLD,
    is_flag=True,
    help="Do it all here: start a server (unless REDIS_URL is set) and a worker for the time of this command.",
)
@click.option(
    "--replay",
    cls=Option,
    section=_PLANS_IN,
    goes_with=(SUBMIT,),
    type=click.Path(path_type=Path, exists=True),
    help="With --local: answer from recordings instead of asking a model.",
)
@click.option(
    "--output",
    cls=Option,
    section=_OUT,
    goes_with=_FILES,
    type=click.Path(path_type=Path, file_okay=False),
    help="Write files below this directory, of several plans each in one named after its execution_id "
    "(default: one named after the run).",
)
@click.option(
    "--force",
    cls=Option,
    section=_OUT,
    goes_with=(*_FILES, "new", "cancel"),
    is_flag=True,
    help="Replace files that exist; with --cancel: stop the run even if others wait.",
)
@click.option(
    "--json",
    "as_json",
    cls=Option,
    section=_OUT,
    goes_with=_TOLD,
    is_flag=True,
    help="Print JSON on standard output, of several plans one document a line as they end; write files only with "
    "--output.",
)
@click.option(
    "--quiet",
    "-q",
    cls=Option,
    section=_OUT,
    goes_with=(SUBMIT, "watch"),
    is_flag=True,
    help="No progress on standard error.",
)
@click.option(
    "--no-color",
    cls=Option,
    section=_OUT,
    is_flag=True,
    help="No colours; NO_COLOR in the environment does the same.",
)
@click.option(
    "--no-wait",
    cls=Option,
    section=_OUT,
    goes_with=(SUBMIT,),
    is_flag=True,
    help="Submit, print each run's id and return.",
)
@click.option(
    "--timeout",
    cls=Option,
    section=_OUT,
    goes_with=(SUBMIT, "watch"),
    type=Seconds(min=0),
    metavar="SECONDS",
    help="Wait at most so many seconds; the runs go on.",
)
@click.option("--runs", cls=Task, section=_RUNS, is_flag=True, help="List runs, the newest first.")
@click.option(
    "--state",
    cls=Option,
    section=_RUNS,
    goes_with=("runs",),
    type=click.Choice(["queued", "running", "ended"]),
    help="With --runs: those in this state.",
)
@click.option(
    "--status",
    cls=Option,
    section=_RUNS,
    goes_with=("runs",),
    type=click.Choice(["SUCCESS", "PARTIAL_SUCCESS", "FAILURE", "TIMEOUT"], case_sensitive=False),
    help="With --runs: those that ended so.",
)
@click.option(
    "--project",
    cls=Option,
    section=_RUNS,
    goes_with=("runs",),
    type=Text(),
    help="With --runs: those of this project_name.",
)
@click.option(
    "--key",
    cls=Option,
    section=_RUNS,
    goes_with=("runs",),
    type=Text(),
    help="With --runs: those of plans with this key.",
)
@click.option(
    "--limit",
    cls=Option,
    section=_RUNS,
    goes_with=("runs",),
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="With --runs: at most so many.",
)
@click.option(
    "--watch",
    cls=Task,
    section=_RUNS,
    metavar="RUN",
    help="Follow a run to its end; files only with --output.",
)
@click.option(
    "--result", cls=Task, section=_RUNS, metavar="RUN", help="Show how a run ended; files only with --output."
)
@click.option("--cancel", cls=Task, section=_RUNS, metavar="RUN", help="Stop a run.")
@click.option(
    "--caller",
    cls=Option,
    section=_RUNS,
    goes_with=("cancel",),
    metavar="EXECUTION_ID",
    help="With --cancel: who no longer wants the run; it stops when the last one leaves.",
)
@click.option(
    "--completion",
    cls=Task,
    section=_MORE,
    type=click.Choice(SHELLS),
    help="Print a script that lets the shell complete this command; it tells how to use it.",
)
@click.version_option(package_name="ptc-worker", prog_name=PROGRAM)
@click.pass_context
def enqueue(ctx: click.Context, /, **options: Any) -> None:  # noqa: ANN401 what click has read, by name
    """Submit PLANS, wait for them, and write the files they made.

    PLANS are JSON files, with one plan or one a line (.jsonl), quoted globs, or - for standard input. All are
    checked before any is submitted. Settings come from the environment and from .env in the working directory.
    Progress goes to standard error; summary, table or JSON to standard output.

    A plan that is sent again under its execution_id within 15 minutes of its end gets the result it had.
    """
    asked = Asked(**options)
    if asked.no_color:
        os.environ["NO_COLOR"] = "1"  # for whoever else draws here
        ctx.color = False
    sys.exit(_done(task_of(ctx, asked), asked))


def _done(task: str, asked: Asked) -> int:
    """Do what is asked for and return the exit code; Pydantic and Redis take a second to import: not for --help."""
    if asked.completion:
        click.echo(script(program, asked.completion))
        return 0
    if task in {"new", "schema"}:
        from roma_bridge.cli import authoring

        return authoring.schema() if asked.schema else authoring.new(asked)
    if task == "dry_run":
        from roma_bridge.cli.foresight import foresee

        return foresee(asked)
    if task == SUBMIT:
        from roma_bridge.cli.submitting import submit

        return submit(asked)
    from roma_bridge.cli import runs

    tasks = {"runs": runs.listed, "watch": runs.watched, "result": runs.shown, "cancel": runs.cancelled}
    return tasks[task](asked)


def main() -> None:
    """Run the command."""
    with lasting_outlets():
        program.main(prog_name=PROGRAM)


if __name__ == "__main__":
    main()
