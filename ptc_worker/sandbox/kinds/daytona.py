"""Sandboxes at Daytona, through its own SDK."""

from __future__ import annotations

import asyncio
import atexit
import itertools
import math
import shlex
import time
import warnings
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import daytona._async.daytona as sdk
import structlog
from daytona import (
    AsyncDaytona,
    AsyncSandbox,
    CreateSandboxFromImageParams,
    CreateSandboxFromSnapshotParams,
    DaytonaConfig,
    DaytonaConflictError,
    DaytonaError,
    FileDownloadRequest,
    FileUpload,
    ListSandboxesQuery,
    Resources,
    SessionExecuteRequest,
)
from daytona_api_client_async import SandboxState

from ptc_worker.busy import BusyError
from ptc_worker.halt import Halt
from ptc_worker.loop import run_async
from ptc_worker.once import once
from ptc_worker.sandbox.kinds.daytona_errors import (
    MissingError,
    NotNowError,
    is_of_the_network,
    meaning,
    no_room,
    told,
)
from ptc_worker.sandbox.machine import BASE
from ptc_worker.sandbox.protocol import IsolationRefusedError, SandboxError, UnsureError
from ptc_worker.sandbox.vendors import Found, RemoteKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ptc_worker.sandbox.protocol import Purpose
    from ptc_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

DEFAULT_SNAPSHOT = "ptc-sandbox"
"""The snapshot that sandboxes are made from unless a setting names another."""

_REQUEST_SECONDS = 10
_TRANSFER_SECONDS = 60
_LOOK_SHARE = 1 / 4
"""Of the time for a start: after it, what was asked for is looked for by its name. The answer may have been lost."""
_PAUSE_SECONDS = 0.5
_GONE_SECONDS = 30.0
_DOUBTS = 2
"""Times that a sandbox which may still come to be is looked for again before it counts as never made."""

_AT_ONCE_SECONDS = 60.0
"""Longest command that one request waits for: proxies on the way take a connection for dead that is longer silent."""
_FIRST_POLL_SECONDS, _LAST_POLL_SECONDS = 0.25, 2.0
_LOST_POLLS = 6

_MARGIN_SECONDS = 600.0
"""What a run may need beside its start and its tests: files, and requests that are made again."""
_AHEAD_SECONDS = 3600.0
"""How long one that was made ahead may wait for a run: it costs as much as one that works."""

_COURIER_MB = 256
_PACKAGES_MB = 2048
_PAGE = 100

_DEAD = frozenset(
    {SandboxState.ERROR, SandboxState.BUILD_FAILED, SandboxState.DESTROYED, SandboxState.DESTROYING}
)


class _NoEnvironment:
    """Knows no variables: settings are ours to read, and where the SDK looks for them others may have written."""

    @staticmethod
    def get(_name: str) -> None:
        """Say that it is not set."""

    get_from_process_env = get_from_file = get


# Even with every value given, its client asks `.env` in the working directory for a region, another organization,
# and whether to send traces (daytona 0.226.1; a test tells when that changes).
sdk.DaytonaEnvReader = _NoEnvironment  # type: ignore[attr-defined,assignment]


@once
def kind_for(settings: WorkerSettings) -> RemoteKind:
    """Return this process's sandboxes for these settings."""
    return RemoteKind(settings, Daytona(settings))


