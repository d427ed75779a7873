"""Sandboxes at E2B, which makes micro machines from templates; its SDK is spoken with here and nowhere else."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from e2b import (
    ApiParams,
    AsyncSandbox,
    AuthenticationException,
    CommandExitException,
    ConnectionConfig,
    FileNotFoundException,
    InvalidArgumentException,
    NotEnoughSpaceException,
    NotFoundException,
    SandboxException,
    SandboxNotFoundException,
    SandboxNotRunningException,
    SandboxQuery,
    TemplateException,
)
from e2b.api.client.api.sandboxes import post_v2_sandboxes
from e2b.api.client.models import Error, NewSandboxV2, Sandbox
from e2b.api.client_async import get_api_client
from e2b.retry import parse_retry_after

from ptc_worker.busy import BusyError
from ptc_worker.once import once
from ptc_worker.sandbox.machine import again
from ptc_worker.sandbox.protocol import IsolationRefusedError, SandboxError, UnsureError
from ptc_worker.sandbox.vendors import Found, RemoteKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from e2b import SandboxInfo
    from e2b.api.client.types import Response

    from ptc_worker.sandbox.machine import Machine
    from ptc_worker.sandbox.protocol import Purpose
    from ptc_worker.settings import WorkerSettings

_NAME, _MARK = "ptc-name", "ptc-mark"
"""What a sandbox carries beside its purpose, for E2B gives no names: ours, and what no other one has."""

_USER = "root"
"""The courier gives commands another user."""

_LIFE_SECONDS = 3600
"""After which E2B ends a sandbox by itself: the longest that every account may ask for."""

_SPARE_SECONDS = 600
"""What a run needs beside the time of its tests, generously."""

_AHEAD_SECONDS = 600
"""How long one that was made ahead can wait for a run at least; small, for not every account may ask for much more."""

# The SDK waits twice as long as it is told to: its transport adds up what reading and writing may take.
_REQUEST_SECONDS = 10.0
_TRANSFER_SECONDS = 30.0
_ROOM_SECONDS = 10.0
"""When it is worth asking for room again if E2B does not say."""

_SAID_CHARS = 300


@once
def kind_for(settings: WorkerSettings) -> RemoteKind:
    """Return this process's sandboxes for these settings."""
    return RemoteKind(settings, E2B(settings))


class E2B:
    """What is special about E2B."""

    name = "e2b"
    image_setting = "PTC_E2B_TEMPLATE"
    network_allowed = False

    def __init__(self, settings: WorkerSettings) -> None:
        self.image = settings.ptc_e2b_template
        self._settings = settings
        self._account = Account(settings)

    def machine(self, name: str, purpose: Purpose) -> Machine:
        """Describe a sandbox that carries this name and these labels."""
        ahead = not purpose.run_id and self._settings.sandboxes_ahead > 0
        metadata = {**purpose.labels, _NAME: name}
        return E2BMachine(self._settings, self._account, metadata, ahead=ahead)

    async def found(self, installation: str) -> list[Found]:
        """List an installation's sandboxes, those that E2B has paused among them."""
        return [
            Found(box.metadata.get(_NAME, ""), box.metadata, box.sandbox_id)
            for box in await self._account.listed({"ptc": installation})
        ]

    async def delete(self, found: Found) -> None:
        """Remove one, and have that confirmed."""
        await self._account.removed(str(found.handle))


