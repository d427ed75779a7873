"""What a worker does once, beside its first runs, so that they need not wait for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import structlog

from ptc_contracts import LLMProvider
from ptc_contracts.stages import Stage
from ptc_worker.environments import environment, sweep
from ptc_worker.halt import Halt
from ptc_worker.installer import InstallError
from ptc_worker.providers import open_configured
from ptc_worker.sandbox import prepare_sandboxes
from ptc_worker.sandbox.protocol import SandboxError

if TYPE_CHECKING:
    from collections.abc import Collection

    from ptc_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

_INSTALL_SECONDS = 120.0
_OUTDATED_DAYTONA = "https://api.daytona.io/v1"


def warm_up(settings: WorkerSettings, queues: Collection[str]) -> None:
    """Import the vendors' SDKs (up to two seconds), try the sandbox and build its base environment.

    Only what the worker's queues need. Nothing depends on it: what fails here is told again where it matters.
    """
    if (settings.daytona_api_url or "").rstrip("/") == _OUTDATED_DAYTONA:
        log.warning("daytona_api_url_outdated", value=_OUTDATED_DAYTONA, use="https://app.daytona.io/api")
    if Stage.GENERATE.value in queues:
        names = [name.value for name in LLMProvider if open_configured(name, settings) is not None]
        log.info("providers_ready", configured=names)
    if Stage.SANDBOX.value in queues:
        try:
            with environment(settings, (), _INSTALL_SECONDS, Halt()) as base:
                sweep(settings)
                log.info("sandbox_ready", isolation=prepare_sandboxes(settings, base))
        except (InstallError, TimeoutError) as error:
            log.warning("base_environment_not_ready", reason=str(error))
        except SandboxError as error:
            log.error("no_sandbox", reason=str(error))  # noqa: TRY400 the message is the whole story


def warm_up_beside(settings: WorkerSettings, queues: Collection[str]) -> None:
    """Do it in a thread of its own."""
    threading.Thread(target=warm_up, args=(settings, queues), name="ptc-warm-up", daemon=True).start()
