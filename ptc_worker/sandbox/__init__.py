"""Sandboxes: a protocol, one file for each kind, and this registry."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from ptc_worker.sandbox.protocol import NOBODYS, IsolationRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from contextlib import AbstractContextManager

    from ptc_worker.environments import Addition
    from ptc_worker.halt import Halt
    from ptc_worker.sandbox.protocol import Purpose, Sandbox
    from ptc_worker.settings import WorkerSettings

    Opener = Callable[[], AbstractContextManager[Sandbox]]
    """Gives a sandbox for the time of a block. It may still be on its way then: whoever uses it first waits."""

_REGISTRY = {
    "local": "ptc_worker.sandbox.kinds.local",
    "daytona": "ptc_worker.sandbox.kinds.daytona",
    "docker": "ptc_worker.sandbox.kinds.docker",
    "e2b": "ptc_worker.sandbox.kinds.e2b",
}
"""The module of each kind, with `kind_for`: a `Kind` for these settings, the same one each time."""


class Kind(Protocol):
    """The sandboxes of one kind that this process has; each method is what the function beside it does."""

    def equipped(
        self,
        requirements: Sequence[str],
        timeout: float,
        halt: Halt,
        addition: Addition | None,
        purpose: Purpose,
    ) -> AbstractContextManager[Opener]:
        """See `equipped`."""

    def prepared(self, purpose: Purpose) -> str:
        """See `prepare_sandboxes`."""

    def reaped(self, us: Purpose, alive: Callable[[Collection[str]], Collection[str]]) -> int:
        """See `reap_sandboxes`."""


def configured_kind(settings: WorkerSettings) -> Kind:
    """Import what the sandboxes of these settings need: a vendor's SDK takes a second or two, the first time.

    Raises:
        IsolationRefusedError: it is not installed, or a setting is missing.
    """
    try:
        kind: Kind = import_module(_REGISTRY[settings.sandbox]).kind_for(settings)
    except ModuleNotFoundError as error:
        raise IsolationRefusedError(
            f"sandboxes of the kind {settings.sandbox!r} need the package {error.name}: "
            f"pip install 'ptc-worker[{settings.sandbox}]', or choose another kind with PTC_SANDBOX"
        ) from error
    return kind


def equipped(
    settings: WorkerSettings,
    requirements: Sequence[str],
    timeout: float,
    halt: Halt,
    *,
    addition: Addition | None = None,
    purpose: Purpose = NOBODYS,
) -> AbstractContextManager[Opener]:
    """Make packages ready for sandboxes of the configured kind; give what opens such sandboxes, for the time of the block.

    Raises:
        InstallError: the set cannot be installed; as CacheDirError if that is neither plan's nor draft's fault.
        SandboxError: nothing is known of the place that they are for.
        BusyError: that place has no room just now.
        TimeoutError: it took longer than `timeout` seconds.
        HaltedError: the work must stop.
    """
    return configured_kind(settings).equipped(requirements, timeout, halt, addition, purpose)


def prepare_sandboxes(settings: WorkerSettings, purpose: Purpose) -> str:
    """Try a sandbox, and make ready for runs to come; return what isolates programs.

    Raises:
        SandboxError: none can be had; the message names the way out.
        BusyError: there is no room for one just now.
        InstallError, TimeoutError: the packages that every sandbox needs cannot be had.
    """
    return configured_kind(settings).prepared(purpose)


def reap_sandboxes(
    settings: WorkerSettings, us: Purpose, alive: Callable[[Collection[str]], Collection[str]]
) -> int:
    """Delete what workers of our installation have left at a vendor's that are gone; return how many sandboxes.

    `alive` tells which of some workers live. It is asked after the sandboxes were listed, so that a worker which
    was just born is not taken for a dead one. What this process itself has lost sight of goes, too.

    Raises:
        SandboxError: it cannot be found out, or done.
    """
    return configured_kind(settings).reaped(us, alive)


def close_sandboxes() -> None:
    """Remove what this process has at vendors' and have no more made there; it takes a few seconds at most.

    Work that is under way is to be halted before: it has no sandbox any more.
    """
    from ptc_worker.sandbox.vendors import close_all

    close_all()