class Account:
    """The way to E2B's services, and what their answers mean."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._api_url = settings.e2b_api_url or f"https://api.{settings.e2b_domain}"
        self.place = f"E2B at {self._api_url} ({'E2B_API_URL' if settings.e2b_api_url else 'E2B_DOMAIN'})"
        """Where it is, for messages."""

    @property
    def way(self) -> ApiParams:
        """What every call is given, so that the SDK looks for nothing in this process's environment.

        Raises:
            IsolationRefusedError: there is no key.
        """
        key = self._settings.e2b_api_key
        if key is None:
            raise IsolationRefusedError(
                "E2B wants a key: set E2B_API_KEY, or choose another kind of sandbox with PTC_SANDBOX"
            )
        return ApiParams(
            api_key=key.get_secret_value(),
            domain=self._settings.e2b_domain,
            api_url=self._api_url,
            sandbox_url=self._settings.e2b_sandbox_url,
            debug=False,
            http_version="2",
            request_timeout=min(_REQUEST_SECONDS, self._settings.ptc_sandbox_start_timeout / 4),
        )

    async def listed(self, metadata: Mapping[str, str]) -> list[SandboxInfo]:
        """List the sandboxes that carry all of this."""
        with self.asked():
            pages = AsyncSandbox.list(SandboxQuery(metadata=dict(metadata)), **self.way)
            boxes: list[SandboxInfo] = []
            while pages.has_next:
                boxes += await pages.next_items()
            return boxes

    async def removed(self, sandbox_id: str) -> None:
        """End a sandbox, and return when E2B does not know it any more.

        Raises:
            UnsureError: E2B says that it ended it, and still has it.
        """
        with self.asked():
            if not await AsyncSandbox.kill(sandbox_id, **self.way):
                return
            try:
                await AsyncSandbox.get_info(sandbox_id, **self.way)
            except SandboxNotFoundException:
                return
        raise UnsureError(f"E2B has not removed the sandbox {sandbox_id}")

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Let no exception of the SDK's out of a block: some have the key in them."""
        try:
            yield
        except SandboxError:
            raise
        except Exception as error:  # noqa: BLE001 it raises its own, those of three libraries, and bare ones
            raise self._translated(error) from None

    def _translated(self, error: Exception) -> SandboxError:
        said = self.said(error)
        match error:
            case SandboxNotRunningException() | NotFoundException():
                return SandboxError(f"E2B has the sandbox no more: {said}")
            case AuthenticationException() | SandboxException(status_code=401 | 403):
                return self.refused(said)
            case InvalidArgumentException() | NotEnoughSpaceException() | TemplateException():
                return SandboxError(f"E2B does not do it: {said}")
        return UnsureError(f"E2B did not answer well: {said}")

    def refused(self, said: str) -> IsolationRefusedError:
        """Say that the key opens nothing."""
        return IsolationRefusedError(f"E2B refuses the key in E2B_API_KEY: {said}")

    def said(self, what: object) -> str:
        """Quote E2B, without the key."""
        key = self._settings.e2b_api_key
        text = str(what) or type(what).__name__
        return (text.replace(key.get_secret_value(), "…") if key else text)[:_SAID_CHARS]


