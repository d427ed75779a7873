"""The loopback Daytona speaks to the real SDK as Daytona does, and goes wrong in the ways that Daytona goes wrong."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import daytona
import psutil
import pytest
from daytona import (
    AsyncDaytona,
    CreateSandboxFromImageParams,
    CreateSandboxFromSnapshotParams,
    CreateSnapshotParams,
    DaytonaConfig,
    FileDownloadRequest,
    FileUpload,
    ListSandboxesQuery,
    SessionExecuteRequest,
)
from daytona_faults import Fault
from daytona_server import SNAPSHOT, DaytonaServer
from support import until

from ptc_worker.environments import environment
from ptc_worker.halt import Halt
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from daytona import AsyncSandbox

    Act = Callable[[AsyncDaytona, AsyncSandbox], Awaitable[object]]

MARKER = "31340.25"
EXECUTE = "POST /toolbox/{id}/process/execute"


@pytest.fixture(scope="module")
def settings(cache: Path) -> WorkerSettings:
    """How large sandboxes are."""
    return WorkerSettings(ptc_cache_dir=cache, ptc_sandbox_memory_mb=256, ptc_sandbox_disk_mb=32)


@pytest.fixture(scope="module")
def image(settings: WorkerSettings) -> Iterator[Path]:
    """What sandboxes are made from."""
    with environment(settings, (), 120, Halt()) as folder:
        yield folder


@pytest.fixture
def server(settings: WorkerSettings, image: Path) -> Iterator[DaytonaServer]:
    """A server of this test alone."""
    with DaytonaServer(settings, image) as server:
        yield server


@asynccontextmanager
async def client(server: DaytonaServer, key: str = "") -> AsyncIterator[AsyncDaytona]:
    """Open the SDK."""
    async with AsyncDaytona(DaytonaConfig(api_key=key or server.key, api_url=server.url)) as opened:
        yield opened


def params(**fields: Any) -> CreateSandboxFromSnapshotParams:
    """Ask for a sandbox."""
    return CreateSandboxFromSnapshotParams(**{"snapshot": SNAPSHOT, "name": "one", **fields})


def do(server: DaytonaServer, act: Act, **fields: Any) -> Any:
    """Do something with a new sandbox."""

    async def with_one() -> object:
        async with client(server) as opened:
            return await act(opened, await opened.create(params(**fields)))

    return asyncio.run(with_one())


# ── what is done ───────────────────────────────────────────────────────────────────────────────────────────


def test_files_go_in_and_come_back(server: DaytonaServer) -> None:
    """Folders are made, bytes stay as they are, and each file that is not there is told apart."""

    async def act(_: AsyncDaytona, box: AsyncSandbox) -> object:
        root = await box.get_work_dir()
        await box.fs.upload_files([FileUpload(b"\0\xff", "a/b.bin"), FileUpload(b"text", f"{root}/c.txt")])
        wanted = [FileDownloadRequest(source=path) for path in ("a/b.bin", "c.txt", "none")]
        return await box.fs.download_files(wanted)

    found = do(server, act)

    assert [one.result for one in found] == [b"\0\xff", b"text", None]
    assert found[2].error_details.code == "FILE_NOT_FOUND"


def test_files_cannot_be_put_elsewhere(server: DaytonaServer) -> None:
    """A path outside of the working directory is refused."""
    with pytest.raises(daytona.DaytonaError, match="permission denied"):
        do(server, lambda _, box: box.fs.upload_files([FileUpload(b"", "/etc/passwd")]))


def test_a_command_runs_with_its_directory_its_variables_and_both_outputs_in_one(
    server: DaytonaServer,
) -> None:
    """It is a real command, and the sandbox's own variables are there beside its own."""
    command = "mkdir -p d; cd d; pwd; echo $A$B >&2; exit 3"

    ran = do(server, lambda _, box: box.process.exec(command, env={"B": "b"}), env_vars={"A": "a"})

    assert (ran.exit_code, ran.result) == (3, "/sandbox/d\nab\n")


