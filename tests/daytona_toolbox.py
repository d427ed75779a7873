"""The loopback Daytona's toolbox: files and commands of one sandbox, as the daemon in it answers for them."""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from aiohttp import BodyPartReader, web
from daytona_boxes import NO_LIMIT_SECONDS, Command
from daytona_faults import Refusal, is_struck

from ptc_worker.sandbox.protocol import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from daytona_boxes import Box

_DAEMON = "DAYTONA_DAEMON"
_SIGNALLED = -1
"""The exit code of whatever a signal ended, as Go has it."""


class Toolbox:
    """What can be asked of a sandbox that runs."""

    def __init__(
        self, box: Callable[[web.Request], Box], beside: Callable[[Coroutine[Any, Any, None]], None]
    ) -> None:
        """Serve; `box` finds the sandbox that a request is for, `beside` lets something go on by itself."""
        self._box, self._beside = box, beside

    async def work_dir(self, request: web.Request) -> web.Response:
        """Tell where commands start."""
        return web.json_response({"dir": self._box(request).local.root})

    # ── files ──────────────────────────────────────────────────────────────────────────────────────────────

    async def upload(self, request: web.Request) -> web.Response:
        """Write the files of a form: the path of each comes before it."""
        box = self._box(request)
        paths: dict[str, str] = {}
        files: dict[str, bytes] = {}
        async for part in await request.multipart():
            assert isinstance(part, BodyPartReader)
            number, _, kind = (part.name or "").rpartition(".")
            if kind == "path":
                paths[number] = await part.text()
            else:
                files[paths[number]] = bytes(await part.read())
        try:
            await box.write(files)
        except SandboxError as error:
            return web.json_response({"errors": [str(error)]}, status=400)
        return web.json_response({})

    async def download(self, request: web.Request) -> web.StreamResponse:
        """Send files as the parts of a form, and an error in the place of one that is not there."""
        box = self._box(request)
        boundary = secrets.token_hex(16)
        parts = [_part(path, await box.read(path)) for path in (await request.json())["paths"]]
        body = b"".join(b"--%s\r\n%s\r\n" % (boundary.encode(), part) for part in parts)
        return await _sent(request, boundary, body)

    # ── commands ───────────────────────────────────────────────────────────────────────────────────────────

    async def execute(self, request: web.Request) -> web.Response:
        """Run a command; one that took too long leaves no word of what it wrote."""
        box, asked = self._box(request), await request.json()
        try:
            ran = await box.run(
                f"exec 2>&1\n{asked['command']}",
                cwd=asked.get("cwd") or "",
                env=asked.get("envs") or {},
                seconds=asked.get("timeout") or NO_LIMIT_SECONDS,
            )
        except SandboxError:
            raise Refusal.of("bad-gateway") from None
        if ran.timed_out:
            raise Refusal.of("timeout")
        code = max(ran.exit_code, _SIGNALLED)
        return web.json_response({"exitCode": code, "result": ran.stdout.decode(errors="replace")})

    async def create_session(self, request: web.Request) -> web.Response:
        """Begin one."""
        sessions, name = self._box(request).sessions, (await request.json())["sessionId"]
        if name in sessions:
            raise Refusal(409, "session already exists", source=_DAEMON)
        sessions[name] = {}
        return web.Response(status=201)

    async def delete_session(self, request: web.Request) -> web.Response:
        """End one; what runs in it goes on here, for it is the sandbox's only turn."""
        self._session(request)
        del self._box(request).sessions[request.match_info["session"]]
        return web.Response(status=204)

    async def execute_in_session(self, request: web.Request) -> web.Response:
        """Run a command, and wait for it if that is wanted."""
        box, session, asked = self._box(request), self._session(request), await request.json()
        command = Command(id=str(uuid4()), text=asked["command"])
        session[command.id] = command
        runs = _run(box, command, mute=is_struck(request, "mute"))
        if asked.get("runAsync"):
            self._beside(runs)
            return web.json_response({"cmdId": command.id}, status=202)
        await runs
        return web.json_response({"cmdId": command.id, **_exit(command), **_output(command)})

    async def poll(self, request: web.Request) -> web.Response:
        """Show a command; it has no exit code until it has ended."""
        command = self._command(request)
        return web.json_response({"id": command.id, "command": command.text, **_exit(command)})

    async def logs(self, request: web.Request) -> web.Response:
        """Tell what a command that has ended wrote."""
        return web.json_response(_output(self._command(request)))

    def _session(self, request: web.Request) -> dict[str, Command]:
        sessions = self._box(request).sessions
        if request.match_info["session"] not in sessions:
            raise Refusal(404, "session not found", source=_DAEMON)
        return sessions[request.match_info["session"]]

    def _command(self, request: web.Request) -> Command:
        session = self._session(request)
        if request.match_info["command"] not in session:
            raise Refusal(404, "command not found", source=_DAEMON)
        return session[request.match_info["command"]]


async def _run(box: Box, command: Command, *, mute: bool) -> None:
    with suppress(SandboxError):  # it was deleted: nobody will ask
        await box.run_in_session(command)
    if mute:
        command.exit_code = None


def _exit(command: Command) -> dict[str, int]:
    return {} if command.exit_code is None else {"exitCode": command.exit_code}


def _output(command: Command) -> dict[str, str]:
    return {"output": command.stdout + command.stderr, "stdout": command.stdout, "stderr": command.stderr}


def _part(path: str, content: bytes | None) -> bytes:
    if content is not None:
        return _headed("file", path, "application/octet-stream") + content
    missing = Refusal(404, f"file not found: {path}", code="FILE_NOT_FOUND", source=_DAEMON)
    return _headed("error", path, "application/json") + json.dumps(missing.body).encode()


def _headed(name: str, path: str, kind: str) -> bytes:
    disposition = f'form-data; name="{name}"; filename="{path}"'
    return f"Content-Disposition: {disposition}\r\nContent-Type: {kind}\r\n\r\n".encode()


async def _sent(request: web.Request, boundary: str, body: bytes) -> web.StreamResponse:
    """Send a form, whole or as a fault leaves it."""
    whole = body + f"--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    if not is_struck(request, "cut"):
        return web.Response(body=body if is_struck(request, "unclosed") else whole, headers=headers)
    response = web.StreamResponse(headers={**headers, "Content-Length": str(len(whole))})
    await response.prepare(request)
    await response.write(whole[: len(whole) // 2])
    assert request.transport is not None
    request.transport.close()
    return response
