"""What every kind of sandbox at a vendor's does alike: look at its machines once, bring packages, keep some warm, reap."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

import structlog

from ptc_worker.busy import BusyError
from ptc_worker.halt import Halt, HaltedError, Why
from ptc_worker.loop import run_async
from ptc_worker.sandbox.machine import ChangedError, again
from ptc_worker.sandbox.parcels import parcel_for
from ptc_worker.sandbox.pool import Pool
from ptc_worker.sandbox.protocol import (
    NOBODYS,
    IsolationRefusedError,
    Purpose,
    SandboxError,
    UnsureError,
)
from ptc_worker.sandbox.remote import RemoteSandbox
from ptc_worker.sandbox.room import Room

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from contextlib import AbstractContextManager

    from ptc_worker.environments import Addition
    from ptc_worker.sandbox.machine import Facts, Machine, Network, Parcel
    from ptc_worker.sandbox.protocol import Labels
    from ptc_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

_LOOK_AGAIN_SECONDS = 1.0
_LOOKS = 2
_SILENT_SECONDS = 10.0
"""After which a vendor that did not answer is asked again."""

_INSTALL_SECONDS = 120.0
_CONNECT_SECONDS = 2
_END_SECONDS = 5.0
"""Most time that is taken at the end for what is being removed; what is left then, the reaper of another worker finds."""

_REAPED_AT_ONCE = 4
_MOST_REAPED = 100
"""Orphans that go in one round; the rest in the next."""

_REACHED = "reached"
_PROBE = f"""RES_OPTIONS="timeout:{_CONNECT_SECONDS} attempts:1" python3 - <<'END'
import socket
def connect(*address):
    socket.create_connection(address, {_CONNECT_SECONDS}).close()
tries = [(socket.getaddrinfo, ("example.com", 443))]
tries += [(connect, address) for address in (("1.1.1.1", 443), ("2606:4700:4700::1111", 443), ("169.254.169.254", 80))]
for act, address in tries:
    try:
        act(*address)
    except OSError:
        continue
    print("{_REACHED}", *address)
END"""
"""Tells which ways programs on a machine have to get out: names, addresses, and what clouds tell their machines."""

NETWORKED = "-networked"
"""What the name of an isolation ends with that leaves programs a network."""


@dataclass(frozen=True)
class Found:
    """A machine that was found at a vendor's."""

    name: str
    """The name that it was made under."""
    labels: Labels
    """The labels that it carries."""
    handle: object
    """What its vendor knows it by."""


class Vendor(Protocol):
    """What differs from kind to kind."""

    name: str
    """What keeps programs in, as results say it."""
    image: str
    """What machines are made from, for messages."""
    image_setting: str
    """The setting that says so."""
    network_allowed: bool
    """Whether tests may use what network there is."""

    def machine(self, name: str, purpose: Purpose) -> Machine:
        """Describe a machine that is to carry this name and the labels of this purpose; nothing is asked yet."""

    async def found(self, installation: str) -> list[Found]:
        """List the machines that carry an installation's label `ptc`; a list may be stale.

        Raises:
            UnsureError, SandboxError: the vendor does not tell.
        """

    async def delete(self, found: Found) -> None:
        """Remove a machine, and return when the vendor says, asked for it by name or id, that it is gone.

        Raises:
            UnsureError, SandboxError: it may still be there.
        """


