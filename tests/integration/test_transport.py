"""Messages under faults: kombu's own transport repeats or misplaces them where ours does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from cluster import Worker
from kombu import Connection, Exchange, Producer, Queue
from kombu.transport import TRANSPORT_ALIASES
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from support import PATIENCE_SECONDS, until

from roma_bridge.embedded import embedded_server, server_program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ptc_contracts.settings import RedisSettings

KOMBU, OURS = "kombu", "ours"
ALIASES = {KOMBU: "kombu.transport.redis:Transport", OURS: "ptc_worker.transport:Transport"}
OPTIONS = {
    "global_keyprefix": "test:",
    "visibility_timeout": 4,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}
APPLICATION = f"""
import os, pathlib, time
from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

TRANSPORT_ALIASES.update({ALIASES})
folder = pathlib.Path(__file__).parent
app = Celery(broker=os.environ["BROKER_URL"])
app.conf.update(
    broker_transport_options={OPTIONS}, broker_connection_max_retries=None, broker_connection_retry_on_startup=True,
    task_acks_late=True, worker_prefetch_multiplier=1, worker_pool="threads", worker_concurrency=4,
    worker_cancel_long_running_tasks_on_connection_loss=False,
)

@app.task(name="work", ignore_result=True)
def work(name):
    with (folder / (name + ".starts")).open("a") as starts:
        starts.write("started\\n")
    while not (folder / (name + ".end")).exists():
        time.sleep(0.02)
"""


@dataclass
class Broker:
    """A server, and workers whose tasks run until the test ends them."""

    settings: RedisSettings
    folder: Path
    workers: list[Worker] = field(default_factory=list)
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def redis(self) -> Redis:
        """A look into the server, without patience."""
        once = Retry(NoBackoff(), 0)
        return Redis.from_url(self.settings.url, retry=once, decode_responses=True)

    def url(self, transport: str) -> str:
        """The server's address for a transport."""
        return self.settings.celery_url.replace("redis+socket", f"{transport}+socket")

    def start_worker(self, transport: str) -> Worker:
        """Start a worker and wait until it consumes."""
        log = self.folder / f"worker-{len(self.workers)}.log"
        options = ("-n", f"{log.stem}@test", "--without-mingle", "--without-gossip", "-l", "INFO")
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "application", "worker", *options],
                env={**os.environ, "BROKER_URL": self.url(transport)},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        worker = Worker(name=log.stem, process=process, log=log)
        self.workers.append(worker)
        until(lambda: " ready." in log.read_text())
        return worker

    def send(self, name: str, queue: str = "celery") -> None:
        """Ask for a task."""
        with Celery(broker=self.url(KOMBU), set_as_current=False) as app:
            app.conf.broker_transport_options = OPTIONS
            app.send_task("work", (name,), queue=queue)

    def starts(self, name: str) -> int:
        """Count how often a task was begun."""
        log = self.folder / f"{name}.starts"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def begin(self, name: str) -> None:
        """Have a worker begin a task."""
        self.send(name)
        until(lambda: self.starts(name) == 1)

    def end(self, name: str) -> None:
        """Let a task end, now or as soon as it begins."""
        (self.folder / f"{name}.end").touch()

    def pass_visibility_timeout(self) -> None:
        """Return once a message came back that a dead process took a second from now."""
        name = f"abandoned-{time.monotonic_ns()}"
        self.end(name)
        self.send(name, queue="nobody")
        raw = json.loads(str(self.redis.rpop("test:nobody")))
        tag = raw["properties"]["delivery_tag"]
        self.redis.hset("test:unacked", tag, json.dumps([raw, "celery", "celery"]))
        self.redis.zadd("test:unacked_index", {tag: time.time() + 1})
        until(lambda: self.starts(name) > 0)

    def held(self) -> int:
        """Count the messages that somebody holds."""
        return self.redis.hlen("test:unacked") + self.redis.zcard("test:unacked_index")

    def kill_server(self) -> None:
        """End the server as the out-of-memory killer does."""
        os.kill(int(self.redis.info("server")["process_id"]), signal.SIGKILL)
        until(lambda: not self.answers())

    def start_server(self) -> None:
        """Start it again, with what it has written."""
        configuration = self.folder / "server" / "server.conf"
        self.servers.append(
            subprocess.Popen([server_program(), str(configuration)], stdout=subprocess.DEVNULL)
        )
        until(self.answers)

    def answers(self) -> bool:
        """Tell whether the server can be used."""
        try:
            return bool(self.redis.ping())
        except RedisError:
            return False


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    """A server of this test alone, and the application that its workers serve."""
    for alias, transport in ALIASES.items():
        monkeypatch.setitem(TRANSPORT_ALIASES, alias, transport)
    (tmp_path / "application.py").write_text(APPLICATION)
    with embedded_server(tmp_path / "server", dies_with_us=True) as settings:
        running = Broker(settings=settings, folder=tmp_path)
        try:
            yield running
        finally:
            for worker in running.workers:
                worker.process.kill()
                worker.process.wait()
    for server in running.servers:
        server.wait()


