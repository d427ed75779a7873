"""Sandboxes: a protocol, one file per vendor, and this registry."""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ptc_worker.sandbox.protocol import Sandbox
    from ptc_worker.settings import WorkerSettings

_REGISTRY = {"local": "ptc_worker.sandbox.local:LocalSandbox"}


def probe(settings: WorkerSettings) -> str:
    """Open a sandbox of the configured kind and close it again; return what isolates programs in it."""
    with open_sandbox(settings, read_only=()) as box:
        return box.isolation


@contextmanager
def open_sandbox(settings: WorkerSettings, read_only: Sequence[str]) -> Iterator[Sandbox]:
    """Start a sandbox of the configured kind, in which these paths of the worker's host can be read.

    Raises:
        SandboxError: it cannot be had.
    """
    module, _, cls = _REGISTRY[settings.ptc_sandbox].partition(":")
    box: Sandbox = getattr(import_module(module), cls)(settings, read_only)
    try:
        box.start()
        yield box
    finally:
        box.destroy()
