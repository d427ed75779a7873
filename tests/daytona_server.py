"""A Daytona on this machine: the real SDK talks to it, sandboxes of this machine do the work, faults come on order."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import click
import socketio  # type: ignore[import-untyped]
from aiohttp import web
from daytona_boxes import NO_LIMIT_SECONDS, Box
from daytona_faults import (
    CONDITIONAL,
    FAULT,
    OPERATIONS,
    TWISTED,
    Fault,
    Faults,
    Refusal,
    is_struck,
    rate_limit_headers,
)
from daytona_snapshots import Snapshots
from daytona_toolbox import Toolbox
from sandbox.nested import host_of

from ptc_worker.sandbox.protocol import SandboxError
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

KEY = "test-key-for-daytona"
SNAPSHOT = "ptc-test"
"""The snapshot that is there from the start."""

FILTERS = {"labels", "states", "createdAtBefore", "limit", "cursor"}
"""What lists can be narrowed by; who asks for more must not take the answer for one."""

_TICK_SECONDS = 0.05
_FAREWELL_SECONDS = 0.01
"""What whoever is still connected is waited for when it ends; 0 would be for ever."""

_PAGE = 100
_THREADS = 128


class DaytonaServer:
    """Serves for the time of a `with`; everything that it made ends with it."""

    def __init__(
        self,
        settings: WorkerSettings,
        environment: Path,
        *faults: Fault,
        port: int = 0,
        events: bool = True,
        start_seconds: float = 0.0,
        minute: float = 60.0,
        most: int | None = None,
        seed: int = 0,
    ) -> None:
        """Prepare one.

        Args:
            settings: How large its sandboxes are.
            environment: Their image.
            faults: What goes wrong; more can be ordered while it serves.
            port: Where to listen; 0 for any free port.
            events: Whether it tells states over socket.io; the SDK asks once a second where it does not.
            start_seconds: What a sandbox takes to start.
            minute: Seconds that a minute of `ttlMinutes`, `autoStopInterval` and `autoDeleteInterval` lasts.
            most: Sandboxes that the account may have; a further one is refused with a word about CPUs.
            seed: What chance draws from.
        """
        self.key = KEY
        self.environment = environment
        self._settings = settings
        self._port = port
        self._start_seconds, self._minute, self._most = start_seconds, minute, most
        self._faults = Faults([*faults], seed)
        self._boxes: dict[str, Box] = {}
        self._gone: dict[str, dict[str, Any]] = {}
        self._created: list[str] = []
        self._requests: list[str] = []
        self._snapshots = Snapshots(SNAPSHOT, self._beside)
        self._toolbox = Toolbox(self._running, self._beside)
        self._tasks: set[asyncio.Task[None]] = set()
        self._removals: set[asyncio.Task[None]] = set()
        self._sockets = socketio.AsyncServer(async_mode="aiohttp") if events else None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    # ── what tests see ─────────────────────────────────────────────────────────────────────────────────────
    # Copies, each made in one step of the interpreter: the server's thread cannot come between.

    @property
    def url(self) -> str:
        """What `DAYTONA_API_URL` is to be."""
        return f"http://127.0.0.1:{self._port}/api"

    @property
    def sandboxes(self) -> dict[str, Box]:
        """Those that live, by id."""
        return self._boxes.copy()

    @property
    def created(self) -> list[str]:
        """The name of every sandbox that was ever made."""
        return self._created.copy()

    @property
    def requests(self) -> list[str]:
        """Every request: its method, and its path with `{id}` and the like."""
        return self._requests.copy()

    def left(self) -> list[str]:
        """Name the sandboxes that live."""
        return [box.name for box in self.sandboxes.values()]

    def order(self, *faults: Fault) -> None:
        """Let more go wrong from now on."""
        self._faults.order(*faults)

    # ── life ───────────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_default_executor(ThreadPoolExecutor(_THREADS))
        runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=_FAREWELL_SECONDS)
        try:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self._port).start()
            self._port = runner.addresses[0][1]
        finally:  # also when the port is taken: then this thread ends with the error, and nobody waits for it
            self._ready.set()
        while not self._over.is_set():
            await self._keep_time()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), _TICK_SECONDS)
        await self._end(runner)

    async def _end(self, runner: web.AppRunner) -> None:
        for box in self._boxes.values():
            box.local.stop()
        await runner.cleanup()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*self._removals, *(box.end() for box in self._boxes.values()))

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something go on by itself, until the server ends."""
        _keep(self._tasks, work)

    async def _keep_time(self) -> None:
        """End those whose time is over, as their owners wanted it."""
        now = time.monotonic()
        for box in self.sandboxes.values():
            ttl, idle, keep = (
                box.asked.get(name, default) * self._minute
                for name, default in (("ttlMinutes", 0), ("autoStopInterval", 15), ("autoDeleteInterval", -1))
            )
            if ttl and now > box.born + ttl:
                await self._remove(box)
            elif box.state == "started" and idle and now > box.touched + idle:
                await self._stop(box)
            elif box.state == "stopped" and keep >= 0 and now > box.stopped + keep:
                await self._remove(box)

    # ── requests ───────────────────────────────────────────────────────────────────────────────────────────

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._answered], client_max_size=2**30)
        if self._sockets is not None:
            self._sockets.attach(app, socketio_path="/api/socket.io")
        for method, path, operation, handler in self._routes():
            assert operation in OPERATIONS
            app.router.add_route(method, path, handler, name=operation)
        app.router.add_get("/build-logs", self._snapshots.build_logs)
        app.router.add_get("/state", self._state)
        return app

    def _routes(self) -> tuple[tuple[str, str, str, Handler], ...]:
        api, snapshots, toolbox = "/api/sandbox", "/api/snapshots", "/toolbox/{id}"
        session = toolbox + "/process/session"
        command = session + "/{session}/command/{command}"
        return (
            ("POST", api, "create", self._create),
            ("GET", api, "list", self._list),
            ("GET", api + "/{id}", "get", self._get),
            ("DELETE", api + "/{id}", "delete", self._delete),
            ("POST", api + "/{id}/stop", "stop", self._stop_on_demand),
            ("PUT", api + "/{id}/labels", "labels", self._label),
            ("GET", api + "/{id}/toolbox-proxy-url", "toolbox", self._tell_toolbox),
            ("POST", snapshots, "snapshot.create", self._snapshots.create),
            ("GET", snapshots, "snapshot.list", self._snapshots.list),
            ("GET", snapshots + "/{id}", "snapshot.get", self._snapshots.get),
            ("DELETE", snapshots + "/{id}", "snapshot.delete", self._snapshots.delete),
            ("GET", snapshots + "/{id}/build-logs-url", "snapshot.logs", self._snapshots.build_logs_url),
            ("GET", toolbox + "/work-dir", "workdir", self._toolbox.work_dir),
            ("POST", toolbox + "/files/bulk-upload", "upload", self._toolbox.upload),
            ("POST", toolbox + "/files/bulk-download", "download", self._toolbox.download),
            ("POST", toolbox + "/process/execute", "exec", self._toolbox.execute),
            ("POST", session, "session.create", self._toolbox.create_session),
            ("DELETE", session + "/{session}", "session.delete", self._toolbox.delete_session),
            ("POST", session + "/{session}/exec", "session.exec", self._toolbox.execute_in_session),
            ("GET", command, "session.poll", self._toolbox.poll),
            ("GET", command + "/logs", "session.logs", self._toolbox.logs),
        )

    @web.middleware
    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        route = request.match_info.route
        if route.name is None:
            return await handler(request)
        assert route.resource is not None
        self._requests.append(f"{request.method} {route.resource.canonical}")
        try:
            if request.headers.get("Authorization") != f"Bearer {self.key}":
                raise Refusal.of("unauthorized")
            return await self._with_faults(route.name, request, handler)
        except Refusal as refusal:
            return refusal.response(request)

    async def _with_faults(
        self, operation: str, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        fault = self._faults.strike(operation, await self._fitting(operation, request))
        request[FAULT] = fault
        if fault is not None and fault.how == "vanish":
            await self._remove(self._box(request))
        if fault is None or fault.how in TWISTED:
            return await handler(request)
        done = await handler(request) if fault.done else None
        match fault.how:
            case "slow":
                await asyncio.sleep(fault.seconds)
                return done or await handler(request)
            case "hang":
                await asyncio.sleep(NO_LIMIT_SECONDS)
            case "reset":
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case "rate-limit":
                return Refusal.of("rate-limit").response(
                    request, rate_limit_headers(operation, fault.seconds)
                )
        return Refusal.of(CONDITIONAL.get(fault.how, fault.how)).response(request)

    async def _fitting(self, operation: str, request: web.Request) -> frozenset[str]:
        """Name the conditional faults that this request fits."""
        if operation == "create" and (await request.json()).get("networkBlockAll"):
            return frozenset({"no-network-block"})
        if operation == "delete" and self._box(request).state == "creating":
            return frozenset({"refused-while-creating"})
        return frozenset()

    async def _state(self, _request: web.Request) -> web.Response:
        """Tell another process what tests see."""
        return web.json_response({"left": self.left(), "created": self.created, "requests": self.requests})

    # ── sandboxes ──────────────────────────────────────────────────────────────────────────────────────────

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self._refuse_create(asked)
        box_id = str(uuid4())
        box = self._boxes[box_id] = Box(
            id=box_id,
            name=asked.get("name") or box_id,
            asked=asked,
            labels=asked.get("labels") or {},
            local=host_of(self._settings, self.environment),
            environment=str(self.environment),
        )
        self._created.append(box.name)
        self._beside(self._start(box, fails=is_struck(request, "error-state")))
        return web.json_response(self._shown(box))

    def _refuse_create(self, asked: dict[str, Any]) -> None:
        snapshot = asked.get("snapshot") or SNAPSHOT
        if "buildInfo" not in asked and not self._snapshots.has(snapshot):
            raise Refusal(
                400, f"Snapshot {snapshot} not found. Did you add it through the Daytona Dashboard?"
            )
        if asked.get("name") in self.left():
            raise Refusal(409, f"Sandbox with name {asked['name']} already exists")
        if self._most is not None and len(self._boxes) >= self._most:
            raise Refusal(400, f"Total CPU limit exceeded. Maximum allowed: {self._most}.")

    async def _start(self, box: Box, *, fails: bool) -> None:
        await asyncio.sleep(self._start_seconds)
        try:
            await box.start()
            box.error = "the runner failed" if fails else ""
        except SandboxError as error:
            box.error = str(error)
        if box.id in self._boxes:
            await self._tell(box, "error" if box.error else "started")

    async def _tell(self, box: Box, state: str) -> None:
        """Give a sandbox another state, and tell who listens."""
        before, box.state = box.state, state
        if self._sockets is not None:
            event = {"sandbox": self._shown(box), "oldState": before, "newState": state}
            await self._sockets.emit("sandbox.state.updated", event)

    def _box(self, request: web.Request) -> Box:
        """Find the sandbox that is asked for, by id or name."""
        wanted = request.match_info["id"]
        for box in self._boxes.values():
            if wanted in {box.id, box.name}:
                return box
        raise Refusal(404, f"Sandbox with ID or name {wanted} not found")

    def _running(self, request: web.Request) -> Box:
        """Find it for something that it has to run for."""
        box = self._box(request)
        if box.state != "started":
            raise Refusal(400, "Sandbox is not started", source="DAYTONA_PROXY")
        box.touched = time.monotonic()
        return box

    async def _get(self, request: web.Request) -> web.Response:
        return web.json_response(self._shown(self._box(request)))

    async def _list(self, request: web.Request) -> web.Response:
        query = request.query
        if unknown := query.keys() - FILTERS:
            raise Refusal(400, f"lists cannot be narrowed by {', '.join(sorted(unknown))} here")
        labels, states = json.loads(query.get("labels", "{}")), query.getall("states", [])
        before = query.get("createdAtBefore", "9999-12-31T23:59:59Z")
        found = [
            item
            for item in self._listed(request[FAULT])
            if labels.items() <= item["labels"].items()
            and (not states or item["state"] in states)
            and datetime.fromisoformat(item["createdAt"]) < datetime.fromisoformat(before)
        ]
        start, limit = int(query.get("cursor", 0)), int(query.get("limit", _PAGE))
        more = str(start + limit) if start + limit < len(found) else None
        return web.json_response({"items": found[start : start + limit], "nextCursor": more})

    def _listed(self, fault: Fault | None) -> list[dict[str, Any]]:
        """Show what a list is made from: the truth, or what a fault makes of it."""
        boxes = [*self._boxes.values()]
        if fault is not None and fault.how == "unseen":
            boxes = [box for box in boxes if time.monotonic() > box.born + fault.seconds]
        stale = self._gone.values() if fault is not None and fault.how == "stale" else ()
        return [*(self._shown(box) for box in boxes), *stale]

    async def _delete(self, request: web.Request) -> web.Response:
        box = self._box(request)
        if not is_struck(request, "lie"):
            await self._remove(box)
        return web.json_response({**self._shown(box), "state": "destroying"})

    async def _remove(self, box: Box) -> None:
        if self._boxes.pop(box.id, None) is not None:
            self._gone[box.id] = {**self._shown(box), "state": "started"}
            _keep(self._removals, box.end())
            await self._tell(box, "destroyed")

    async def _stop_on_demand(self, request: web.Request) -> web.Response:
        box = self._running(request)
        await self._stop(box)
        return web.json_response(self._shown(box))

    async def _stop(self, box: Box) -> None:
        box.stopped = time.monotonic()
        box.local.stop()
        await self._tell(box, "stopped")

    async def _label(self, request: web.Request) -> web.Response:
        box = self._box(request)
        box.labels = (await request.json())["labels"]
        return web.json_response({"labels": box.labels})

    async def _tell_toolbox(self, _request: web.Request) -> web.Response:
        return web.json_response({"url": self._toolbox_url})

    @property
    def _toolbox_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/toolbox"

    def _shown(self, box: Box) -> dict[str, Any]:
        """Show a sandbox with all that the SDK's models demand, and what else tells something."""
        told = ("snapshot", "autoStopInterval", "autoDeleteInterval", "ttlMinutes", "networkAllowList")
        return {
            "id": box.id,
            "organizationId": "org-of-tests",
            "name": box.name,
            "user": "daytona",
            "env": box.asked.get("env", {}),
            "labels": box.labels,
            "public": False,
            "networkBlockAll": box.asked.get("networkBlockAll", False),
            "kvm": False,
            "target": box.asked.get("target", "us"),
            "cpu": box.asked.get("cpu", 1),
            "gpu": 0,
            "memory": box.asked.get("memory", 1),
            "disk": box.asked.get("disk", 3),
            "state": box.state,
            "createdAt": box.created.isoformat(),
            "toolboxProxyUrl": self._toolbox_url,
            **({"errorReason": box.error} if box.error else {}),
            **{name: box.asked[name] for name in told if name in box.asked},
        }


def _keep(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    """Begin something, and remember it until it has ended."""
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


@click.command()
@click.option("--port", default=0, help="Where to listen; 0 for any free port.")
@click.option(
    "--environment",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="The image of its sandboxes.",
)
@click.option(
    "--faults", default="[]", help='JSON: [{"where": "exec", "how": "bad-gateway", "times": 3}, …].'
)
@click.option("--start-seconds", default=0.0, help="What a sandbox takes to start.")
@click.option("--minute", default=60.0, help="Seconds that a minute of a sandbox's life lasts.")
@click.option("--most", type=int, help="Sandboxes that the account may have.")
@click.option("--seed", default=0, help="What chance draws from.")
def main(environment: Path, faults: str, **options: Any) -> None:
    """Serve until SIGTERM; print the address once it can be reached. What tests see is at `/state`."""
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    orders = [Fault(**fault) for fault in json.loads(faults)]
    with DaytonaServer(WorkerSettings(), environment, *orders, **options) as server:
        print(server.url, flush=True)  # noqa: T201 a program
        over.wait()


if __name__ == "__main__":
    main()