def test_a_command_that_a_signal_ends_has_no_exit_code_of_its_own(server: DaytonaServer) -> None:
    """The daemon does not tell which signal it was."""
    assert do(server, lambda _, box: box.process.exec("kill -9 $$")).exit_code == -1


def test_a_command_that_takes_too_long_is_killed_and_its_output_lost(server: DaytonaServer) -> None:
    """As the real daemon does it."""
    with pytest.raises(daytona.DaytonaProcessExecutionTimeoutError) as caught:
        do(server, lambda _, box: box.process.exec("echo out; sleep 60", timeout=1))

    assert caught.value.status_code == 408
    assert "out\n" not in str(caught.value)


async def in_session(box: AsyncSandbox, command: str) -> Any:
    """Begin a command in a session, and wait a while for its exit code."""
    await box.process.create_session("s")
    begun = await box.process.execute_session_command(
        "s", SessionExecuteRequest(command=command, run_async=True)
    )
    await box.process.exec("true")  # whose turn comes when the other has ended
    return await box.process.get_session_command(
        "s", begun.cmd_id
    ), await box.process.get_session_command_logs("s", begun.cmd_id)


def test_a_session_tells_an_exit_code_and_outputs_apart(server: DaytonaServer) -> None:
    """A command in a shell of its own leaves the session's alive."""
    told, logs = do(server, lambda _, box: in_session(box, "sh -c 'echo out; echo err >&2; exit 4'"))

    assert (told.exit_code, logs.stdout, logs.stderr) == (4, "out\n", "err\n")


@pytest.mark.parametrize("command", ["exit 0", "exec true", "set -e; false"])
def test_a_command_that_ends_its_sessions_shell_never_tells_an_exit_code(
    server: DaytonaServer, command: str
) -> None:
    """Commands are read into the shell that the session is."""
    told, _ = do(server, lambda _, box: in_session(box, command))

    assert told.exit_code is None


def test_a_list_comes_in_pages_and_knows_labels(server: DaytonaServer) -> None:
    """Nothing is missing, and nothing of others is there."""

    async def act(opened: AsyncDaytona, box: AsyncSandbox) -> list[str]:
        for number in range(5):
            await opened.create(params(name=f"n{number}", labels={"mine": "yes"}))
        await box.set_labels({"mine": "no"})
        query = ListSandboxesQuery(labels={"mine": "yes"}, limit=2)
        return [found.name async for found in opened.list(query)]

    assert do(server, act) == ["n0", "n1", "n2", "n3", "n4"]


def test_what_was_deleted_is_gone_and_stops_what_it_ran(server: DaytonaServer) -> None:
    """A deletion does not wait for a command."""

    async def act(opened: AsyncDaytona, box: AsyncSandbox) -> object:
        running = asyncio.create_task(box.process.exec("touch here; sleep 600"))
        await asyncio.to_thread(until, lambda: EXECUTE in server.requests)
        await box.delete(wait=True)
        with pytest.raises(daytona.DaytonaError):
            await running
        return await opened.get("one")

    with pytest.raises(daytona.DaytonaNotFoundError):
        do(server, act)
    assert (server.created, server.left()) == (["one"], [])


def test_a_name_is_taken_once(server: DaytonaServer) -> None:
    """As long as its sandbox lives."""
    with pytest.raises(daytona.DaytonaConflictError):
        do(server, lambda opened, _: opened.create(params()))

    assert server.created == ["one"]


def test_a_sandbox_ends_with_its_time(settings: WorkerSettings, image: Path) -> None:
    """`ttl_minutes` holds in any state."""
    with DaytonaServer(settings, image, minute=0.2) as server:
        do(server, lambda _, box: box.refresh_data(), ttl_minutes=1, auto_stop_interval=0)

        until(lambda: server.left() == [])


def test_a_sandbox_that_is_left_alone_stops_and_is_deleted(settings: WorkerSettings, image: Path) -> None:
    """`auto_delete_interval=0` deletes what `auto_stop_interval` stops."""
    with DaytonaServer(settings, image, minute=0.2) as server:
        do(server, lambda _, box: box.refresh_data(), auto_stop_interval=1, auto_delete_interval=0)

        until(lambda: server.left() == [])


