"""Sandboxes: a protocol, one file per vendor, and this registry."""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ptc_worker.sandbox.protocol import Sandbox
    from ptc_worker.settings import WorkerSettings

_REGISTRY = {"local": "ptc_worker.sandbox.pool"}
"""The module of each kind: `opened` gives a sandbox for one run, `prepared` makes ready for runs to come."""


@contextmanager
def open_sandbox(settings: WorkerSettings, environment: Path) -> Iterator[Sandbox]:
    """Give a sandbox of the configured kind, in which an environment's programs can be run.

    Raises:
        SandboxError: it cannot be had.
    """
    with import_module(_REGISTRY[settings.ptc_sandbox]).opened(settings, environment) as box:
        yield box


def prepare_sandboxes(settings: WorkerSettings, environment: Path) -> str:
    """Make ready for runs in an environment, and remove what dead workers left; return what isolates programs.

    Raises:
        SandboxError: none can be had; the message names the way out.
    """
    isolation: str = import_module(_REGISTRY[settings.ptc_sandbox]).prepared(settings, environment)
    return isolation
