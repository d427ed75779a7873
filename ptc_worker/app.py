"""The Celery application: its configuration, its logs, and what runs beside the tasks."""

from __future__ import annotations

import os
import threading
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog
from celery import Celery, signals

from ptc_contracts.blobs import Blobs
from ptc_contracts.settings import RedisSettings
from ptc_contracts.stages import Stage
from ptc_contracts.work import WorkStore
from ptc_worker.dispatching import GatheredEvents
from ptc_worker.leases import LeaseKeeper
from ptc_worker.llm.shared import Shared
from ptc_worker.log import configure_logging
from ptc_worker.once import once
from ptc_worker.reaper import Pulse, Reaper
from ptc_worker.recovery import Recovery
from ptc_worker.redaction import Redactor
from ptc_worker.reporting import Publisher
from ptc_worker.sandbox import close_sandboxes, reap_sandboxes
from ptc_worker.sandbox.protocol import Purpose
from ptc_worker.server_check import ServerCheck
from ptc_worker.settings import WorkerSettings, secrets_of
from ptc_worker.warmup import warm_up_beside

if TYPE_CHECKING:
    from types import ModuleType

    from celery.worker.consumer import Consumer

    from ptc_contracts import PTCArtifactResult
    from ptc_contracts.stages import Unsent

log = structlog.get_logger(__name__)

_FAREWELL_SECONDS = 8.0
"""What a worker has, after its grace, to hand its runs back and to close its connections."""


def _configuration() -> ModuleType:
    """Load the `celeryconfig.py` beside this package: one in the working directory may be a stranger's."""
    path = Path(__file__).parents[1] / "celeryconfig.py"
    spec = spec_from_file_location("ptc_celeryconfig", path)
    assert spec is not None  # noqa: S101 it is a .py file
    assert spec.loader is not None  # noqa: S101 it is a .py file
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


app = Celery("ptc", include=["ptc_worker.tasks"], events=GatheredEvents)
app.steps["worker"].add(ServerCheck)


@app.on_configure.connect
def _configure(sender: Celery, **_: object) -> None:
    sender.config_from_object(_configuration())


@signals.setup_logging.connect
def _set_up_logging(**_: object) -> None:
    configure_logging(settings().ptc_log_level, redactor())


@signals.worker_ready.connect
def _start_beside_the_tasks(sender: Consumer, **_: object) -> None:
    Recovery(store(), send, tell_celery).start()
    queues = sender.app.amqp.queues.consume_from
    warm_up_beside(settings(), queues, us)
    if Stage.SANDBOX.value in queues and settings().sandbox != "local":
        Reaper(lambda: reap_sandboxes(settings(), us(), store().living)).start()


@signals.worker_shutting_down.connect
def _end_within_the_grace(**_: object) -> None:
    """Let the work under way finish, and hand back what does not: Celery itself would wait for ever.

    This runs in a signal handler: whoever logs here may be interrupted by the next signal with the lock of the log
    in hand, and Celery then waits for threads that wait for that lock.
    """
    grace = settings().ptc_shutdown_grace
    later = ((0.0, _tell_of_the_grace), (grace, end_all_work), (grace + _FAREWELL_SECONDS, _end_by_force))
    for seconds, act in later:
        timer = threading.Timer(seconds, act)
        timer.daemon = True
        timer.start()


def _tell_of_the_grace() -> None:
    log.info("worker_ends", grace_seconds=settings().ptc_shutdown_grace)


def end_all_work() -> None:
    """Stop what this process works on, so that its runs can be handed back, and leave nothing at a vendor's."""
    leases().end()
    close_sandboxes()


def _end_by_force() -> None:
    """End a process that waits for a server which does not answer; its leases pass."""
    log.warning("worker_ends_by_force")
    os._exit(os.EX_TEMPFAIL)


@cache
def settings() -> WorkerSettings:
    """Read the worker's settings, once."""
    return WorkerSettings.read()


@cache
def redactor() -> Redactor:
    """Know the secrets of this process, once."""
    return Redactor(secrets_of(settings(), os.environ))


@cache
def store() -> WorkStore:
    """Connect to the run records, once."""
    return _connected(patience=10.0)


def _connected(patience: float) -> WorkStore:
    return WorkStore.connect(RedisSettings.from_environment(), Blobs.from_environment(), patience=patience)


@once
def us() -> Purpose:
    """Name this process, for what it leaves with others; they are told that it lives before they can find any of it."""
    worker = uuid4().hex[:12]
    if settings().sandbox == "local":
        return Purpose(worker=worker)
    Pulse(_connected(patience=2.0), worker).start()
    return Purpose(installation=store().installation(), worker=worker)


@cache
def leases() -> LeaseKeeper:
    """Keep the leases of this process alive, from the first one on."""
    return LeaseKeeper(_connected(patience=2.0))  # an answer that takes longer comes too late for the others


@once
def publisher() -> Publisher:
    """Send what this process's runs tell, from the first one on."""
    return Publisher(_connected(patience=2.0), redactor(), output=settings().ptc_stream_output)


@cache
def shared() -> Shared:
    """Open what all workers share about models, once; it is used on the loop of model calls alone."""
    ttl = settings().ptc_response_cache_ttl
    return Shared.connect(RedisSettings.from_environment(), Blobs.from_environment(), ttl)


def send(owed: Unsent) -> None:
    """Publish a message that is owed to a run, then note that it was sent; what fails here, a sweep sends."""
    try:
        app.send_task(**owed.as_task())
        store().mark_published(owed)
    except Exception as error:  # noqa: BLE001 kombu raises anything while it loses a connection, even AttributeError
        log.warning("message_not_sent", run=owed.run_id, error=type(error).__name__)


def tell_celery(run_id: str, result: PTCArtifactResult) -> None:
    """Store the result of a run that no task ended, for those who follow its `AsyncResult`."""
    app.backend.store_result(run_id, result.model_dump(mode="json"), "SUCCESS")