class E2BMachine:
    """One sandbox."""

    alone = False
    blocked = False
    until = 0.0

    def __init__(
        self, settings: WorkerSettings, account: Account, metadata: Mapping[str, str], *, ahead: bool
    ) -> None:
        self._ahead = ahead
        self._settings = settings
        self._account = account
        self._mark = uuid4().hex
        self._metadata = {**metadata, _MARK: self._mark}
        self._keys = 1
        self._complaint = "no answer"
        self._open = 0
        """How many times it was asked for without being known what became of it."""
        self._id = ""
        self._box: AsyncSandbox | None = None

    async def start(self) -> None:
        """Have it made, or find what was made."""
        seconds = self._settings.ptc_sandbox_start_timeout
        try:
            async with asyncio.timeout(seconds):
                self._box = await again(self._asked_for)
        except TimeoutError:
            failure = SandboxError if self._id else UnsureError
            raise failure(
                f"{self._account.place} gave no sandbox within {seconds:g} s (PTC_SANDBOX_START_TIMEOUT): "
                f"{self._complaint}"
            ) from None
        self.until = time.monotonic() + self._life - self._run_seconds
        self.blocked = True

    async def put(self, files: Mapping[str, bytes]) -> None:
        """Write files in one request."""
        entries = [{"path": path, "data": content} for path, content in files.items()]
        with self._account.asked():
            await self._there.files.write_files(entries, user=_USER, request_timeout=_TRANSFER_SECONDS)  # type: ignore[arg-type]

    async def run(self, command: str, seconds: float) -> tuple[int, bytes]:
        """Run a command."""
        with self._account.asked():
            try:
                ended = await self._there.commands.run(
                    command, user=_USER, timeout=seconds, request_timeout=_TRANSFER_SECONDS
                )
            except CommandExitException as failed:
                return failed.exit_code, failed.stdout.encode()
        return ended.exit_code, ended.stdout.encode()

    async def get(self, path: str) -> bytes | None:
        """Read a file."""
        with self._account.asked():
            try:
                content = await self._there.files.read(
                    path, format="bytes", user=_USER, request_timeout=_TRANSFER_SECONDS
                )
            except FileNotFoundException:
                return None
        return bytes(content)

    async def delete(self) -> None:
        """Remove it, and whatever else was made because an answer was lost."""
        ours = {self._id} - {""}
        if self._open:
            ours |= {box.sandbox_id for box in await self._account.listed({_MARK: self._mark})}
        for sandbox_id in ours:
            await self._account.removed(sandbox_id)

    @property
    def _there(self) -> AsyncSandbox:
        assert self._box is not None  # noqa: S101 nobody asks before it was started
        return self._box

    # ── being made ─────────────────────────────────────────────────────────────────────────────────────────

    async def _asked_for(self) -> AsyncSandbox:
        try:
            return await self._reached()
        except UnsureError as error:
            self._complaint = str(error)
            raise

    async def _reached(self) -> AsyncSandbox:
        if not self._id and self._open:
            self._id = await self._adopted()
        if not self._id:
            self._id = await self._made()
        with self._account.asked():
            return await AsyncSandbox.connect(self._id, timeout=self._life, **self._account.way)

    async def _adopted(self) -> str:
        """Find what was made although nobody heard of it; empty if there is none, as far as E2B's list tells."""
        boxes = await self._account.listed({_MARK: self._mark})
        return boxes[0].sandbox_id if boxes else ""

    async def _made(self) -> str:
        """Ask for one. The same key asks for the same one: what was made for it before is answered again.

        The SDK's own `create` keeps to itself when to come back, and which kind of refusal it was.
        """
        self._open += 1
        way = ApiParams(**self._account.way, retries=0)
        wanted = NewSandboxV2(
            template_id=self._settings.ptc_e2b_template,
            timeout=self._life,
            metadata=self._metadata,
            allow_internet_access=False,
        )
        with self._account.asked():
            answer = await post_v2_sandboxes.asyncio_detailed(
                body=wanted,
                client=get_api_client(ConnectionConfig(**way)),
                idempotency_key=f"{self._mark}-{self._keys}",
            )
        if isinstance(answer.parsed, Sandbox):
            self._open -= 1
            return answer.parsed.sandbox_id
        raise self._refusal(answer)

    def _refusal(self, answer: Response[Error | Sandbox]) -> Exception:
        told = answer.parsed if isinstance(answer.parsed, Error) else None
        said = self._account.said(told.message if told else f"status {answer.status_code}")
        match int(answer.status_code):
            case 409:
                self._keys += told is not None and told.error_code != "idempotency_in_progress"
            case 401 | 403:
                self._open -= 1
                return self._account.refused(said)
            case 400 | 404 | 422:
                self._open -= 1
                return IsolationRefusedError(
                    f"E2B makes no sandbox from the template {self._settings.ptc_e2b_template!r} "
                    f"(PTC_E2B_TEMPLATE): {said}"
                )
            case 429 | 503 if told:
                self._open -= 1
                seconds = parse_retry_after(answer.headers.get("Retry-After"))
                return BusyError(seconds or _ROOM_SECONDS, f"E2B has no room: {said}")
        return UnsureError(f"E2B may have made a sandbox: {said}")

    @property
    def _life(self) -> int:
        return max(_LIFE_SECONDS, self._run_seconds + (_AHEAD_SECONDS if self._ahead else 0))

    @property
    def _run_seconds(self) -> int:
        """What a run may need it for at most."""
        return int(self._settings.ptc_test_timeout) + _SPARE_SECONDS
