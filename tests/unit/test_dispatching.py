"""Celery's events are sent one by one, whatever becomes of the connection meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from kombu import Connection
from support import PATIENCE_SECONDS

from ptc_worker.app import app


class Line:
    """What events are published on; it stands still until it is let go."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.reached, self.let_go = threading.Event(), threading.Event()

    def publish(self, event: dict[str, str], **_: object) -> None:
        """Take an event."""
        self.reached.set()
        assert self.let_go.wait(PATIENCE_SECONDS)
        self.sent.append(event["type"])


def test_an_event_under_way_survives_a_lost_connection() -> None:
    """The thread that sends it runs a stage, which has nothing to do with Flower."""
    line = Line()
    # As the worker's consumer makes it where it has an event loop.
    dispatcher = app.events.Dispatcher(
        Connection("memory://"), enabled=False, buffer_group=["task"], on_send_buffered=lambda: None
    )
    dispatcher.enabled, dispatcher.producer = True, line
    with ThreadPoolExecutor(1) as stage:
        sending = stage.submit(dispatcher.send, "task-started", uuid="one")
        assert line.reached.wait(PATIENCE_SECONDS)
        dispatcher.close()
        line.let_go.set()
        sending.result(PATIENCE_SECONDS)

    assert line.sent == ["task-started"]


def test_events_that_find_no_connection_wait_for_the_next() -> None:
    """As Celery's do."""
    before, after = (app.events.Dispatcher(Connection("memory://"), enabled=False) for _ in range(2))
    before.enabled = True
    before.close()
    before.send("task-succeeded", uuid="one")
    line = Line()
    line.let_go.set()
    after.enabled, after.producer = True, line
    after.extend_buffer(before)
    after.flush()

    assert line.sent == ["task-succeeded"]
