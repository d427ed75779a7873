"""Celery's events, which Flower shows, sent one by one."""

from __future__ import annotations

from typing import Any

from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher


class AtOnce(EventDispatcher):
    """Sends each event when it comes.

    Celery 5.6 gathers a worker's events and sends them from its event loop: those that threads add while it
    sends are lost, and the last ones wait until something wakes the loop.
    """

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 as Celery has them
        """Take what Celery's takes, and leave out how events are gathered."""
        super().__init__(*args, **{**options, "buffer_group": None, "on_send_buffered": None})

    def close(self) -> None:
        """Send no more. Celery's takes the lock from a thread that is sending, whose stage would fail for it."""
        self.producer = None


class EventsAtOnce(Events):
    """An application's events, sent at once."""

    dispatcher_cls = f"{AtOnce.__module__}:{AtOnce.__qualname__}"
