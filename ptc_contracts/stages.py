"""The stages of a run, and the Celery message that asks for one."""

from __future__ import annotations

from enum import Enum
from typing import Any

from ptc_contracts.keys import BROKER_PREFIX, RESULTS_PREFIX


class Stage(str, Enum):
    """A stage is a task (`ptc.<stage>`) and the queue that it waits in (`<stage>`)."""

    GENERATE = "generate"
    SANDBOX = "sandbox"

    @property
    def task_name(self) -> str:
        """The name of the Celery task that does this stage."""
        return f"ptc.{self.value}"


def stage_message(stage: Stage, run_id: str, key: str, iteration: int) -> dict[str, Any]:
    """Give the arguments for `Celery.send_task` that ask for a stage of a run.

    The message holds the run id and nothing else; key and iteration appear in its `kwargsrepr` alone, which
    is what Flower shows.
    """
    return {
        "name": stage.task_name,
        "args": (run_id,),
        "task_id": run_id,
        "queue": stage.value,
        "argsrepr": f"({run_id!r},)",
        "kwargsrepr": f"{{'key': {key!r}, 'iteration': {iteration}}}",
    }


CELERY_SETTINGS: dict[str, Any] = {
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "result_accept_content": ["json"],
    "task_default_queue": Stage.GENERATE.value,
    "task_queues": {stage.value: {"exchange": "ptc", "routing_key": stage.value} for stage in Stage},
    "task_create_missing_queues": False,
    "broker_transport_options": {"global_keyprefix": BROKER_PREFIX},
    "result_backend_transport_options": {"global_keyprefix": RESULTS_PREFIX},
}
"""What client and worker must agree on. The prefixes keep another Celery application on the same database
from restoring our messages, and us from restoring theirs."""