def test_a_snapshot_is_built_from_an_image_and_used(server: DaytonaServer) -> None:
    """Before that it is not there, and sandboxes cannot be made from it."""

    async def act(opened: AsyncDaytona, _: AsyncSandbox) -> list[str]:
        with pytest.raises(daytona.DaytonaNotFoundError):
            await opened.snapshot.get("new")
        with pytest.raises(daytona.DaytonaBadRequestError, match="Snapshot new not found"):
            await opened.create(params(name="two", snapshot="new"))
        await opened.snapshot.create(
            CreateSnapshotParams(name="new", image=daytona.Image.debian_slim("3.12")), on_logs=logs.append
        )
        await opened.create(params(name="two", snapshot="new"))
        return [snapshot.name for snapshot in (await opened.snapshot.list()).items]

    logs: list[str] = []

    assert do(server, act) == [SNAPSHOT, "new"]
    assert "Step 1/1: built" in logs


def test_a_build_may_fail(server: DaytonaServer) -> None:
    """What it leaves is of no use."""
    server.order(Fault(where="snapshot.create", how="error-state"))

    async def act(opened: AsyncDaytona, _: AsyncSandbox) -> None:
        with pytest.raises(daytona.DaytonaError, match="the build failed"):
            await opened.snapshot.create(CreateSnapshotParams(name="new", image="python:3.12-slim"))
        await opened.create(params(name="two", snapshot="new"))

    with pytest.raises(daytona.DaytonaBadRequestError, match="Snapshot new not found"):
        do(server, act)


def test_a_sandbox_is_made_from_an_image(server: DaytonaServer) -> None:
    """No snapshot is needed."""
    image = CreateSandboxFromImageParams(image="python:3.12-slim", name="two")

    box = do(server, lambda opened, _: opened.create(image))

    assert box.state == "started"


def test_states_are_asked_for_where_no_events_come(settings: WorkerSettings, image: Path) -> None:
    """The SDK goes on without socket.io."""
    with DaytonaServer(settings, image, events=False) as server:
        do(server, lambda _, box: box.refresh_data())

        assert server.requests.count("GET /api/sandbox/{id}") >= 2


# ── what goes wrong ────────────────────────────────────────────────────────────────────────────────────────

BAD_GATEWAY = daytona.DaytonaBadGatewayError


async def execute(_: AsyncDaytona, box: AsyncSandbox) -> object:
    """Run a command."""
    return await box.process.exec("true")


async def upload(_: AsyncDaytona, box: AsyncSandbox) -> None:
    """Write a file."""
    await box.fs.upload_files([FileUpload(b"x", "a")])


async def download(_: AsyncDaytona, box: AsyncSandbox) -> object:
    """Read a file."""
    await box.fs.upload_files([FileUpload(b"x" * 100_000, "a")])
    return await box.fs.download_file("a")


async def nothing(_: AsyncDaytona, box: AsyncSandbox) -> object:
    """Be content that there is one."""
    return box


async def delete(_: AsyncDaytona, box: AsyncSandbox) -> None:
    """Delete it."""
    await box.delete()


async def poll(_: AsyncDaytona, box: AsyncSandbox) -> object:
    """Ask for a session's command, with a limit."""
    await box.process.create_session("s")
    begun = await box.process.execute_session_command(
        "s", SessionExecuteRequest(command="true", run_async=True)
    )
    return await box.process.get_session_command("s", begun.cmd_id, request_timeout=1)


