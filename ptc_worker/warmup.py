"""What a worker does once, beside its first runs, so that they need not wait for it."""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from ptc_contracts import LLMProvider
from ptc_contracts.stages import Stage
from ptc_worker.busy import BusyError
from ptc_worker.installer import InstallError
from ptc_worker.providers import open_configured
from ptc_worker.sandbox import configured_kind, prepare_sandboxes
from ptc_worker.sandbox.protocol import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from ptc_worker.sandbox.protocol import Purpose
    from ptc_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

_OUTDATED_DAYTONA = "https://api.daytona.io/v1"


def warm_up(settings: WorkerSettings, queues: Collection[str], purpose: Callable[[], Purpose]) -> None:
    """Import the vendors' SDKs (up to two seconds), try the sandbox and build its base environment.

    Only what the worker's queues need. Nothing depends on it: what fails here is told again where it matters.
    """
    if settings.daytona_api_url.rstrip("/") == _OUTDATED_DAYTONA:
        log.warning("daytona_api_url_outdated", value=_OUTDATED_DAYTONA, use="https://app.daytona.io/api")
    if Stage.GENERATE.value in queues:
        with _all_kept():
            names = [name.value for name in LLMProvider if open_configured(name, settings) is not None]
        log.info("providers_ready", configured=names)
    if Stage.SANDBOX.value in queues:
        try:
            with _all_kept():
                configured_kind(settings)
            log.info("sandbox_ready", kind=settings.sandbox, isolation=prepare_sandboxes(settings, purpose()))
        except BusyError as error:
            log.warning("sandbox_not_tried", reason=str(error))
        except (InstallError, TimeoutError) as error:
            log.warning("base_environment_not_ready", reason=str(error))
        except RedisError as error:
            log.warning("sandbox_not_tried", reason=type(error).__name__)  # the first run looks at one
        except SandboxError as error:
            log.error("no_sandbox", reason=str(error))  # noqa: TRY400 the message is the whole story


def warm_up_beside(settings: WorkerSettings, queues: Collection[str], purpose: Callable[[], Purpose]) -> None:
    """Do it in a thread of its own."""
    threading.Thread(
        target=warm_up, args=(settings, queues, purpose), name="ptc-warm-up", daemon=True
    ).start()


@contextmanager
def _all_kept() -> Iterator[None]:
    """Look for no garbage among what is imported, now or later: that takes a third of the time, and finds nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
