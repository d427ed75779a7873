"""E2B's sandboxes under E2B's faults: what the caller sees, what is made, and what is left."""

from __future__ import annotations

import logging
import secrets
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from e2b_server import KEY, RETRY_AFTER_SECONDS, Fault, serving
from redis import Redis
from structlog.testing import capture_logs
from support import until

from ptc_contracts.verdicts import Outcome
from ptc_worker.busy import BusyError
from ptc_worker.environments import environment
from ptc_worker.filetypes import artifact
from ptc_worker.halt import Halt
from ptc_worker.runner import run_tests
from ptc_worker.sandbox import equipped, prepare_sandboxes, reap_sandboxes
from ptc_worker.sandbox.kinds.e2b import kind_for
from ptc_worker.sandbox.protocol import IsolationRefusedError, Purpose, SandboxError
from ptc_worker.settings import WorkerSettings
from ptc_worker.warmup import warm_up

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from e2b_server import E2BServer

    from ptc_contracts.verdicts import Verdict

PURPOSE = Purpose(installation="ours", worker="w-1", run_id="run-1", fence=3)
COUNTED = """
import pathlib
def test_this_is_the_only_run():
    counter = pathlib.Path("counter")
    counter.write_text(counter.read_text() + "x" if counter.exists() else "x")
    assert counter.read_text() == "x"
"""
LONG = secrets.token_bytes(200_000)
WRONG_KEY = "e2b_9999"


@pytest.fixture(scope="module")
def local(cache: Path) -> WorkerSettings:
    """The settings of what runs at the server's side."""
    return WorkerSettings(ptc_cache_dir=cache, ptc_sandbox_memory_mb=256, ptc_sandbox_disk_mb=32)


@pytest.fixture(scope="module")
def running(local: WorkerSettings) -> Iterator[E2BServer]:
    """The server of all these tests."""
    with environment(local, (), 120, Halt()) as folder, serving(local, folder) as server:
        yield server


@pytest.fixture(scope="module")
def settings(local: WorkerSettings, running: E2BServer) -> WorkerSettings:
    """The settings that lead there, of a process that has looked at a sandbox already."""
    chosen = WorkerSettings(
        **{**local.model_dump(exclude_unset=True), **running.chosen, "ptc_sandbox_start_timeout": 12}
    )
    assert prepare_sandboxes(chosen, PURPOSE) == "e2b"
    return chosen


@pytest.fixture
def server(running: E2BServer, settings: WorkerSettings) -> Iterator[E2BServer]:
    """The server, with nothing counted yet; in the end no sandbox is left, and that was made sure of."""
    assert settings
    until(lambda: not running.unconfirmed)
    running.calls.clear()
    running.asked.clear()
    running.knows_keys = True
    yield running
    until(lambda: not running.boxes and not running.unconfirmed)


def judged(settings: WorkerSettings, tests: str = COUNTED) -> Verdict:
    """Run a test file."""
    files = [artifact("test_it.py", tests)]
    verdict, isolation = run_tests(settings, files, (), 60, Halt(), purpose=PURPOSE)
    assert isolation == "e2b"
    return verdict


def changed(settings: WorkerSettings, **update: Any) -> WorkerSettings:
    """Other settings."""
    return WorkerSettings(**{**settings.model_dump(exclude_unset=True), **update})


def test_a_sandbox_is_asked_for_as_what_it_is(settings: WorkerSettings, server: E2BServer) -> None:
    """It has no way out, ends by itself, says whose it is, and takes few requests: files once, and commands."""
    verdict = judged(settings)

    (asked,) = server.asked
    assert verdict.outcome is Outcome.PASSED
    assert asked["allow_internet_access"] is False
    assert asked["timeout"] >= settings.ptc_test_timeout
    assert PURPOSE.labels.items() <= asked["metadata"].items()
    assert asked["metadata"]["ptc-name"].startswith("ptc-run-1-3-")
    assert (server.calls["upload"], server.calls["run"]) == (1, 2)


