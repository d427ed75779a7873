"""Daytona through its own SDK: whatever goes wrong there, callers get what they can act on, and nothing is left."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import pytest
from daytona_faults import Fault
from daytona_server import SNAPSHOT, DaytonaServer
from structlog.testing import capture_logs
from support import served, until

from ptc_contracts.verdicts import Outcome
from ptc_worker.busy import BusyError
from ptc_worker.environments import environment as build_environment
from ptc_worker.filetypes import artifact
from ptc_worker.halt import Halt, HaltedError, Why
from ptc_worker.loop import run_async
from ptc_worker.runner import run_tests
from ptc_worker.sandbox import equipped, prepare_sandboxes, reap_sandboxes
from ptc_worker.sandbox.kinds.daytona import Daytona, kind_for
from ptc_worker.sandbox.protocol import Purpose, SandboxError
from ptc_worker.sandbox.remote import RemoteSandbox
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ptc_worker.sandbox import Opener

FILES = [
    artifact("sums.py", "def add(a, b):\n    return a + b\n"),
    artifact("tests/test_sums.py", "from sums import add\n\n\ndef test_add():\n    assert add(2, 3) == 5\n"),
]
SECONDS = 120.0
START_TIMEOUT = 20.0
RUN = Purpose(installation="tests", worker="worker", run_id="run", fence=1)


@pytest.fixture(scope="module")
def environment(cache: Path) -> Iterator[Path]:
    """What the server's sandboxes have."""
    with build_environment(WorkerSettings(ptc_cache_dir=cache), (), SECONDS, Halt()) as folder:
        yield folder


@dataclass
class Account:
    """A Daytona on this machine, and what happened there since it was last asked."""

    server: DaytonaServer
    cache: Path
    seen: int = 0
    made: int = 0
    strangers: int = 0

    def settings(self, **more: Any) -> WorkerSettings:
        """Lead to it."""
        return WorkerSettings(
            **{
                "ptc_sandbox": "daytona",
                "daytona_api_key": self.server.key,
                "daytona_api_url": self.server.url,
                "ptc_daytona_snapshot": SNAPSHOT,
                "ptc_sandbox_start_timeout": START_TIMEOUT,
                "ptc_sandbox_memory_mb": 384,
                "ptc_sandbox_disk_mb": 64,
                "ptc_cache_dir": self.cache,
                **more,
            }
        )

    def to_a_stranger(self) -> WorkerSettings:
        """Lead to it in a way of its own: what is known of its room is known for the same settings alone."""
        self.strangers += 1
        return self.settings(ptc_sandbox_start_timeout=START_TIMEOUT + self.strangers)

    def mark(self) -> None:
        """Forget what was."""
        self.seen, self.made = len(self.server.requests), len(self.server.created)

    def made_since(self) -> list[str]:
        """Name the sandboxes that were made; none was made twice, and none is left, after a while."""
        until(lambda: self.server.left() == [])
        made = self.server.created[self.made :]
        assert len(made) == len(set(made)), made
        return made

    def called(self) -> str:
        """Count what was asked of it, by kind."""
        asked = self.server.requests[self.seen :]
        return ", ".join(f"{asked.count(kind)} {_short(kind)}" for kind in dict.fromkeys(asked))


def _short(request: str) -> str:
    method, path = request.split()
    for long, short in (("/toolbox/{id}/", ""), ("/api/sandbox", "sandbox"), ("{session}", "…")):
        path = path.replace(long, short)
    return f"{method} {path}"


@contextmanager
def serving(environment: Path, cache: Path, *faults: Fault, **options: Any) -> Iterator[Account]:
    """Serve for the time of a test."""
    settings = WorkerSettings(ptc_cache_dir=cache, ptc_sandbox_memory_mb=384, ptc_sandbox_disk_mb=64)
    with DaytonaServer(settings, environment, *faults, **options) as server:
        yield Account(server, cache)


@pytest.fixture(scope="module")
def known(environment: Path, cache: Path) -> Iterator[Account]:
    """One whose sandboxes this process has looked at."""
    with serving(environment, cache) as account:
        prepare_sandboxes(account.settings(), RUN)
        until(lambda: account.server.left() == [])
        yield account