class RemoteKind:
    """The sandboxes that this process has at one vendor's."""

    def __init__(self, settings: WorkerSettings, vendor: Vendor) -> None:
        self._settings = settings
        self._vendor = vendor
        self._us = NOBODYS
        self._facts: Facts | None = None
        self._looking = threading.Lock()
        self._leaky = False
        self._numbers = itertools.count(1)
        self._in_use: dict[str, RemoteSandbox] = {}
        self._open = True
        self._state = threading.Lock()
        self._room = Room()
        self._warm: Pool[str, RemoteSandbox] = Pool(settings.sandboxes_ahead, self._warmed)
        if not _kinds:
            # `atexit` is too late: the threads that asyncio looks up addresses in have ended by then
            threading._register_atexit(close_all)  # type: ignore[attr-defined]  # noqa: SLF001 it has no other name
        _kinds.append(self)

    @contextmanager
    def equipped(
        self,
        requirements: Sequence[str],
        timeout: float,
        halt: Halt,
        addition: Addition | None,
        purpose: Purpose,
    ) -> Iterator[Callable[[], AbstractContextManager[RemoteSandbox]]]:
        """Gather the packages that the vendor's machines lack."""
        if self._us == NOBODYS:  # a run may come before the warm-up
            self._us = replace(purpose, run_id="", fence=0)
        deadline = time.monotonic() + timeout
        facts = self._known(purpose, timeout, halt)
        image = self._image
        with parcel_for(
            self._settings, facts, requirements, timeout, halt, addition=addition, image=image
        ) as parcel:
            yield lambda: self._opened(parcel, purpose, deadline)

    def prepared(self, purpose: Purpose) -> str:
        """Look at a machine, whether it is out of reach of networks among others; keep some warm if that is wanted."""
        self._us = purpose
        self._facts = None
        facts = self._known(purpose, _INSTALL_SECONDS, Halt())
        with parcel_for(self._settings, facts, (), _INSTALL_SECONDS, Halt(), image=self._image):
            self._warm.prepare(self._vendor.image, self._settings.sandboxes_ahead)
        return self.isolation

    def reaped(self, us: Purpose, alive: Callable[[Collection[str]], Collection[str]]) -> int:
        """Delete the machines of workers that are gone, and those of ours that we have lost sight of."""
        found = run_async(again(lambda: self._vendor.found(us.installation)), Halt())
        makers = {machine.name: machine.labels.get("ptc-worker", "") for machine in found}
        living = alive({*makers.values()} - {us.worker})
        orphans = [
            machine
            for machine in found
            if (
                machine.name not in self._in_use
                if makers[machine.name] == us.worker
                else makers[machine.name] not in living
            )
        ]
        return run_async(self._reaped(orphans[:_MOST_REAPED]), Halt())

    async def _reaped(self, orphans: Sequence[Found]) -> int:
        """Delete a few at a time; one that cannot be deleted keeps none of the others."""
        few = asyncio.Semaphore(_REAPED_AT_ONCE)

        async def reap(orphan: Found) -> None:
            async with few:
                await again(lambda: self._vendor.delete(orphan))
            log.info("sandbox_reaped", name=orphan.name, run=orphan.labels.get("ptc-run"))

        outcomes = await asyncio.gather(*map(reap, orphans), return_exceptions=True)
        if failed := [outcome for outcome in outcomes if isinstance(outcome, BaseException)]:
            raise failed[0]
        return len(orphans)

    def end(self) -> None:
        """Have everything removed that is here, also what is just being made, and nothing made any more."""
        with self._state:
            self._open = False
            boxes = list(self._in_use.values())
        for box in boxes:
            box.stop()

    def close(self, until: float) -> None:
        """Wait for what is being removed, until a moment of `time.monotonic()` at most."""
        middle = (time.monotonic() + until) / 2
        left = self._left(middle)
        for box in left:
            box.abandon()
        if left := self._left(until):
            log.warning("sandboxes_left_to_the_reaper", number=len(left))
        self._warm.close()

    def _left(self, until: float) -> list[RemoteSandbox]:
        boxes = list(self._in_use.values())
        return [box for box in boxes if not box.gone(max(0.0, until - time.monotonic()))]

    # ── machines ───────────────────────────────────────────────────────────────────────────────────────────

    def _new(self, purpose: Purpose) -> RemoteSandbox:
        whose = purpose.run_id or purpose.worker or uuid4().hex[:12]
        name = f"ptc-{whose}-{purpose.fence}-{next(self._numbers)}"
        machine = self._vendor.machine(name, purpose)

        def network() -> Network:
            if self._vendor.network_allowed:
                return "machine"
            return "own" if machine.blocked and not self._leaky else "none"

        def forget() -> None:
            self._in_use.pop(name, None)

        box = RemoteSandbox(
            self._settings,
            machine,
            self.isolation,
            image=self._image,
            room=self._room,
            network=network,
            when_gone=forget,
        )
        with self._state:
            if not self._open:
                raise HaltedError(Why.SHUTDOWN)
            self._in_use[name] = box
        return box

    @contextmanager
    def _opened(self, parcel: Parcel, purpose: Purpose, deadline: float) -> Iterator[RemoteSandbox]:
        warm = self._warm.take(self._vendor.image)
        box = warm or self._new(purpose)
        try:
            box.equip(parcel)
            box.start()
            with self._asked_later(box), self._in_time(box, deadline):
                yield box
        except ChangedError as error:
            if self._facts is parcel.facts:
                self._facts = None
            raise BusyError(_LOOK_AGAIN_SECONDS, str(error)) from error
        except SandboxError:
            if warm is not None and not box.reached:
                self._warm.clear()  # what has ended this one has ended the others, too
            raise
        finally:
            box.destroy()
            self._warm.prepare(self._vendor.image)

    @contextmanager
    def _asked_later(self, box: RemoteSandbox) -> Iterator[None]:
        """Let a run wait for a vendor that does not answer, as long as nothing of the run's has been there."""
        try:
            yield
        except UnsureError as error:
            if box.reached:
                raise
            raise BusyError(_SILENT_SECONDS, f"{self._vendor.name} does not answer: {error}") from error

    @contextmanager
    def _in_time(self, box: RemoteSandbox, deadline: float) -> Iterator[None]:
        """Wait for a machine as long as its run has time."""
        left = max(0.0, deadline - time.monotonic())
        timer = threading.Timer(left, box.stop_unreached)
        timer.daemon = True
        timer.start()
        try:
            yield
        except SandboxError:
            if box.reached or time.monotonic() < deadline:
                raise
            raise TimeoutError("no sandbox was ready in time") from None
        finally:
            timer.cancel()

    def _warmed(self, _: str) -> RemoteSandbox:
        box = self._new(self._us)
        try:
            box.wait()
        except BaseException:
            box.destroy()
            raise
        return box

    @property
    def _image(self) -> str:
        """What machines are made from, as messages name it."""
        return f"{self._vendor.image!r} ({self._vendor.image_setting})"

    # ── what is known of them ──────────────────────────────────────────────────────────────────────────────

    @property
    def isolation(self) -> str:
        """What keeps programs in here, and whether there is a way out."""
        return f"{self._vendor.name}{NETWORKED if self._vendor.network_allowed else ''}"

    def _known(self, purpose: Purpose, timeout: float, halt: Halt) -> Facts:
        """Look at a machine, if that was not done: what Python it has, which packages, whether it gets out."""
        deadline = time.monotonic() + timeout
        with halt.taking(self._looking, deadline, "no sandbox could be looked at in time"):
            facts = self._facts or self._looked(purpose, deadline, halt)
            self._facts = facts
            return facts

    def _looked(self, purpose: Purpose, deadline: float, halt: Halt) -> Facts:
        """Look at a machine; one that fails is replaced once, as those of tests are."""
        for attempt in range(1, _LOOKS + 1):
            box = self._new(purpose)
            try:
                with self._in_time(box, deadline), self._asked_later(box), halt.calling(box.stop):
                    facts = box.facts()
                    self._look_for_a_way_out(box)
                    return facts
            except IsolationRefusedError:
                raise
            except SandboxError as error:
                if attempt == _LOOKS:
                    raise
                log.warning("sandbox_not_looked_at", attempt=attempt, error=str(error))
            finally:
                box.destroy()
        raise AssertionError("the loop returns or raises")  # pragma: no cover

    def _look_for_a_way_out(self, box: RemoteSandbox) -> None:
        """Find out whether programs get out; where they do, and may not, no sandbox gets any socket but local ones."""
        code, said = box.tried(_PROBE)
        if code:
            raise SandboxError(f"whether a network can be reached cannot be found out: {said[-500:]}")
        self._leaky = _REACHED in said
        log.info(
            "sandbox_network_probed", blocked=box.blocked, allowed=self._vendor.network_allowed, out=said
        )
        if self._leaky and box.blocked:
            log.error("sandbox_network_not_blocked", reached=said)


_kinds: list[RemoteKind] = []


def close_all() -> None:
    """Remove what this process has at vendors', and wait a little until it is gone."""
    until = time.monotonic() + _END_SECONDS
    for kind in _kinds:
        kind.end()
    for kind in _kinds:
        kind.close(until)
