"""`ptc-enqueue dead`: the runs that were given up, to be looked at and sent again."""

from __future__ import annotations

import json

import click

from roma_bridge.cli.asked import local_look


@click.group()
def dead() -> None:
    """Look at the runs that were given up, and send them again.

    A run is given up when its worker died or fell silent again and again (PTC_MAX_DELIVERIES).
    """


@dead.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@local_look
def list_dead(*, as_json: bool, local: bool) -> None:
    """List them, the latest first."""
    from roma_bridge.cli.here import server

    with server(local=local) as ptc:
        listed = ptc.dead()
    if as_json:
        rows = [
            {"run_id": each.run_id, "died_at": each.died_at.isoformat(), "reason": each.reason}
            for each in listed
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    from roma_bridge.terminal import one_line

    for each in listed:
        click.echo(one_line(f"{each.run_id}  {each.died_at:%Y-%m-%d %H:%M:%S} UTC  {each.reason}"))
    if not listed:
        click.echo("no run was given up", err=True)


@dead.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON.")
@local_look
def show(run: str, *, as_json: bool, local: bool) -> None:
    """Show what became of RUN."""
    from ptc_contracts import RunNotFoundError
    from roma_bridge.cli.here import server
    from roma_bridge.reaching import reaching
    from roma_bridge.show.summary import summary

    with server(local=local) as ptc, reaching(ptc.settings):
        if run not in {each.run_id for each in ptc.dead()} or (result := ptc.store.result(run)) is None:
            raise RunNotFoundError(f"run {run!r} is not in the list of the dead")
    click.echo(result.model_dump_json(indent=2).encode() if as_json else summary(result, None))


@dead.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print the new run as JSON.")
@local_look
def retry(run: str, *, as_json: bool, local: bool) -> None:
    """Submit the plan of RUN again; what was paid for is kept."""
    from roma_bridge.cli.here import hint, server

    with server(local=local) as ptc:
        handle = ptc.revive(run)
    facts = {"run_id": handle.run_id, "key": handle.key, "joined": handle.joined}
    click.echo(json.dumps(facts) if as_json else handle.run_id or "the cache answers by now")
    if local and handle.run_id:
        click.echo(f"left for the next --local: {hint('--watch', handle.run_id, local=True)}", err=True)