def outcome_of(settings: WorkerSettings, halt: Halt | None = None) -> str:
    """Run the tests of a small project; return what the caller gets, in a line."""
    try:
        verdict, isolation = run_tests(settings, FILES, (), SECONDS, halt or Halt(), purpose=RUN)
    except (SandboxError, BusyError, HaltedError) as error:
        return f"{type(error).__name__}: {error}"
    assert isolation == "daytona"
    return verdict.outcome.value


TABLE: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def _told(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print what became of each fault."""
    yield
    plugins = request.config.pluginmanager
    reporter, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")
    if reporter is not None and capture is not None:
        with capture.global_and_fixture_disabled():
            reporter.write_line("\nfault | what the caller gets | sandboxes made | requests | left")
            for line in TABLE:
                reporter.write_line(line)


def note(name: str, got: str, account: Account) -> None:
    """Keep a line of the table."""
    TABLE.append(
        f"{name} | {got} | {len(account.made_since())} | {account.called()} | {len(account.server.left())}"
    )


@dataclass
class Case:
    """Something that goes wrong while a project's tests run, and what is to come of it."""

    name: str
    faults: list[Fault]
    gets: str = Outcome.PASSED.value
    made: int = 1

    def __str__(self) -> str:
        return self.name


def fault(where: str, how: str, **more: Any) -> Fault:
    """Order one."""
    return Fault(where=where, how=how, **more)


NO_ROOM = "BusyError: no sandbox can be had: Daytona: "

CASES = [
    Case("nothing", []),
    Case("create is slow", [fault("create", "slow")]),
    Case("create fails", [fault("create", "error-state")], made=2),
    Case("every create fails", [fault("create", "error-state", times=2)], "SandboxError: Daytona", made=2),
    Case("create is never answered, but done", [fault("create", "hang", done=True)]),
    Case("create is never answered", [fault("create", "hang")]),
    Case("create is answered 502, but done", [fault("create", "bad-gateway", done=True)]),
    Case("create is answered 504", [fault("create", "gateway-timeout")]),
    Case("create is reset, but done", [fault("create", "reset", done=True)]),
    Case("the state cannot be asked for", [fault("get", "unavailable", times=3)]),
    Case("quota is used up", [fault("create", "quota")], NO_ROOM, made=0),
    Case("rate limit", [fault("create", "rate-limit", seconds=7)], NO_ROOM, made=0),
    Case("key is not taken", [fault("create", "unauthorized")], "IsolationRefusedError: Daytona: ", made=0),
    Case("exec is answered 408", [fault("exec", "timeout", done=True)]),
    Case("exec is answered 502", [fault("exec", "bad-gateway")]),
    Case("session is answered 502, but begun", [fault("session.exec", "bad-gateway", done=True)]),
    Case("session cannot be made", [fault("session.create", "reset")]),
    Case("session never tells its exit code", [fault("session.exec", "mute")]),
    Case("session hangs", [fault("session.exec", "hang", done=True)]),
    Case("polls are answered 502", [fault("download", "bad-gateway", times=3)]),
    Case("all polls of a while are answered 502", [fault("download", "bad-gateway", times=7)]),
    Case("a poll is answered 429", [fault("download", "rate-limit", seconds=1)]),
    Case("upload is reset", [fault("upload", "reset")]),
    Case("upload is answered 502, but done", [fault("upload", "bad-gateway", done=True)]),
    Case("download is cut", [fault("download", "cut")]),
    Case("download ends too early", [fault("download", "unclosed", times=2)]),
    Case("delete lies", [fault("delete", "lie", times=2)]),
    Case("delete is answered 502", [fault("delete", "bad-gateway")]),
    Case("delete is answered 409", [fault("delete", "conflict", times=2)]),
    Case("sandbox vanishes while tests run", [fault("download", "vanish")], made=2),
    Case("sandbox vanishes before they do", [fault("upload", "vanish")], made=2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_fault_at_daytona_ends_as_it_should(
    clean: Account, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests pass all the same, or the caller learns what to do; no sandbox is made twice, none is left.

    Every refusal has the key in it; nothing that is told on does.
    """
    if case.name == "session hangs":
        monkeypatch.setattr("ptc_worker.sandbox.kinds.daytona._REQUEST_SECONDS", 3)
    clean.server.order(*case.faults)
    with capture_logs() as logs:
        got = outcome_of(clean.to_a_stranger() if case.gets == NO_ROOM else clean.settings())
        note(case.name, got, clean)

    assert got.startswith(case.gets), got
    assert len(clean.made_since()) == case.made
    assert all(order.times == 0 for order in clean.server._faults.orders)
    assert clean.server.key not in f"{got} {logs}"


@pytest.fixture
def clean(known: Account) -> Account:
    """The one that is known, with nothing that goes wrong."""
    known.server._faults.orders.clear()
    known.mark()
    return known


def test_tests_get_what_is_left_when_the_machine_is_there(clean: Account) -> None:
    """And not what was left when it was asked for: the plan's time is over when it is over."""
    clean.server.order(fault("create", "slow", seconds=6))
    waits = [artifact("tests/test_it.py", "import time\n\ndef test_it():\n    time.sleep(600)")]
    verdict, _ = run_tests(clean.settings(), waits, (), 12, Halt(), purpose=RUN)

    assert verdict.outcome is Outcome.TIMEOUT
    assert verdict.test_results is not None
    assert verdict.test_results.duration_seconds < 10


def test_who_is_told_to_come_back_later_is_told_when(clean: Account) -> None:
    """The header of a rate limit has the name of the limit behind it; a full account names no time."""
    clean.server.order(fault("create", "rate-limit", seconds=30), fault("create", "quota"))
    waits = []
    for _ in range(2):
        with pytest.raises(BusyError) as busy:
            run_tests(clean.to_a_stranger(), FILES, (), SECONDS, Halt(), purpose=RUN)
        waits.append(busy.value.seconds)

    assert 30 <= waits[0] < 40  # not all that wait are to come at once
    assert 10 <= waits[1] < 30
    assert clean.made_since() == []


def test_a_key_that_is_not_taken_is_named_and_not_shown(environment: Path, cache: Path) -> None:
    """Neither the error nor the log has it; where there is none, the message says that, too."""
    with serving(environment, cache) as account, capture_logs() as logs:
        told = outcome_of(account.settings(daytona_api_key="another-key-for-daytona"))
        none = outcome_of(account.settings(daytona_api_key=None))

    assert told.startswith("IsolationRefusedError: ")
    assert "DAYTONA_API_KEY" in told
    assert "another-key" not in f"{told} {logs}"
    assert none.startswith("IsolationRefusedError: ")
    assert "DAYTONA_API_KEY" in none


def test_a_snapshot_that_is_not_there_is_named_with_the_way_out(environment: Path, cache: Path) -> None:
    """Another try would end the same way, so there is none."""
    with serving(environment, cache) as account:
        told = outcome_of(account.settings(ptc_daytona_snapshot="unheard-of"))
        note("snapshot is unknown", told, account)

    assert told.startswith("IsolationRefusedError: ")
    for word in ("unheard-of", "PTC_DAYTONA_SNAPSHOT", "ptc-daytona-snapshot", "PTC_DAYTONA_IMAGE"):
        assert word in told
    assert account.server.requests.count("POST /api/sandbox") == 1


def test_a_tier_that_lets_no_network_be_blocked_is_asked_for_it_once(environment: Path, cache: Path) -> None:
    """Sandboxes are made without; programs in them have no sockets but local ones then."""
    blocked = fault("create", "no-network-block", times=None)
    with serving(environment, cache, blocked) as account, capture_logs() as logs:
        got = outcome_of(account.settings())
        note("tier refuses to block the network", got, account)
        with equipped(account.settings(), (), SECONDS, Halt(), purpose=RUN) as opener, opener() as box:
            assert isinstance(box, RemoteSandbox)
            box.wait()
            network = box._network()

    assert (got, network) == ("passed", "none")
    assert [line["blocked"] for line in logs if line["event"] == "sandbox_network_probed"] == [False]
    assert (
        account.server.requests.count("POST /api/sandbox") == 4
    )  # one that was refused; one to look at; two runs


def test_a_sandbox_that_does_not_start_in_time_is_deleted_once_that_is_possible(
    environment: Path, cache: Path
) -> None:
    """While it is being made, Daytona refuses; the message names the setting."""
    faults = fault("delete", "refused-while-creating", times=2)
    with serving(environment, cache, faults, start_seconds=1000) as account:
        told = outcome_of(account.settings(ptc_sandbox_start_timeout=12))
        note("sandbox starts too late, delete is answered 409 until then", told, account)
        account.made_since()

    assert told.startswith("SandboxError: ")
    assert "PTC_SANDBOX_START_TIMEOUT" in told


def test_a_run_that_is_cancelled_while_its_sandbox_is_made_leaves_none(clean: Account) -> None:
    """Whether it was made in the end or not."""
    clean.server.order(fault("create", "slow", seconds=2, done=True))
    halt = Halt()

    def cancel() -> None:
        until(lambda: "POST /api/sandbox" in clean.server.requests[clean.seen :])
        halt.set(Why.CANCELLED)

    threading.Thread(target=cancel).start()
    got = outcome_of(clean.settings(), halt)
    until(lambda: "DELETE /api/sandbox/{id}" in clean.server.requests[clean.seen :])
    note("run is cancelled while create is under way", got, clean)

    assert got.startswith("HaltedError")
    assert len(clean.made_since()) == 1


def test_nothing_but_our_settings_decides_where_the_sdk_turns(
    environment: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a `.env` where the worker happens to stand, nor variables that are not ours."""
    theirs = {
        "DAYTONA_API_KEY": "theirs",
        "DAYTONA_API_URL": "http://127.0.0.1:9/api",
        "DAYTONA_TARGET": "theirs",
        "DAYTONA_ORGANIZATION_ID": "theirs",
        "DAYTONA_OTEL_ENABLED": "true",
        "DAYTONA_HAPPY_EYEBALLS_DELAY": "no number",
    }
    for name in (".env", ".env.local"):
        (tmp_path / name).write_text("".join(f"{key}={value}\n" for key, value in theirs.items()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAYTONA_JWT_TOKEN", "theirs")
    with serving(environment, cache) as account:
        got, asked = asked_for(account, account.settings())

    assert got == "daytona"
    assert "target" not in asked


def asked_for(account: Account, settings: WorkerSettings) -> tuple[str, dict[str, Any]]:
    """Open a sandbox; return what isolates it, and what was asked for."""
    with equipped(settings, (), SECONDS, Halt(), purpose=RUN) as open_sandbox, open_sandbox() as box:
        assert box.root
        (made,) = [it for it in account.server.sandboxes.values() if it.name == account.server.created[-1]]
        return box.isolation, dict(made.asked)


def test_a_sandbox_is_asked_for_with_an_end_and_with_what_it_is_for(clean: Account) -> None:
    """Its lifetime is that of a start, the tests and ten minutes; it has no network, and is not kept when it stops."""
    _, asked = asked_for(clean, clean.settings())

    assert asked["labels"].items() >= RUN.labels.items()
    assert asked["name"].startswith("ptc-run-1-")
    assert asked["ttlMinutes"] == 13  # 12 s, 120 s and 600 s
    assert (asked["autoStopInterval"], asked["autoDeleteInterval"]) == (0, 0)
    assert asked["networkBlockAll"] is True
    assert asked["snapshot"] == SNAPSHOT


def test_a_sandbox_may_be_made_from_an_image_with_room_for_what_comes_along(
    environment: Path, cache: Path
) -> None:
    """Gibibytes of memory and disk are asked for with it; what the tier allows of the network is not touched."""
    with serving(environment, cache) as account:
        settings = account.settings(ptc_daytona_image="python:3.12-slim", ptc_daytona_network="tier")
        isolation, asked = asked_for(account, settings)

    assert isolation == "daytona-networked"
    assert "python:3.12-slim" in asked["buildInfo"]["dockerfileContent"]
    assert (asked["memory"], asked["disk"]) == (1, 3)  # 384 MB and 256 MB; 64 MB and 2048 MB
    assert "networkBlockAll" not in asked
    assert "snapshot" not in asked


def test_only_what_dead_workers_left_is_reaped_and_a_stale_list_does_no_harm(
    environment: Path, cache: Path
) -> None:
    """What is listed though it is gone is asked for first; those of the living, and of other installations, stay."""
    with serving(environment, cache) as account:
        settings = account.settings()
        left = Purpose(installation="tests", worker="dead", run_id="left", fence=1)
        others = Purpose(installation="others", worker="dead", run_id="others", fence=1)
        with (
            equipped(settings, (), SECONDS, Halt(), purpose=left) as one,
            equipped(settings, (), SECONDS, Halt(), purpose=others) as another,
            one() as box,
            another() as other,
        ):
            assert box.root
            assert other.root
            account.server.order(fault("list", "stale", times=2))
            alive = reap_sandboxes(settings, RUN, lambda _: {"dead"})
            dead = reap_sandboxes(settings, RUN, lambda _: set())
            names = account.server.left()

    assert alive == 0
    assert dead >= 1
    assert [name.startswith("ptc-others-") for name in names] == [True]


def test_what_is_kept_warm_goes_with_its_process(environment: Path, cache: Path) -> None:
    """Its end waits until it is gone."""
    program = """
import sys
from ptc_worker.sandbox import prepare_sandboxes
from ptc_worker.sandbox.protocol import Purpose
from ptc_worker.settings import WorkerSettings
prepare_sandboxes(WorkerSettings(), Purpose(installation="tests", worker="short"))
sys.stdin.read()
"""
    with serving(environment, cache) as account:
        ours = account.settings(ptc_sandbox_pool=1).model_dump(exclude_none=True, exclude_defaults=True)
        variables = {name.upper(): str(value) for name, value in ours.items()}
        variables["DAYTONA_API_KEY"] = account.server.key
        process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, env=variables)
        until(lambda: len(account.server.created) == 2 and len(account.server.left()) == 1)
        process.communicate()

        assert account.server.left() == []
    assert process.returncode == 0


def test_whether_there_is_a_network_is_found_out_before_anything_runs(environment: Path, cache: Path) -> None:
    """However often it cannot be asked: that no answer came does not say that there is none."""
    faults = fault("exec", "bad-gateway", after=1, times=9)
    with serving(environment, cache, faults) as account, capture_logs() as logs:
        got = [outcome_of(account.settings()) for _ in range(2)]

    probed = [line for line in logs if line["event"] == "sandbox_network_probed"]
    assert len(probed) == 1
    assert got[-1] == "passed"
    assert not any(each.startswith("SandboxError") for each in got)


def test_a_sandbox_that_fails_while_it_is_looked_at_is_replaced(environment: Path, cache: Path) -> None:
    """The first run of a process is no worse off than the others."""
    with serving(environment, cache, fault("create", "error-state")) as account:
        got = outcome_of(account.settings())
        made = account.made_since()

    assert got == "passed"
    assert len(made) == 3


def test_warm_sandboxes_that_were_removed_cost_no_run_its_tests(environment: Path, cache: Path) -> None:
    """Where one is gone, the others are not tried."""
    with serving(environment, cache) as account:
        settings = account.settings(ptc_sandbox_pool=2)
        prepare_sandboxes(settings, Purpose(installation="tests", worker="warm"))
        kind_for(settings)._warm.wait()
        until(lambda: len(account.server.left()) == 2)
        for box in account.server.sandboxes:
            _deleted(account.server, box)
        got = outcome_of(settings)
        kind_for(settings)._warm.wait()
        kind_for(settings)._warm.clear()
        until(lambda: account.server.left() == [])

    assert got == "passed"


def _deleted(server: DaytonaServer, box: str) -> None:
    request = Request(f"{server.url}/sandbox/{box}", method="DELETE")  # noqa: S310 our own server
    request.add_header("Authorization", f"Bearer {server.key}")
    urlopen(request).close()  # noqa: S310 our own server


def test_a_warm_sandbox_is_of_use_as_long_as_a_whole_run_fits_into_its_life(known: Account) -> None:
    """A start, the longest tests and their files: Daytona removes it at its end whatever it does."""
    settings = known.settings(ptc_test_timeout=3000)
    vendor = Daytona(settings)
    machine = vendor.machine("ptc-warm", Purpose(installation="tests", worker="warm"))
    begun = time.monotonic()
    known.server.order(fault("create", "forbidden"))
    with pytest.raises(SandboxError):
        run_async(machine.start(), Halt())

    assert machine.until - begun < vendor.lifetime(Purpose()) - 3000 - 60


def test_a_daytona_that_does_not_answer_is_waited_for_in_the_queue(environment: Path, cache: Path) -> None:
    """Whether nobody listens, nobody answers, or somebody else does: its address is named."""
    with serving(environment, cache) as account, _stranger() as stranger:
        account.server.order(fault("*", "hang", times=None))
        told = {
            name: outcome_of(account.settings(daytona_api_url=url, ptc_sandbox_start_timeout=2))
            for name, url in {
                "dead": "http://127.0.0.1:9/api",
                "silent": account.server.url,
                "a stranger": stranger,
            }.items()
        }
    for name, got in told.items():
        TABLE.append(f"Daytona is {name} | {got} | 0 | - | 0")

    assert all(got.startswith("BusyError: ") for got in told.values()), told
    assert all("DAYTONA_API_URL" in got for got in told.values()), told


@contextmanager
def _stranger() -> Iterator[str]:
    """Serve a page whatever is asked for."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>Welcome</html>")

        do_POST = do_DELETE = do_GET  # noqa: N815 the server's names

        def log_message(self, *_: object) -> None:
            pass

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Page)) as server:
        yield f"http://127.0.0.1:{server.server_port}/api"


def test_a_daytona_that_falls_silent_after_a_sandbox_was_made_is_waited_for_too(clean: Account) -> None:
    """Nothing of the run has been there yet, so it is not the run's doing."""
    clean.server.order(fault("upload", "bad-gateway", times=4))
    got = outcome_of(clean.settings())

    assert got.startswith("BusyError: daytona does not answer")
    assert len(clean.made_since()) == 1


def test_a_wait_that_no_clock_explains_is_not_believed(clean: Account) -> None:
    """A date in a header is read by our clock, and either may be wrong."""
    clean.server.order(fault("create", "rate-limit", seconds=90_000))
    with pytest.raises(BusyError) as busy:
        run_tests(clean.settings(), FILES, (), SECONDS, Halt(), purpose=RUN)

    assert busy.value.seconds <= 400


def test_runs_that_find_another_image_at_once_disturb_no_one_who_looks_at_it(
    environment: Path, cache: Path, tmp_path: Path
) -> None:
    """Each is told to come again; what was seen of the new image stays known."""
    other = tmp_path / "other"
    shutil.copytree(environment, other, symlinks=True)
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)  # sandboxes have another user
    (next(other.glob("lib/python*/site-packages")) / "new.py").touch()
    with serving(environment, cache) as account:
        settings = account.settings()
        with ExitStack() as stack:
            openers = [
                stack.enter_context(equipped(settings, (), SECONDS, Halt(), purpose=RUN)) for _ in range(2)
            ]
            account.server.environment = other
            told = [_told_of_change(openers[0])]
            account.server.order(fault("exec", "slow", after=1, seconds=8))
            with ThreadPoolExecutor(1) as pool:
                asked = account.server.requests.count(EXECUTE)
                looking = pool.submit(outcome_of, settings)
                until(lambda: account.server.requests.count(EXECUTE) == asked + 2)
                told.append(_told_of_change(openers[1]))
                got = looking.result()
        made = len(account.server.created)
        again = outcome_of(settings)

    assert all("has changed" in each for each in told)
    assert (got, again) == ("passed", "passed")
    assert len(account.server.created) == made + 1


EXECUTE = "POST /toolbox/{id}/process/execute"


def _told_of_change(opener: Opener) -> str:
    with pytest.raises(BusyError) as busy, opener() as box:
        box.write({"a": b"b"})
    return str(busy.value)