@pytest.mark.parametrize(
    ("faults", "made"),
    [
        pytest.param({"create": [Fault.LOST]}, 1, id="made, and the answer lost"),
        pytest.param({"create": [Fault.HANGS]}, 1, id="made, and never answered"),
        pytest.param({"create": [Fault.RESET], "connect": [Fault.LOST]}, 1, id="not made, then not reached"),
        pytest.param({"upload": [Fault.RESET, Fault.LOST, Fault.CUT]}, 1, id="uploads cut"),
        pytest.param({"run": [Fault.CUT, None, Fault.CUT]}, 1, id="streams of commands cut"),
        pytest.param({"run": [None, Fault.VANISHES]}, 2, id="one gone under the tests"),
        pytest.param({"kill": [Fault.LIES], "get": [None, Fault.CUT]}, 1, id="not removed at first"),
    ],
)
def test_what_goes_wrong_on_the_way_changes_no_verdict(
    settings: WorkerSettings, server: E2BServer, faults: dict[str, list[Fault | None]], made: int
) -> None:
    """It is asked again; the tests run once, no sandbox is made twice, and none is left."""
    for operation, its_faults in faults.items():
        server.meet(operation, *its_faults)
    verdict = judged(settings)
    until(lambda: not server.boxes and not server.to_meet)

    assert verdict.outcome is Outcome.PASSED
    assert len(server.asked) == made


def test_a_download_that_is_cut_is_fetched_again(settings: WorkerSettings, server: E2BServer) -> None:
    """An answer that is too long for a command's output comes whole, or is asked for again."""
    server.meet("download", Fault.CUT, Fault.RESET)
    with equipped(settings, (), 60, Halt()) as open_sandbox, open_sandbox() as box:
        box.write({"long": LONG})
        content = box.read("long", 2 * len(LONG))

    assert content == LONG
    assert server.calls["download"] == 3


@pytest.mark.parametrize(
    ("listed", "knows_keys", "creates", "made"),
    [
        pytest.param(True, False, 1, 1, id="found in the list"),
        pytest.param(False, True, 2, 1, id="found by its key"),
        pytest.param(False, False, 2, 2, id="not found"),
    ],
)
def test_a_sandbox_that_nobody_heard_of_is_found_or_removed_in_the_end(
    settings: WorkerSettings, server: E2BServer, listed: bool, knows_keys: bool, creates: int, made: int
) -> None:
    """It is in E2B's list, or is what the same key brings again; where it is neither, it goes with the other one."""
    server.knows_keys = knows_keys
    server.meet("create", Fault.LOST)
    server.meet("list", None if listed else Fault.STALE)
    verdict = judged(settings)
    until(lambda: not server.boxes)

    assert verdict.outcome is Outcome.PASSED
    assert (server.calls["create"], len(server.asked)) == (creates, made)


def test_sandboxes_that_vanish_again_and_again_are_our_fault(
    settings: WorkerSettings, server: E2BServer
) -> None:
    """The second one that does ends the tries; nothing is said of the tests."""
    server.meet("run", None, Fault.VANISHES, None, Fault.VANISHES)
    with pytest.raises(SandboxError, match="E2B has the sandbox no more"):
        judged(settings)

    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [(Fault.LIMITED, RETRY_AFTER_SECONDS), (Fault.FULL, 10), (Fault.BUSY, RETRY_AFTER_SECONDS)],
)
def test_no_room_makes_the_run_wait_in_its_queue(
    settings: WorkerSettings, server: E2BServer, fault: Fault, seconds: float
) -> None:
    """E2B is asked once, and says when to come back; not all that wait are to come at once."""
    server.meet("create", fault)
    of_its_own = changed(settings, ptc_sandbox_start_timeout=20 + fault.value)  # nobody else learns of it
    with pytest.raises(BusyError) as raised:
        judged(of_its_own)

    assert seconds <= raised.value.seconds < 1.4 * seconds
    assert (server.calls["create"], server.asked) == (1, [])


def test_an_e2b_that_never_answers_makes_the_run_wait(local: WorkerSettings) -> None:
    """It accepts what it is asked, and says nothing until nobody waits any more."""
    with environment(local, (), 120, Halt()) as folder, serving(local, folder) as silent:
        silent.meet("create", *[Fault.HANGS] * 9)
        silent.meet("list", *[Fault.STALE] * 9)
        with pytest.raises(BusyError, match="PTC_SANDBOX_START_TIMEOUT"):
            judged(changed(local, **silent.chosen, ptc_sandbox_start_timeout=1))