@contextmanager
def queue_on(broker: Broker, transport: str, *messages: str) -> Iterator[Any]:
    """Publish messages, and give the queue on a channel of that transport."""
    with Connection(broker.url(transport), transport_options=OPTIONS) as connection:
        channel = connection.channel()
        queue = Queue("letters", Exchange("post"), routing_key="letters")(channel)
        queue.declare()
        for message in messages:
            Producer(channel).publish(message, exchange="post", routing_key="letters")
        yield queue


def taken(queue: Any) -> Any:
    """Take the next message of a queue."""
    message = queue.get()
    assert message is not None
    return message


@pytest.mark.parametrize(("transport", "once"), [(KOMBU, False), (OURS, True)])
def test_a_task_may_run_longer_than_the_visibility_timeout(
    broker: Broker, transport: str, *, once: bool
) -> None:
    """With two workers on the queue, it runs once."""
    for _ in range(2):
        broker.start_worker(transport)
    broker.begin("long")

    broker.pass_visibility_timeout()

    assert (broker.starts("long") == 1) is once
    broker.end("long")
    until(lambda: broker.held() == 0)


@pytest.mark.parametrize(("transport", "once"), [(KOMBU, False), (OURS, True)])
def test_a_broken_connection_repeats_no_task(broker: Broker, transport: str, *, once: bool) -> None:
    """The task that runs is acknowledged when it ends, and the worker goes on."""
    broker.start_worker(transport)
    broker.begin("interrupted")

    for kind in ("normal", "pubsub"):
        broker.redis.client_kill_filter(_type=kind, skipme=True)
    broker.begin("next")

    assert (broker.starts("interrupted") == 1) is once
    for name in ("interrupted", "next"):
        broker.end(name)
    until(lambda: broker.held() == 0)


@pytest.mark.parametrize("ends", ["during the outage", "after it"])
def test_a_restarted_server_repeats_no_task(broker: Broker, ends: str) -> None:
    """Whether it ends while the server is away or later, the task is acknowledged, and the worker goes on."""
    worker = broker.start_worker(OURS)
    broker.begin("interrupted")

    broker.kill_server()
    if ends == "during the outage":
        broker.end("interrupted")
        until(lambda: "succeeded" in worker.log.read_text())
    broker.start_server()
    broker.begin("next")

    assert (broker.starts("interrupted"), worker.process.poll()) == (1, None)
    for name in ("interrupted", "next"):
        broker.end(name)
    until(lambda: broker.held() == 0)


@pytest.mark.parametrize(("transport", "once"), [(KOMBU, False), (OURS, True)])
def test_a_worker_that_ends_politely_keeps_its_task(broker: Broker, transport: str, *, once: bool) -> None:
    """However long its last task takes, nobody else begins it."""
    leaving = broker.start_worker(transport)
    broker.begin("long")
    broker.start_worker(transport)
    leaving.process.terminate()
    until(lambda: "Warm shutdown" in leaving.log.read_text())

    broker.pass_visibility_timeout()

    assert (broker.starts("long") == 1) is once
    broker.end("long")
    until(lambda: broker.held() == 0)
    assert leaving.process.wait(PATIENCE_SECONDS) == 0


