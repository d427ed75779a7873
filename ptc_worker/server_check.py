"""What a worker demands of its Redis server: one that can do what PTC needs, and that forgets nothing by itself."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from celery.bootsteps import StartStopStep
from celery.worker.state import maybe_shutdown
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from ptc_contracts import ConfigurationError
from ptc_contracts.settings import RedisSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

log = structlog.get_logger(__name__)

OLDEST_VERSION = (6, 2)
"""Celery 5.6 and our scripts need Redis 6.2; every Valkey calls itself Redis 7.2."""

_PATIENCE_SECONDS = 3.0
_PAUSE_SECONDS = 0.25


class Findings(NamedTuple):
    """What is wrong with a server."""

    refusals: list[str]
    """Why no worker should use it."""
    warnings: list[str]
    """What may cost a run or a model call one day."""


def problems(info: Mapping[str, Any]) -> Findings:
    """Judge a server by its answer to INFO; a fact that is not told cannot be held against it."""
    version, policy = str(info.get("redis_version", "")), info.get("maxmemory_policy")
    refusals, warnings = [], []
    if () < _numbers(version) < OLDEST_VERSION:
        refusals.append(f"Redis {version} is too old: PTC needs Redis 6.2 or newer, or Valkey")
    if info.get("cluster_enabled"):
        refusals.append("the server is a Redis Cluster, which Celery cannot use: set `cluster-enabled no`")
    if info.get("role") == "slave":
        refusals.append("the server is a replica, which cannot be written to: let REDIS_URL name its primary")
    if policy is None:
        warnings.append(
            "maxmemory-policy cannot be read: make sure that it is `noeviction`, any other drops runs when memory is full"
        )
    elif policy != "noeviction":
        refusals.append(
            f"maxmemory-policy is {policy}, which drops runs when memory is full: set `maxmemory-policy noeviction`"
        )
    if info.get("aof_enabled") == 0:
        warnings.append(
            "appendonly is off: should the server end, what it accepted since its last snapshot is lost, and model "
            "calls may be paid again: set `appendonly yes`"
        )
    return Findings(refusals, warnings)


def check_server(redis: Redis) -> None:
    """Look at a server, and log what may go wrong with one that can be used.

    Only INFO is asked: managed servers refuse CONFIG.

    Raises:
        ConfigurationError: it must not be used; each line of the message is a reason and the way out.
        redis.exceptions.ConnectionError, redis.exceptions.TimeoutError: it cannot be reached.
    """
    try:
        found = problems(redis.info())
    except ResponseError as error:
        log.warning("server_not_checked", reason=str(error))
        return
    if found.refusals:
        raise ConfigurationError("\n".join(found.refusals))
    for warning in found.warnings:
        log.warning("server_may_forget", reason=warning)


class ServerCheck(StartStopStep):
    """Waits for the server and checks it before the worker connects to consume; Celery starts its consumer last."""

    def start(self, parent: object) -> None:  # noqa: ARG002 Celery hands over the worker
        """Return once there is a server that can be used; a signal ends the wait as it ends a worker.

        Raises:
            SystemExit: the server must not be used.
        """
        settings = RedisSettings.from_environment()
        said = ""
        with _client(settings) as redis:
            while True:
                maybe_shutdown()
                try:
                    return check_server(redis)
                except ConfigurationError as error:
                    raise SystemExit("\n".join(f"ptc-worker: {s}" for s in str(error).splitlines())) from None
                except (RedisConnectionError, RedisTimeoutError) as error:
                    if str(error) != said:
                        said = str(error)
                        hint = "set REDIS_PASSWORD" if isinstance(error, AuthenticationError) else "start it"
                        log.warning("waiting_for_server", server=settings.shown, reason=said, way_out=hint)
                time.sleep(_PAUSE_SECONDS)


def _client(settings: RedisSettings) -> Redis:
    """Connect without retries, so that a signal need not wait for them."""
    return Redis.from_url(
        settings.url,
        socket_timeout=_PATIENCE_SECONDS,
        socket_connect_timeout=_PATIENCE_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
