"""`ptc-enqueue dead`: the runs that were given up, to be looked at and sent again."""

from __future__ import annotations

import json
from pathlib import Path

import click
from dotenv import load_dotenv

from ptc_contracts import RunNotFoundError
from roma_bridge.cli import plain_errors
from roma_bridge.summary import summary


@click.group()
@click.help_option("-h", "--help")
def dead() -> None:
    """Look at the runs that were given up, and send them again.

    A run is given up when its worker died or fell silent again and again (PTC_MAX_DELIVERIES).
    """
    load_dotenv(Path.cwd() / ".env")


@dead.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_dead(*, as_json: bool) -> None:
    """List them, the latest first."""
    from roma_bridge.client import PTC  # Celery takes 0.2 s: not for --help

    with plain_errors():
        listed = PTC().dead()
    if as_json:
        rows = [
            {"run_id": each.run_id, "died_at": each.died_at.isoformat(), "reason": each.reason}
            for each in listed
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    for each in listed:
        click.echo(f"{each.run_id}  {each.died_at:%Y-%m-%d %H:%M:%S} UTC  {each.reason}")
    if not listed:
        click.echo("no run was given up", err=True)


@dead.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON.")
def show(run: str, *, as_json: bool) -> None:
    """Show what became of RUN."""
    from roma_bridge.client import PTC  # Celery takes 0.2 s: not for --help

    with plain_errors():
        ptc = PTC()
        if run not in {each.run_id for each in ptc.dead()} or (result := ptc.store.result(run)) is None:
            raise RunNotFoundError(f"run {run!r} is not in the list of the dead")
    click.echo(result.model_dump_json(indent=2) if as_json else summary(result, None))


@dead.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print the new run as JSON.")
def retry(run: str, *, as_json: bool) -> None:
    """Submit the plan of RUN again; what was paid for is kept."""
    from roma_bridge.client import PTC  # Celery takes 0.2 s: not for --help

    with plain_errors():
        handle = PTC().revive(run)
    facts = {"run_id": handle.run_id, "key": handle.key, "joined": handle.joined}
    click.echo(json.dumps(facts) if as_json else handle.run_id or "the cache answers by now")