@pytest.mark.parametrize(
    ("fault", "act", "error"),
    [
        (Fault(where="create", how="bad-gateway"), nothing, BAD_GATEWAY),
        (Fault(where="create", how="bad-gateway", done=True), nothing, BAD_GATEWAY),
        (Fault(where="create", how="quota"), nothing, daytona.DaytonaBadRequestError),
        (Fault(where="create", how="rate-limit"), nothing, daytona.DaytonaRateLimitError),
        (Fault(where="create", how="forbidden"), nothing, daytona.DaytonaForbiddenError),
        (Fault(where="create", how="unauthorized"), nothing, daytona.DaytonaAuthenticationError),
        (Fault(where="create", how="error-state"), nothing, daytona.DaytonaError),
        (Fault(where="create", how="no-network-block"), nothing, daytona.DaytonaBadRequestError),
        (Fault(where="create", how="reset"), nothing, daytona.DaytonaConnectionError),
        (Fault(where="exec", how="bad-gateway"), execute, BAD_GATEWAY),
        (Fault(where="exec", how="timeout", done=True), execute, daytona.DaytonaProcessExecutionTimeoutError),
        (Fault(where="exec", how="vanish"), execute, daytona.DaytonaNotFoundError),
        (Fault(where="upload", how="reset"), upload, daytona.DaytonaConnectionError),
        (Fault(where="upload", how="reset", done=True), upload, daytona.DaytonaConnectionError),
        (Fault(where="upload", how="unavailable"), upload, daytona.DaytonaError),
        (Fault(where="download", how="cut"), download, daytona.DaytonaError),
        (Fault(where="download", how="unclosed"), download, daytona.DaytonaError),
        (Fault(where="session.poll", how="hang"), poll, daytona.DaytonaTimeoutError),
        (Fault(where="delete", how="conflict"), delete, daytona.DaytonaConflictError),
    ],
    ids=lambda value: f"{value.where}-{value.how}-{value.done}" if isinstance(value, Fault) else "",
)
def test_the_sdk_takes_a_fault_for_what_it_is(
    server: DaytonaServer, fault: Fault, act: Act, error: type[Exception]
) -> None:
    """It raises the class that it has for it, without a try of its own, and the next one goes well."""
    server.order(fault)

    with pytest.raises(error):
        do(server, act, network_block_all=True)

    do(server, act, name="again")


@pytest.mark.parametrize("done", [False, True])
def test_a_create_that_is_lost_may_have_made_a_sandbox(server: DaytonaServer, done: bool) -> None:
    """Whether it did, nothing in the answer tells."""
    server.order(Fault(where="create", how="bad-gateway", done=done))

    with pytest.raises(BAD_GATEWAY):
        do(server, nothing)

    assert server.left() == ["one"] * done


def test_a_create_may_take_longer_than_its_client_waits(server: DaytonaServer) -> None:
    """The sandbox is there, and the client does not know its id."""
    server.order(Fault(where="create", how="slow", done=True, seconds=60))

    async def hurried() -> None:
        async with client(server) as opened:
            await opened.create(params(), timeout=1)

    with pytest.raises(daytona.DaytonaTimeoutError):
        asyncio.run(hurried())
    assert server.left() == ["one"]


def test_a_rate_limit_says_when_to_come_back(server: DaytonaServer) -> None:
    """In headers whose names end with the limit's."""
    server.order(Fault(where="create", how="rate-limit", seconds=7))

    with pytest.raises(daytona.DaytonaRateLimitError) as caught:
        do(server, nothing)

    assert caught.value.headers["Retry-After-sandbox-create"] == "7"


def test_an_account_has_room_for_so_many(settings: WorkerSettings, image: Path) -> None:
    """What is too much is a bad request, and only its text tells why."""
    with DaytonaServer(settings, image, most=1) as server:
        with pytest.raises(daytona.DaytonaBadRequestError, match="Total CPU limit exceeded"):
            do(server, lambda opened, _: opened.create(params(name="two")))

        assert server.left() == ["one"]


def test_a_deletion_may_be_a_lie(server: DaytonaServer) -> None:
    """Who asks again finds the sandbox at work."""
    server.order(Fault(where="delete", how="lie"))

    async def act(opened: AsyncDaytona, box: AsyncSandbox) -> AsyncSandbox:
        await box.delete()
        return await opened.get("one")

    assert do(server, act).state == "started"


