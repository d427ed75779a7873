"""`ptc-enqueue cache`: what the cache of results keeps, and what it should keep or lose."""

from __future__ import annotations

import glob
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from roma_bridge.cli.asked import Seconds, local_look
from roma_bridge.cli.endings import fail
from roma_bridge.cli.questions import answer_to

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ptc_contracts import PTCArtifactResult, PTCCacheManager, PTCExecutionPlan
    from ptc_contracts.cache import CacheEntry
    from roma_bridge.cli.plans import Given
    from roma_bridge.client import PTC
    from roma_bridge.handle import PlanHandle

_KEY = re.compile(r"[0-9a-f]{16}(:[0-9a-f]{16})?")

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def cache() -> None:
    """Look at the cache of results, fill it, and take results out of it."""


@cache.command()
@_json
@local_look
def stats(*, as_json: bool, local: bool) -> None:
    """Count results, hits and misses."""
    from roma_bridge.cli.here import server

    with server(local=local) as ptc:
        found = _ask(ptc, lambda manager: manager.get_stats())
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    hits, misses = found["hits"], found["misses"]
    click.echo(f"results  {found['cached_executions']}")
    click.echo(f"asked    {hits + misses} times: {hits} hits, {misses} misses ({found['hit_rate']:.0%} hits)")
    most = "" if found["maxmemory_human"] in {"0B", "unknown"} else f" of {found['maxmemory_human']}"
    click.echo(f"memory   {found['used_memory_human']}{most}, of the whole server")


@cache.command()
@click.argument("what", metavar="PLAN|KEY")
@_json
@local_look
def show(what: str, *, as_json: bool, local: bool) -> None:
    """Show what the cache keeps for plans' files (quoted globs, too), or under a key."""
    from roma_bridge.cli.here import server

    with server(local=local) as ptc:
        entries = _entries(ptc, _names(ptc, what))
    if not entries:
        fail(f"the cache keeps nothing for {what}", 2)
    if as_json:
        rows = [{"name": name, **entry.model_dump(mode="json")} for name, entry in entries.items()]
        click.echo(json.dumps(rows, indent=2))
        return
    from roma_bridge.cli.tables import span
    from roma_bridge.show.summary import summary
    from roma_bridge.terminal import one_line

    for name, entry in entries.items():
        lifetime = "" if entry.meta.ttl is None else f", kept for {span(entry.meta.ttl)}"
        click.echo(
            f"{name}: {span(entry.meta.age_seconds)} old{lifetime}, from {one_line(entry.result.execution_id)}"
        )
        click.echo(summary(entry.result, None))


@cache.command()
@click.argument("what", metavar="PLAN|KEY...", nargs=-1, required=True)
@_json
@local_look
def invalidate(what: Sequence[str], *, as_json: bool, local: bool) -> None:
    """Take the results of plans' files (quoted globs, too), or under keys, out of the cache."""
    from roma_bridge.cli.here import server

    with server(local=local) as ptc:
        names = [name for each in what for name in _names(ptc, each)]
        removed = _remove(ptc, names)
    if as_json:
        click.echo(json.dumps({"removed": removed}))
    else:
        click.echo("\n".join(f"removed {name}" for name in removed) or "the cache kept nothing of these")


@cache.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@_json
@local_look
def clear(*, yes: bool, as_json: bool, local: bool) -> None:
    """Take all results out of the cache; runs and paid answers stay."""
    from roma_bridge.cli.here import server

    if not yes and (sys.stdin is None or not sys.stdin.isatty()):
        raise click.UsageError("cache clear asks on a terminal; elsewhere it needs --yes")
    with server(local=local) as ptc:
        removed = _ask(ptc, lambda manager: manager.clear_all()) if yes or _wanted(ptc) else 0
    click.echo(json.dumps({"removed": removed}) if as_json else f"removed {removed or 'no'} results")


def _wanted(ptc: PTC) -> bool:
    kept = _ask(ptc, lambda manager: manager.get_stats())["cached_executions"]
    question = f"Take all {kept} results out of the cache of {ptc.settings.shown}? [y/N]: "
    return answer_to(question) in {"y", "yes"}


