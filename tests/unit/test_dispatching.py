"""What threads tell Celery's dispatcher is all sent, whatever becomes of the connection meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from kombu import Connection
from support import PATIENCE_SECONDS, until

from ptc_worker.app import app

if TYPE_CHECKING:
    from ptc_worker.dispatching import Dispatcher


class Line:
    """What events are published on; it stands still until it is let go."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.reached, self.let_go = threading.Event(), threading.Event()

    def publish(self, events: dict[str, Any] | list[dict[str, Any]], **_: object) -> None:
        """Take an event, or several."""
        self.reached.set()
        assert self.let_go.wait(PATIENCE_SECONDS)
        self.sent += [event["type"] for event in (events if isinstance(events, list) else [events])]


def on(line: Line) -> Dispatcher:
    """Make a dispatcher as a worker's consumer does where it has an event loop."""
    dispatcher: Dispatcher = app.events.Dispatcher(
        Connection("memory://"), buffer_group=["task"], on_send_buffered=lambda: None
    )
    dispatcher.producer = line  # type: ignore[assignment]
    return dispatcher


def test_what_is_told_while_events_are_sent_is_sent_next() -> None:
    """Nobody waits for it, and nothing else has to happen."""
    line = Line()
    dispatcher = on(line)
    dispatcher.send("task-received", uuid="one")
    assert line.reached.wait(PATIENCE_SECONDS)
    for kind in ("task-started", "task-succeeded"):
        dispatcher.send(kind, uuid="one")
    line.let_go.set()

    until(lambda: line.sent == ["task-received", "task-started", "task-succeeded"])
    dispatcher.close()


def test_a_worker_goes_offline_after_its_last_task() -> None:
    """What is sent at once does not overtake what was gathered."""
    line = Line()
    line.let_go.set()
    dispatcher = on(line)
    dispatcher.send("task-succeeded", uuid="one")
    dispatcher.send("worker-offline")

    assert line.sent == ["task-succeeded", "worker-offline"]
    dispatcher.close()


def test_who_sends_survives_the_end_of_the_connection() -> None:
    """Celery's own closing makes the sender fail."""
    line = Line()
    dispatcher = on(line)
    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(dispatcher.send, "worker-heartbeat")
        assert line.reached.wait(PATIENCE_SECONDS)
        dispatcher.close()
        line.let_go.set()
        sending.result(PATIENCE_SECONDS)

    assert line.sent == ["worker-heartbeat"]


def test_events_that_find_no_connection_wait_for_the_next() -> None:
    """As Celery's do."""
    before, line = on(Line()), Line()
    line.let_go.set()
    before.close()
    before.send("worker-heartbeat")
    after = on(line)
    after.extend_buffer(before)
    after.flush()

    assert line.sent == ["worker-heartbeat"]
    after.close()
