"""The workers' way to the broker: a message stays with the process that holds it, for as long as that lives.

Kombu's own transport for Redis (5.7.0) takes a message for abandoned when its task needs longer than the
visibility timeout, puts it back on its queue when a connection breaks under the task, and loses what is
acknowledged after that. Here one thread keeps all held messages invisible, closing a channel puts nothing back,
and whoever acknowledges needs no channel. What a dead process held comes back after the visibility timeout.

It suits tasks that are acknowledged late, in a pool of threads. Messages that Celery itself forgets when it
connects again (of an ETA, a rate limit, a full pool of processes) would stay invisible until the process ends.
"""

from __future__ import annotations

import threading
import time
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import structlog
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.json import dumps
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)

_BEATS = 6
"""Beats in one visibility timeout: five may be lost to a slow server."""

_ANSWER_SECONDS = 5.0
_IDLE_SECONDS = 1.0

# Whoever finds the message still held may put it back; a second attempt, after a lost reply, may not.
_SETTLE = """
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('HDEL', KEYS[1], ARGV[1]) == 1 then
    for place = 3, #KEYS do redis.call('RPUSH', KEYS[place], ARGV[2]) end
end
"""

_lock = threading.Lock()
_holding: set[QoS] = set()


class QoS(kombu_redis.QoS):
    """What one channel has delivered and nobody has settled yet; it works on when the channel is gone."""

    restore_at_shutdown = False
    channel: Any

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        super().__init__(channel, prefetch_count)
        options = {"socket_timeout": _ANSWER_SECONDS, "retry": Retry(NoBackoff(), 1)}
        self._redis = Redis(connection_pool=ConnectionPool(**channel._connparams() | options))
        self._script = self._redis.register_script(_SETTLE)
        self._prefix = channel.global_keyprefix
        self._keys = [self._prefix + channel.unacked_key, self._prefix + channel.unacked_index_key]
        self._since = time.monotonic()
        self._routes: dict[tuple[str, str], list[str]] = {}
        self._held: set[str] = set()
        self._unsettled: dict[str, tuple[Callable[[], object], float]] = {}

    def append(self, message: Any, delivery_tag: str) -> None:
        """Hold a message, and keep it invisible from now on."""
        super().append(message, delivery_tag)
        route = message.delivery_info["exchange"], message.delivery_info["routing_key"]
        if route not in self._routes:
            self._routes[route] = list(self.channel._lookup(*route))  # while the channel lives
        with _lock:
            self._held.add(delivery_tag)
            _holding.add(self)
            _start_beating()

    def ack(self, delivery_tag: str) -> None:
        """Remove a message for good, as soon as the server answers."""
        self._settle(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 kombu's signature
        """Remove a message, or put it back where BRPOP takes it next: at the right end of its list."""
        if not requeue:
            return self._settle(delivery_tag)
        message = self.get(delivery_tag)._raw
        delivery = message["properties"]["delivery_info"]
        message["headers"]["redelivered"] = delivery["redelivered"] = True
        priority = self.channel._get_message_priority(message)
        queues = self._routes[delivery["exchange"], delivery["routing_key"]]
        places = [self._prefix + self.channel._q_for_pri(queue, priority) for queue in queues]
        return self._settle(delivery_tag, *places, payload=dumps(message))

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Bring back what dead processes held, once all living ones had time to beat after an outage."""
        if time.monotonic() - self._since < self.visibility_timeout / 2:
            return
        self.beat()  # this process may have slept, with its machine
        super().restore_visible(*args, **kwargs)

    def beat(self) -> None:
        """Settle what could not be settled before, and renew the rest, unless somebody has brought it back."""
        with _lock:
            unsettled, held = dict(self._unsettled), list(self._held)
        for tag, (settle, until) in unsettled.items():
            self._attempt(tag, settle, until)
        if not held:
            return
        try:
            self._redis.zadd(self._keys[1], dict.fromkeys(held, time.time()), xx=True)
        except (RedisError, OSError) as error:
            log.warning("messages_not_renewed", messages=len(held), error=type(error).__name__)

    def _settle(self, tag: str, *places: str, payload: str = "") -> None:
        virtual.QoS.ack(self, tag)  # the channel may fetch another one at once
        settle = partial(self._script, keys=[*self._keys, *places], args=[tag, payload])
        self._attempt(tag, settle, time.monotonic() + self.visibility_timeout)

    def _attempt(self, tag: str, settle: Callable[[], object], until: float) -> None:
        try:
            settle()
        except (RedisError, OSError) as error:
            if time.monotonic() < until:
                with _lock:
                    self._unsettled[tag] = settle, until
                return
            log.warning("message_will_come_again", tag=tag, error=type(error).__name__)
        with _lock:
            self._unsettled.pop(tag, None)
            self._held.discard(tag)
            if not self._held:
                _holding.discard(self)


@cache
def _start_beating() -> None:
    threading.Thread(target=_beat_on, name="ptc-messages", daemon=True).start()


def _beat_on() -> None:
    pause = threading.Event()
    while True:
        with _lock:
            holding = list(_holding)
        pause.wait(min((qos.visibility_timeout / _BEATS for qos in holding), default=_IDLE_SECONDS))
        for qos in holding:
            try:
                qos.beat()
            except Exception:
                log.exception("message_beat_failed")  # a thread that ended here would be missed by nobody


class Channel(kombu_redis.Channel):
    """A channel that keeps its messages."""

    QoS = QoS


class Transport(kombu_redis.Transport):
    """What `redis://`, `rediss://` and `redis+socket://` mean to our workers."""

    Channel = Channel
