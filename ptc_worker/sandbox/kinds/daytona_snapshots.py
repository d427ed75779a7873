"""Snapshots at Daytona: built there from a Dockerfile, and registered under a name."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from daytona import CreateSnapshotParams, Image, Resources

from ptc_worker.halt import Halt
from ptc_worker.loop import run_async
from ptc_worker.sandbox.kinds.daytona import DEFAULT_SNAPSHOT, Daytona, resources_for
from ptc_worker.sandbox.kinds.daytona_errors import MissingError
from ptc_worker.sandbox.machine import again
from ptc_worker.sandbox.protocol import SandboxError, UnsureError

if TYPE_CHECKING:
    from collections.abc import Callable

    from daytona.common.snapshot import Snapshot

    from ptc_worker.settings import WorkerSettings

_LOOK_SECONDS = 1.0
_REMOVE_SECONDS = 300.0
_FAILED = frozenset({"error", "build_failed"})


def register(
    settings: WorkerSettings,
    name: str | None,
    dockerfile: str,
    *,
    cpu: int,
    memory: int | None,
    disk: int | None,
    force: bool,
    tell: Callable[[str], None],
) -> dict[str, object]:
    """Build an image, register it, and return what came of it; memory and disk, in GiB, are what tests need unless given.

    Raises:
        FileExistsError: there is a snapshot of that name, and it is not to be replaced.
        IsolationRefusedError, BusyError: Daytona refuses.
        UnsureError: it cannot be reached.
        SandboxError: the image cannot be built.
    """
    base, *commands = dockerfile.splitlines()
    least = resources_for(settings)
    params = CreateSnapshotParams(
        name=name or settings.ptc_daytona_snapshot or DEFAULT_SNAPSHOT,
        image=Image.base(base.removeprefix("FROM ")).dockerfile_commands(commands),
        resources=Resources(cpu=cpu, memory=memory or least.memory, disk=disk or least.disk),
    )
    vendor = Daytona(settings)
    try:
        made = run_async(_made(vendor, params, force=force, tell=tell), Halt())
    finally:
        vendor.close()
    return {
        "name": made.name,
        "id": made.id,
        "state": _state(made),
        "cpu": made.cpu,
        "memory_gib": made.mem,
        "disk_gib": made.disk,
    }


async def _made(
    vendor: Daytona, params: CreateSnapshotParams, *, force: bool, tell: Callable[[str], None]
) -> Snapshot:
    if there := await _seen(vendor, params.name):
        if not force:
            raise FileExistsError(f"there is a snapshot {params.name!r}")
        tell(f"Removing the snapshot {params.name!r} that there is")
        await _remove(vendor, there)
    try:
        with vendor.asked():
            return await vendor.client.snapshot.create(params, on_logs=tell, timeout=0)
    except UnsureError as error:
        return await _followed(vendor, params.name, error)


async def _seen(vendor: Daytona, name: str) -> Snapshot | None:
    async def ask() -> Snapshot | None:
        try:
            with vendor.asked():
                return await vendor.client.snapshot.get(name)
        except MissingError:
            return None

    return await again(ask)


async def _remove(vendor: Daytona, snapshot: Snapshot) -> None:
    """Delete a snapshot, and wait until its name is free."""
    deadline = time.monotonic() + _REMOVE_SECONDS
    while there := await _seen(vendor, snapshot.name):
        if time.monotonic() >= deadline:
            raise SandboxError(f"the snapshot {snapshot.name!r} is still there: {_state(there)}")
        if _state(there) != "removing":
            await _deleted(vendor, there)
        await asyncio.sleep(_LOOK_SECONDS)


async def _deleted(vendor: Daytona, snapshot: Snapshot) -> None:
    try:
        with vendor.asked():
            await vendor.client.snapshot.delete(snapshot)
    except (MissingError, UnsureError):
        return  # it is looked for again


async def _followed(vendor: Daytona, name: str, lost: UnsureError) -> Snapshot:
    """Look how a build ends that an answer about was lost of; an end that was told without a status is among them."""
    while there := await _seen(vendor, name):
        if _state(there) in _FAILED:
            raise SandboxError(f"Daytona cannot build the snapshot {name!r}: {there.error_reason}")
        if _state(there) == "active":
            return there
        await asyncio.sleep(_LOOK_SECONDS)
    raise lost


def _state(snapshot: Snapshot) -> str:
    return str(snapshot.state.value)