class Daytona:
    """One account, with this process's only client for it."""

    name = "daytona"

    def __init__(self, settings: WorkerSettings) -> None:
        key = settings.daytona_api_key
        if key is None:
            raise IsolationRefusedError(
                "sandboxes at Daytona need a key: set DAYTONA_API_KEY, or choose another kind with PTC_SANDBOX"
            )
        self.image = settings.ptc_daytona_image or settings.ptc_daytona_snapshot or DEFAULT_SNAPSHOT
        """What sandboxes are made from."""
        self.image_setting = "PTC_DAYTONA_IMAGE" if settings.ptc_daytona_image else "PTC_DAYTONA_SNAPSHOT"
        """The setting that says so."""
        self.network_allowed = settings.ptc_daytona_network == "tier"
        """Whether tests may use what network the account's tier leaves them."""
        self.place = f"Daytona at {settings.daytona_api_url} (DAYTONA_API_URL)"
        """Where it is, for messages."""
        self.start_timeout = settings.ptc_sandbox_start_timeout
        """Seconds until a sandbox must be of use."""
        self._settings = settings
        self._key = key.get_secret_value().strip()
        self._client: AsyncDaytona | None = None
        self._blocking = not self.network_allowed
        self._folder = ""
        atexit.register(self.close)

    def machine(self, name: str, purpose: Purpose) -> DaytonaMachine:
        """Describe a sandbox that is to carry this name and the labels of this purpose."""
        return DaytonaMachine(self, name, purpose)

    async def found(self, installation: str) -> list[Found]:
        """List the sandboxes of an installation; a list may be stale."""
        query = ListSandboxesQuery(labels={"ptc": installation}, limit=_PAGE)
        with self.asked():
            async with asyncio.timeout(_TRANSFER_SECONDS):
                return [
                    Found(name=box.name, labels=box.labels, handle=box.id)
                    async for box in self.client.list(query, request_timeout=_REQUEST_SECONDS)
                    if box.state not in {SandboxState.DESTROYED, SandboxState.DESTROYING}
                ]

    async def delete(self, found: Found) -> None:
        """Remove a sandbox that was found."""
        await self.remove(str(found.handle))

    def close(self) -> None:
        """Close the client's connections."""
        if self._client is not None:
            run_async(self._client.close(), Halt())  # type: ignore[no-untyped-call]

    # ── what machines use ──────────────────────────────────────────────────────────────────────────────────

    @property
    def client(self) -> AsyncDaytona:
        """The client, made when it is first needed, on the loop that it is used on."""
        if self._client is None:
            config = DaytonaConfig(
                api_key=self._key,
                api_url=self._settings.daytona_api_url,
                target=self._settings.daytona_target,
                connection_pool_maxsize=None,
                otel_enabled=False,
                use_deprecated_polling=True,
            )
            with warnings.catch_warnings():
                # the way it prefers keeps a socket open, and a task that opens it again for as long as we live
                warnings.simplefilter("ignore", DeprecationWarning)
                self._client = AsyncDaytona(config)
        return self._client

    async def create(self, name: str, purpose: Purpose) -> AsyncSandbox:
        """Have a sandbox made, and wait until it has started.

        Raises:
            UnsureError: it may have been made; also if the name is taken.
            BusyError: there is no room for it.
            IsolationRefusedError: it never will be made.
            SandboxError: it came to nothing.
        """
        try:
            return await self._created(name, purpose)
        except DaytonaConflictError as error:
            raise UnsureError(told(error, self._key)) from None
        except DaytonaError as error:
            if not self._blocking or not is_of_the_network(error):
                raise self._refusal(error) from None
            log.warning("sandbox_network_cannot_be_blocked", error=told(error, self._key))
            self._blocking = False
        return await self.create(name, purpose)

    async def seen(self, name: str) -> AsyncSandbox | None:
        """Ask for a sandbox by its name or id; None if there is none."""
        try:
            with self.asked():
                box = await self.client.get(name, request_timeout=_REQUEST_SECONDS)
        except MissingError:
            return None
        return None if box.state is SandboxState.DESTROYED else box

    async def remove(self, name: str, box: AsyncSandbox | None = None) -> bool:
        """Delete a sandbox, by its name or id, until Daytona has it no more; return whether it was there.

        Raises:
            UnsureError: it is still there.
        """
        deadline = time.monotonic() + _GONE_SECONDS
        for look in itertools.count():
            box = box or await self.seen(name)
            if box is None:
                return look > 0
            if time.monotonic() >= deadline:
                raise UnsureError(f"Daytona's sandbox {name} is still {_state(box)}")
            if box.state is not SandboxState.DESTROYING:
                await self._delete(box)
            await asyncio.sleep(min(_LAST_POLL_SECONDS, _FIRST_POLL_SECONDS * 2**look))
            box = None
        raise AssertionError("it counts on")  # pragma: no cover

    async def folder(self, box: AsyncSandbox) -> str:
        """Tell where commands start, and relative paths with them, in all sandboxes from the same image."""
        if not self._folder:
            with self.asked():
                async with asyncio.timeout(_REQUEST_SECONDS):
                    self._folder = await box.get_work_dir()
        return self._folder

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Turn its errors into what they mean for us."""
        try:
            yield
        except DaytonaError as error:
            raise meaning(error, self._key) from None
        except TimeoutError:
            raise UnsureError("Daytona gave no answer in time") from None

    async def _delete(self, box: AsyncSandbox) -> None:
        try:
            with self.asked():
                async with asyncio.timeout(_REQUEST_SECONDS):
                    await box.delete(timeout=0)
        except (MissingError, NotNowError):
            return  # whether it is there, and can be deleted now, shows when it is looked for

    async def _created(self, name: str, purpose: Purpose) -> AsyncSandbox:
        settings = self._settings
        wanted: dict[str, Any] = {
            "name": name,
            "labels": dict(purpose.labels),
            "ttl_minutes": math.ceil(self.lifetime(purpose) / 60),
            "auto_stop_interval": 0,
            "ephemeral": True,
            "network_block_all": True if self._blocking else None,
        }
        if settings.ptc_daytona_image is None:
            return await self.client.create(
                CreateSandboxFromSnapshotParams(snapshot=self.image, **wanted), timeout=0
            )
        return await self.client.create(
            CreateSandboxFromImageParams(image=self.image, resources=resources_for(settings), **wanted),
            timeout=0,
        )

    def lifetime(self, purpose: Purpose) -> float:
        """Seconds after which Daytona removes a sandbox whatever it does: nobody else may be left to do it."""
        waiting = 0 if purpose.run_id else _AHEAD_SECONDS
        return waiting + self.start_timeout + self.busy_seconds

    @property
    def busy_seconds(self) -> float:
        """Seconds that a run may need one that has started."""
        return self._settings.ptc_test_timeout + _MARGIN_SECONDS

    # ── errors ─────────────────────────────────────────────────────────────────────────────────────────────

    def silent(self, last: str) -> str:
        """Say that nobody answers, and what was heard last."""
        return f"nobody answers as Daytona does at {self._settings.daytona_api_url} (DAYTONA_API_URL): {last}"

    def _refusal(self, error: DaytonaError) -> Exception:
        """Tell what it means that no sandbox is made: what is wrong with the request will be so next time."""
        meant = meaning(error, self._key)
        if isinstance(meant, UnsureError | BusyError | IsolationRefusedError):
            return meant
        what = "image" if self._settings.ptc_daytona_image else "snapshot"
        return IsolationRefusedError(
            f"no sandbox can be made from the {what} {self.image!r} of {self.image_setting} ({meant}): register the snapshot "
            "with ptc-daytona-snapshot, or name another, or an image with PTC_DAYTONA_IMAGE"
        )


class DaytonaMachine:
    """One sandbox of theirs."""

    alone = False

    def __init__(self, vendor: Daytona, name: str, purpose: Purpose) -> None:
        self.blocked = False
        self.until = 0.0
        self._vendor = vendor
        self._name = name
        self._purpose = purpose
        self._asked_for = False
        self._doubts = 0
        self._silence = ""
        self._box: AsyncSandbox | None = None
        self._numbers = itertools.count(1)

    async def start(self) -> None:
        """Have it made, or find the one that was; wait until it has started."""
        limit = self._vendor.start_timeout
        self.until = time.monotonic() + self._vendor.lifetime(self._purpose) - self._vendor.busy_seconds
        try:
            async with asyncio.timeout(limit):
                self._box = await self._made()
        except TimeoutError:
            if self._silence:
                raise no_room(self._vendor.silent(self._silence)) from None
            raise SandboxError(
                f"{self._vendor.place} had no sandbox ready within {limit:g} s (PTC_SANDBOX_START_TIMEOUT)"
            ) from None
        self._doubts = 0
        self.blocked = self._box.network_block_all is True

    async def put(self, files: Mapping[str, bytes]) -> None:
        """Write files in one request."""
        uploads = [FileUpload(source=content, destination=path) for path, content in files.items()]
        with self._vendor.asked():
            await self._there.fs.upload_files(uploads, timeout=_TRANSFER_SECONDS)

    async def run(self, command: str, seconds: float) -> tuple[int, bytes]:
        """Run a command: one that may take long is followed by looking for what it has left."""
        if seconds > _AT_ONCE_SECONDS:
            return await self._followed(command, seconds)
        with self._vendor.asked():
            async with asyncio.timeout(seconds + _REQUEST_SECONDS):
                ran = await self._there.process.exec(command, timeout=math.ceil(seconds))
        return int(ran.exit_code), ran.result.encode()

    async def get(self, path: str) -> bytes | None:
        """Read a file."""
        return (await self._read([path], _TRANSFER_SECONDS))[0]

    async def delete(self) -> None:
        """Remove it, also if it is not known whether it was made."""
        if not self._asked_for or await self._vendor.remove(self._name, self._box):
            return
        if self._doubts:
            self._doubts -= 1
            raise UnsureError("a sandbox that was asked for may still come to be", after=1.0)

    @property
    def _there(self) -> AsyncSandbox:
        assert self._box is not None  # noqa: S101 nothing else is asked of one that did not start
        return self._box

    async def _made(self) -> AsyncSandbox:
        """Ask for it, or find it by its name: what was not answered may have been done."""
        while True:
            try:
                if self._asked_for and (box := await self._adopted()):
                    return box
                self._asked_for, self._doubts = True, _DOUBTS
                async with asyncio.timeout(self._vendor.start_timeout * _LOOK_SHARE):
                    return await self._vendor.create(self._name, self._purpose)
            except TimeoutError:
                self._silence = "no answer in time"
            except UnsureError as error:
                if error.after is not None:
                    raise BusyError(error.after, str(error)) from None
                self._silence = str(error)
            log.info("sandbox_looked_for", name=self._name, error=self._silence)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _adopted(self) -> AsyncSandbox | None:
        box = await self._vendor.seen(self._name)
        if box is None:
            return None
        self._silence = ""
        if box.state in _DEAD:
            raise SandboxError(f"Daytona's sandbox came to nothing: {_state(box)}, {box.error_reason}")
        if box.state is not SandboxState.STARTED:
            with self._vendor.asked():
                await box.wait_for_sandbox_start(timeout=0)
        return box

    async def _followed(self, command: str, seconds: float) -> tuple[int, bytes]:
        """Start a command in a session, and look for its exit code in a file until the time is over.

        What sessions tell themselves is not asked for: their exit codes get lost (daytona#4230), and the file comes
        with the output in one request.
        """
        said, code = (f"{BASE}/{kind}-{next(self._numbers)}" for kind in ("said", "code"))
        script = f"({command}) > {said} 2>&1; echo $? > {code}.new; mv {code}.new {code}"
        await self._begin(f"cd {shlex.quote(await self._vendor.folder(self._there))} && {script}")
        deadline, pause, lost = time.monotonic() + seconds, _FIRST_POLL_SECONDS, 0
        while time.monotonic() < deadline:
            await asyncio.sleep(pause)
            pause = min(_LAST_POLL_SECONDS, pause * 1.5)
            try:
                status, output = await self._read([code, said], _REQUEST_SECONDS)
            except UnsureError:
                lost += 1
                if lost == _LOST_POLLS:
                    raise
                continue
            lost = 0
            if status:
                return int(status), output or b""
        raise UnsureError("a command did not end in time")

    async def _begin(self, script: str) -> None:
        session = f"{self._name}-{next(self._numbers)}"
        request = SessionExecuteRequest(command=f"sh -c {shlex.quote(script)} < /dev/null", run_async=True)
        with self._vendor.asked():
            process = self._there.process
            await process.create_session(session, request_timeout=_REQUEST_SECONDS)
            await process.execute_session_command(session, request, timeout=_REQUEST_SECONDS)

    async def _read(self, paths: list[str], seconds: int) -> list[bytes | None]:
        wanted = [FileDownloadRequest(source=path) for path in paths]
        with self._vendor.asked():
            answers = await self._there.fs.download_files(wanted, timeout=seconds)
        contents: list[bytes | None] = []
        for answer in answers:
            if isinstance(answer.result, bytes):
                contents.append(answer.result)
            elif answer.error_details and answer.error_details.status_code == HTTPStatus.NOT_FOUND:
                contents.append(None)
            else:
                raise UnsureError(f"Daytona: {answer.error}")
        return contents


def resources_for(settings: WorkerSettings) -> Resources:
    """Tell what a sandbox needs for what tests may hold."""
    return Resources(
        memory=math.ceil((settings.ptc_sandbox_memory_mb + _COURIER_MB) / 1024),
        disk=math.ceil((settings.ptc_sandbox_disk_mb + _PACKAGES_MB) / 1024),
    )


def _state(box: AsyncSandbox) -> str:
    return box.state.value if box.state else "in no state"
