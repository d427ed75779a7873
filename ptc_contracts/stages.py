"""The stages of a run, and the Celery message that asks for one."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple, Self

from ptc_contracts.keys import BROKER_PREFIX, RESULTS_PREFIX


class Stage(str, Enum):
    """A stage is a task (`ptc.<stage>`) and the queue that it waits in (`<stage>`)."""

    GENERATE = "generate"
    SANDBOX = "sandbox"

    @property
    def task_name(self) -> str:
        """The name of the Celery task that does this stage."""
        return f"ptc.{self.value}"


UNDER_WAY = 0
"""Priority of a run that has started: its deadline is running, so it goes before all that has not. Highest."""

_STEPS = (0, 3, 6, 9)
"""Priorities that have a list of their own; kombu's."""


class Priority(str, Enum):
    """Which runs go first, of those that nobody has started."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def step(self) -> int:
        """The priority of its messages."""
        return {"high": 3, "normal": FRESH, "low": 9}[self.value]


FRESH = 6
"""Priority of a run that nobody has started, where its callers did not say otherwise."""


class Lane(NamedTuple):
    """One list of messages, first in, first out: those of one priority in one queue."""

    stage: Stage
    priority: int

    @property
    def name(self) -> str:
        """What its keys are called after."""
        return f"{self.stage.value}:{self.priority}"

    @property
    def list_key(self) -> str:
        """The Redis list that holds its messages; the separator is kombu's."""
        suffix = f"\x06\x16{self.priority}" if self.priority else ""
        return f"{BROKER_PREFIX}{self.stage.value}{suffix}"


LANES = tuple(Lane(stage, priority) for stage in Stage for priority in _STEPS)


class Unsent(NamedTuple):
    """A message that somebody owes a run."""

    run_id: str
    stage: Stage
    key: str
    iteration: int
    sending: int
    """Which of the run's messages it is, from 1."""
    priority: int

    @classmethod
    def read(cls, answer: list[Any]) -> Self:
        """Read what a script says is owed."""
        run_id, stage, key, iteration, sending, priority = answer
        return cls(
            run_id.decode(), Stage(stage.decode()), key.decode(), int(iteration), int(sending), int(priority)
        )

    def as_task(self) -> dict[str, Any]:
        """Give the arguments for `Celery.send_task`.

        The message holds the run's id and its own number; key and iteration appear in its `kwargsrepr` alone,
        which is what Flower shows.
        """
        return {
            "name": self.stage.task_name,
            "args": (self.run_id, self.sending),
            "task_id": self.run_id,
            "queue": self.stage.value,
            "priority": self.priority,
            "argsrepr": f"({self.run_id!r},)",
            "kwargsrepr": f"{{'key': {self.key!r}, 'iteration': {self.iteration}}}",
        }


CELERY_SETTINGS: dict[str, Any] = {
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "result_accept_content": ["json"],
    "task_default_queue": Stage.GENERATE.value,
    "task_queues": {stage.value: {"exchange": "ptc", "routing_key": stage.value} for stage in Stage},
    "task_create_missing_queues": False,
    "broker_transport_options": {
        "global_keyprefix": BROKER_PREFIX,
        "priority_steps": list(_STEPS),
        # Else a server that stands still holds up whoever asks it: a client that submits, a worker that ends.
        "socket_timeout": 5.0,
        "socket_connect_timeout": 5.0,
    },
    "result_backend_transport_options": {"global_keyprefix": RESULTS_PREFIX},
}
"""What client and worker must agree on. The prefixes keep another Celery application on the same database
from restoring our messages, and us from restoring theirs."""