@cache.command()
@click.argument("plans", nargs=-1, required=True, type=click.Path(allow_dash=True))
@click.option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help="Change a field of every plan.")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=8, show_default=True, help="Most plans under way at a time."
)
@click.option(
    "--timeout", type=Seconds(min=0), metavar="SECONDS", help="Wait at most so long; the runs go on."
)
@click.option(
    "--expires",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End a run as TIMEOUT if no worker begins it within so many seconds (default: PTC_EXPIRES, or never).",
)
@click.option(
    "--local", is_flag=True, help="Start a server (unless REDIS_URL is set) and a worker for the time."
)
@click.option("--quiet", "-q", is_flag=True, help="No progress on standard error.")
@click.option("--json", "as_json", is_flag=True, help="Print rows and totals as JSON.")
def warm(
    plans: Sequence[str],
    changes: Sequence[str],
    *,
    jobs: int,
    timeout: float | None,
    expires: float | None,
    local: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Submit PLANS so that the cache answers whoever submits them later; no files are written."""
    from roma_bridge.cli.endings import worst
    from roma_bridge.cli.here import place
    from roma_bridge.cli.jobs import Jobs
    from roma_bridge.cli.plans import read
    from roma_bridge.cli.submitting import finish
    from roma_bridge.cli.tables import batch_table, totals

    given = read(plans, changes, _cacheable)
    with place(local=local) as where:
        options = {"expires": expires}
        batch = Jobs(where.ptc, given, jobs, _keep, options, quiet=quiet, brings_worker=where.brings_worker)
        finish(batch, where, timeout)
    rows = batch.all_rows
    if as_json:
        document = {"plans": [row.as_object() for row in rows], "totals": totals(rows, "warm")}
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo(batch_table(rows, "warm"))
    sys.exit(worst(row.exit_code for row in rows))


def _keep(given: Given, handle: PlanHandle, result: PTCArtifactResult) -> None:
    """Store a good result that the cache does not keep: an earlier run's, perhaps, that was taken out of it since.

    Raises:
        UnwritableError: the cache does not take it.
    """
    from ptc_contracts import ExecutionStatus, PTCError
    from ptc_contracts.keys import cache_names
    from roma_bridge.files import UnwritableError
    from roma_bridge.handle import PlanHandle

    ptc, plan = handle.ptc, given.plan
    if result.status is not ExecutionStatus.SUCCESS:
        return
    try:
        if any(entry.serves(plan) for entry in _entries(ptc, cache_names(plan)).values()):
            return
        whole = PlanHandle.of(handle.run_id, ptc).get(timeout=0)  # a joiner's leaves out what it cost
        stored = _ask(ptc, lambda manager: manager.set(plan, whole))
    except PTCError as error:
        raise UnwritableError(f"the cache does not keep it: {error}") from None
    if not stored:
        raise UnwritableError("the cache does not keep it: the server refuses it")


def _cacheable(plan: PTCExecutionPlan) -> None:
    """Refuse a plan whose result no cache keeps.

    Raises:
        InvalidPlanError: it is one.
    """
    from ptc_contracts import CacheStrategy, InvalidPlanError

    if plan.cache_strategy is CacheStrategy.NEVER:
        raise InvalidPlanError("cache_strategy: never keeps no result, so there is nothing to warm")
    if plan.cache_ttl == 0:
        raise InvalidPlanError("cache_ttl: 0 keeps no result, so there is nothing to warm")


def _ask(ptc: PTC, question: Callable[[PTCCacheManager], Awaitable[Any]]) -> Any:  # noqa: ANN401 as is answered
    """Ask the cache's manager, which says nothing of a server that is away; we do.

    Raises:
        ServerUnavailableError: Redis cannot be reached.
    """
    import asyncio

    from redis.asyncio import Redis

    from ptc_contracts import PTCCacheManager

    async def asked() -> Any:  # noqa: ANN401 as is answered
        manager = PTCCacheManager(Redis.from_url(ptc.settings.url))
        try:
            return await question(manager)
        finally:
            await manager.close()

    ptc.ping()
    return asyncio.run(asked())


def _names(ptc: PTC, what: str) -> list[str]:
    """Name the cache entries of plans' files, or those under a key, those with a fingerprint included.

    Raises:
        InvalidPlanError: it is no key, and no file with plans.
    """
    from ptc_contracts import InvalidPlanError
    from ptc_contracts.keys import EXEC_PREFIX, cache_names
    from roma_bridge.cli.plans import read
    from roma_bridge.reaching import reaching

    if not _KEY.fullmatch(what):
        if what != "-" and not Path(what).exists() and not glob.has_magic(what):
            raise InvalidPlanError(f"{what!r} is no file, and no key: that has 16 hex digits")
        return [name for given in read([what]) for name in cache_names(given.plan)]
    with reaching(ptc.settings):
        marked = [*ptc.store.redis.scan_iter(match=f"{EXEC_PREFIX}{what}:*", count=500)]
    return [what, *sorted(key.decode().removeprefix(EXEC_PREFIX) for key in marked)]


def _entries(ptc: PTC, names: Sequence[str]) -> dict[str, CacheEntry]:
    from ptc_contracts.cache import CacheEntry
    from ptc_contracts.keys import exec_key, meta_key
    from roma_bridge.reaching import reaching

    redis = ptc.store.redis
    with reaching(ptc.settings):
        found = {name: CacheEntry.parse(*redis.mget(exec_key(name), meta_key(name))) for name in names}
    return {name: entry for name, entry in found.items() if entry}


def _remove(ptc: PTC, names: Sequence[str]) -> list[str]:
    from ptc_contracts.keys import exec_key, meta_key
    from roma_bridge.reaching import reaching

    with reaching(ptc.settings):
        return [name for name in names if ptc.store.redis.delete(exec_key(name), meta_key(name))]