@pytest.mark.parametrize(
    ("update", "told", "creates"),
    [
        pytest.param({"e2b_api_key": WRONG_KEY}, "E2B_API_KEY", 1, id="a wrong key"),
        pytest.param({"e2b_api_key": None}, "E2B_API_KEY", 0, id="no key"),
        pytest.param({"ptc_e2b_template": "nothing"}, "PTC_E2B_TEMPLATE", 1, id="an unknown template"),
    ],
)
def test_what_will_never_do_is_refused_with_the_way_out(
    settings: WorkerSettings,
    server: E2BServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    update: dict[str, Any],
    told: str,
    creates: int,
) -> None:
    """It is asked for once at most; no key is shown, though E2B's answer has it in it, and none but ours is used."""
    monkeypatch.setenv("E2B_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with capture_logs() as logs, pytest.raises(IsolationRefusedError, match=told) as raised:
        judged(changed(settings, **update))

    shown = f"{raised.value} {logs} {caplog.text}"
    assert not {key for key in (KEY, WRONG_KEY) if key in shown}
    assert (server.calls["create"], server.asked) == (creates, [])


def test_variables_of_the_sdk_change_nothing(
    settings: WorkerSettings, server: E2BServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings decide where sandboxes are made, and with which key."""
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setenv("E2B_API_KEY", WRONG_KEY)
    monkeypatch.setenv("E2B_API_URL", nowhere)
    monkeypatch.setenv("E2B_SANDBOX_URL", nowhere)
    monkeypatch.setenv("E2B_DOMAIN", "nowhere.invalid")
    monkeypatch.setenv("E2B_DEBUG", "true")
    monkeypatch.setenv("E2B_HTTP_VERSION", "3")
    verdict = judged(settings)

    assert verdict.outcome is Outcome.PASSED
    assert len(server.asked) == 1


def test_orphans_are_found_on_all_pages_and_removed(settings: WorkerSettings, server: E2BServer) -> None:
    """What workers have left that are gone is removed, for good; other workers' and other installations' stay."""
    dead = [Purpose(installation="ours", worker="gone", run_id=f"r{n}") for n in range(3)]
    kept = [Purpose(installation="ours", worker="w-2"), Purpose(installation="theirs", worker="gone")]
    ours, theirs = [
        [
            server.make({"templateID": "base", "metadata": {**of.labels, "ptc-name": of.run_id}}, None)
            for of in which
        ]
        for which in (dead, kept)
    ]
    server.meet("kill", Fault.LIES)
    reaped = reap_sandboxes(settings, PURPOSE, lambda workers: {"w-2"} & set(workers))
    left = set(server.boxes)
    for box in theirs:
        server.remove(box)

    assert reaped == len(ours)
    assert left == {box.id for box in theirs}


def test_what_is_kept_warm_says_whose_it_is_though_nobody_warmed_up(
    settings: WorkerSettings, server: E2BServer
) -> None:
    """A run may come first; without labels no reaper would find what is made ahead for the next."""
    eager = changed(settings, ptc_sandbox_pool=1)
    verdict = judged(eager)
    kind = kind_for(eager)
    kind._warm.wait()
    kind._warm.clear()

    looked_at, used, warm = [asked["metadata"] for asked in server.asked]
    assert verdict.outcome is Outcome.PASSED
    assert (looked_at["ptc-run"], used["ptc-run"]) == ("run-1", "run-1")
    assert {**PURPOSE.labels, "ptc-run": "", "ptc-fence": "0"}.items() <= warm.items()


def test_what_is_kept_warm_is_used_also_where_tests_may_take_long(
    settings: WorkerSettings, server: E2BServer
) -> None:
    """It lives as long as a run may need, and some time more to wait for one; what a run asks for does not."""
    eager = changed(settings, ptc_sandbox_pool=1, ptc_test_timeout=3000)
    kind = kind_for(eager)
    prepare_sandboxes(eager, replace(PURPOSE, run_id="", fence=0))
    kind._warm.wait()
    verdict = judged(eager)
    kind._warm.wait()
    kind._warm.clear()
    without_any = len(server.asked)
    judged(eager)
    kind._warm.wait()
    kind._warm.clear()

    asked = [(each["metadata"]["ptc-run"], each["timeout"]) for each in server.asked]
    assert verdict.outcome is Outcome.PASSED
    assert asked[:without_any] == [("", 4200)] * 3  # looked at, used, and kept for the next
    assert asked[without_any:] == [("run-1", 3600), ("", 4200)]


def test_a_warm_up_without_redis_leaves_the_sandbox_to_the_first_run(settings: WorkerSettings) -> None:
    """Nothing depends on it, so that its thread says what is missing, and ends."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]

    def purpose() -> Purpose:
        Redis(port=port).ping()
        return PURPOSE

    with capture_logs() as logs:
        warm_up(settings, {"sandbox"}, purpose)

    assert {"event": "sandbox_not_tried", "log_level": "warning", "reason": "ConnectionError"} in logs