def test_what_is_being_made_may_not_let_itself_be_deleted(settings: WorkerSettings, image: Path) -> None:
    """Until it has started."""
    fault = Fault(where="delete", how="refused-while-creating", times=None)

    async def early(server: DaytonaServer) -> None:
        async with client(server) as opened:
            making = asyncio.create_task(opened.create(params()))
            await asyncio.to_thread(until, server.left)
            with pytest.raises(daytona.DaytonaConflictError):
                await (await opened.get("one")).delete()
            await (await making).delete()

    with DaytonaServer(settings, image, fault, start_seconds=0.5) as server:
        asyncio.run(early(server))

        assert server.left() == []


@pytest.mark.parametrize(("how", "listed"), [("stale", ["new", "one"]), ("unseen", [])])
def test_a_list_may_be_wrong(server: DaytonaServer, how: str, listed: list[str]) -> None:
    """It shows what is gone, or hides what is new; the next one is right."""
    server.order(Fault(where="list", how=how, seconds=60))

    async def act(opened: AsyncDaytona, box: AsyncSandbox) -> list[list[str]]:
        await box.delete()
        await opened.create(params(name="new"))
        return [[found.name async for found in opened.list()] for _ in range(2)]

    assert do(server, act) == [listed, ["new"]]


def test_an_exit_code_may_never_arrive(server: DaytonaServer) -> None:
    """Though the command has run."""
    server.order(Fault(where="session.exec", how="mute"))

    told, logs = do(server, lambda _, box: in_session(box, "echo out"))

    assert (told.exit_code, logs.stdout) == (None, "out\n")


def test_a_fault_strikes_when_and_as_often_as_it_is_ordered(server: DaytonaServer) -> None:
    """After one that passes, twice, and then no more."""
    server.order(Fault(where="exec", how="bad-gateway", after=1, times=2))

    async def act(opened: AsyncDaytona, box: AsyncSandbox) -> list[bool]:
        went = []
        for _ in range(4):
            try:
                await execute(opened, box)
            except BAD_GATEWAY:
                went.append(False)
            else:
                went.append(True)
        return went

    assert do(server, act) == [True, False, False, True]


@pytest.mark.parametrize(
    "fields", [{"where": "nowhere", "how": "reset"}, {"where": "exec", "how": "somehow"}]
)
def test_a_fault_that_could_never_strike_is_refused(fields: dict[str, Any]) -> None:
    """A test that orders it would pass for nothing."""
    with pytest.raises(ValueError, match="no such"):
        Fault(**fields)


def test_a_wrong_key_is_refused(server: DaytonaServer) -> None:
    """Nothing is made for it."""

    async def act() -> None:
        async with client(server, key="another-key") as opened:
            await opened.create(params())

    with pytest.raises(daytona.DaytonaAuthenticationError):
        asyncio.run(act())
    assert server.created == []


def test_as_a_program_it_ends_at_once_and_its_sandboxes_with_it(image: Path) -> None:
    """Also while clients are connected and a command runs."""
    faults = json.dumps([{"where": "create", "how": "bad-gateway"}])
    program = Path(__file__).parents[1] / "daytona_server.py"
    with subprocess.Popen(
        [sys.executable, program, "--environment", image, "--faults", faults],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        asyncio.run(killed_at_work(url, process))

    assert process.returncode == 0
    until(lambda: not any(MARKER in (one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])))


async def killed_at_work(url: str, process: subprocess.Popen[str]) -> None:
    """Let a command run, end the server, and see what its client is told."""
    async with AsyncDaytona(DaytonaConfig(api_key="test-key-for-daytona", api_url=url)) as opened:
        with pytest.raises(BAD_GATEWAY):
            await opened.create(params())
        box = await opened.create(params())
        running = asyncio.create_task(box.process.exec(f"setsid sleep {MARKER}"))
        await asyncio.to_thread(until, lambda: EXECUTE in state(url)["requests"])
        process.send_signal(signal.SIGTERM)
        with pytest.raises(daytona.DaytonaError):
            await running


def state(url: str) -> dict[str, Any]:
    """Ask a server that is a program for what tests see."""
    with urllib.request.urlopen(url.removesuffix("/api") + "/state") as answer:  # noqa: S310 our own address
        return dict(json.load(answer))
