"""Celery's events, which Flower shows, sent by a thread of their own."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher
from celery.events.event import group_from

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


class Dispatcher(EventDispatcher):
    """Gathers the events of tasks, and sends them from a thread.

    Celery 5.6 sends what it has gathered from the worker's event loop: what threads add while it sends is lost, and
    the last events wait until something wakes the loop. Threads that send for themselves would wait for each other.
    """

    buffer_group: Collection[str]
    mutex: threading.Lock
    _group_buffer: dict[str, list[dict[str, Any]]]
    _publish: Callable[..., None]

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 as Celery has them
        """Take what Celery's takes; whoever adds an event wakes our thread, and never sends."""
        self._added = threading.Event()
        self._closed = threading.Event()
        super().__init__(
            *args, **{**options, "buffer_limit": sys.maxsize, "on_send_buffered": self._added.set}
        )

    def enable(self) -> None:
        """Send from now on."""
        super().enable()
        self._closed = threading.Event()
        if self.buffer_group:
            threading.Thread(target=self._send_gathered, args=(self._closed,), daemon=True).start()

    def send(self, type: str, *args: Any, **options: Any) -> Any:  # noqa: A002, ANN401 as Celery has them
        """Send an event, or gather it; what is sent at once comes after what was gathered before."""
        if group_from(type) not in self.buffer_group:
            self.flush(errors=False)
        return super().send(type, *args, **options)

    def flush(self, errors: bool = True, groups: bool = True) -> None:  # noqa: FBT001, FBT002 as Celery has them
        """Send what was gathered, and what could not be sent before."""
        if errors:
            super().flush(groups=False)
        if groups:
            with self.mutex:
                for group, gathered in list(self._group_buffer.items()):
                    if events := gathered[:]:
                        del gathered[: len(events)]  # and not those that came since
                        self._publish(events, self.producer, f"{group}.multi")

    def close(self) -> None:
        """Send no more. Celery's takes the lock from a thread that is sending, which fails for it."""
        self._closed.set()
        self._added.set()
        self.producer = None

    def _send_gathered(self, closed: threading.Event) -> None:
        while not closed.is_set():
            self._added.wait()
            self._added.clear()
            self.flush(errors=False)


class GatheredEvents(Events):
    """An application's events, with that dispatcher."""

    dispatcher_cls = f"{Dispatcher.__module__}:{Dispatcher.__qualname__}"
