"""The Celery application: its configuration, its logs, and what runs beside the tasks."""

from __future__ import annotations

from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

from celery import Celery, signals

from ptc_contracts.runs import RunStore
from ptc_contracts.settings import RedisSettings
from ptc_contracts.stages import Stage, stage_message
from ptc_worker.leases import LeaseKeeper
from ptc_worker.log import configure_logging
from ptc_worker.recovery import Recovery
from ptc_worker.server_check import ServerCheck
from ptc_worker.settings import WorkerSettings
from ptc_worker.warmup import warm_up_beside

if TYPE_CHECKING:
    from types import ModuleType

    from celery.worker.consumer import Consumer


def _configuration() -> ModuleType:
    """Load the `celeryconfig.py` beside this package: one in the working directory may be a stranger's."""
    path = Path(__file__).parents[1] / "celeryconfig.py"
    spec = spec_from_file_location("ptc_celeryconfig", path)
    assert spec is not None  # noqa: S101 it is a .py file
    assert spec.loader is not None  # noqa: S101 it is a .py file
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


app = Celery("ptc", include=["ptc_worker.tasks"])
app.steps["worker"].add(ServerCheck)


@app.on_configure.connect
def _configure(sender: Celery, **_: object) -> None:
    sender.config_from_object(_configuration())


@signals.setup_logging.connect
def _set_up_logging(**_: object) -> None:
    configure_logging(settings().ptc_log_level)


@signals.worker_ready.connect
def _start_beside_the_tasks(sender: Consumer, **_: object) -> None:
    Recovery(store(), send).start()
    warm_up_beside(settings(), sender.app.amqp.queues.consume_from)


@cache
def settings() -> WorkerSettings:
    """Read the worker's settings, once."""
    return WorkerSettings.read()


@cache
def store() -> RunStore:
    """Connect to the run records, once."""
    return RunStore.connect(RedisSettings.from_environment())


@cache
def leases() -> LeaseKeeper:
    """Keep the leases of this process alive, from the first one on."""
    return LeaseKeeper(store())


def send(stage: Stage, run_id: str, key: str, iteration: int) -> None:
    """Publish the message that asks for a run's next stage, then note that it was sent."""
    app.send_task(**stage_message(stage, run_id, key, iteration))
    store().mark_published(run_id, stage, iteration)