def test_what_a_dead_worker_held_comes_back(broker: Broker) -> None:
    """After the visibility timeout another worker begins it."""
    doomed = broker.start_worker(OURS)
    broker.begin("long")
    broker.start_worker(OURS)

    doomed.kill()

    until(lambda: broker.starts("long") == 2)
    broker.end("long")
    until(lambda: broker.held() == 0)


@pytest.mark.parametrize(("transport", "following"), [(KOMBU, "second"), (OURS, "first")])
def test_a_message_that_is_put_back_comes_next(broker: Broker, transport: str, following: str) -> None:
    """It has waited its time already."""
    with queue_on(broker, transport, "first", "second") as queue:
        taken(queue).requeue()

        again = taken(queue)
        again.ack()

    assert again.payload == following


def test_a_message_can_be_put_back_when_its_channel_is_closed(broker: Broker) -> None:
    """Closing puts nothing back; the task does, and others may have the message at once."""
    with queue_on(broker, OURS, "letter") as queue:
        message = taken(queue)
    assert (broker.redis.llen("test:letters"), broker.held()) == (0, 2)

    message.requeue()

    with queue_on(broker, OURS) as queue:
        again = taken(queue)
        again.ack()
    assert (again.payload, again.properties["delivery_info"]["redelivered"]) == ("letter", True)
    assert broker.held() == 0


def test_a_settlement_waits_for_the_server(broker: Broker) -> None:
    """What is acknowledged in an outage is gone after it, and the channel may fetch another message at once."""
    with queue_on(broker, OURS, "letter") as queue:
        qos = queue.channel.qos
        qos.prefetch_count = 1
        message = taken(queue)
        assert not qos.can_consume()

        broker.kill_server()
        settling = threading.Thread(target=message.ack)
        settling.start()
        settling.join()

        assert qos.can_consume()
        broker.start_server()
        until(lambda: broker.held() == 0)


def test_what_others_brought_back_is_not_held_again(broker: Broker) -> None:
    """A process that was frozen for too long beats for what it lost, and nothing comes of it."""
    with queue_on(broker, OURS, "lost", "kept") as queue, queue_on(broker, KOMBU) as others:
        lost, kept = taken(queue), taken(queue)
        others.channel.qos.restore_by_tag(lost.delivery_tag)

        for _ in range(2):
            renewed = broker.redis.zscore("test:unacked_index", kept.delivery_tag)
            until(lambda: broker.redis.zscore("test:unacked_index", kept.delivery_tag) != renewed)  # noqa: B023

        assert broker.redis.zscore("test:unacked_index", lost.delivery_tag) is None
        lost.ack()
        kept.ack()


@pytest.mark.parametrize(("transport", "held"), [(KOMBU, 0), (OURS, 2)])
def test_an_outage_is_held_against_nobody(broker: Broker, transport: str, held: int) -> None:
    """Who connects after a long one leaves all messages to those that may still hold them, for a few beats."""
    with queue_on(broker, transport, "letter") as queue:
        message = taken(queue)
        broker.redis.zadd("test:unacked_index", {message.delivery_tag: 0})

        with queue_on(broker, transport) as others:
            others.channel.qos.restore_visible(interval=1)

        assert broker.held() == held
        message.ack()


@pytest.mark.parametrize("url", ["redis://host/1", "rediss://host", "unix:///socket?db=1"])
def test_the_worker_uses_it_for_every_address(url: str) -> None:
    """Kombu finds it by the address's scheme."""
    program = "from ptc_worker import app; print(app.connection_for_read().get_transport_cls())"

    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "REDIS_URL": url}, capture_output=True, check=True
    )

    assert b"ptc_worker.transport.Transport" in done.stdout
