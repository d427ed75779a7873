"""`ptc-enqueue` on servers that keep, answer or refuse what nobody expects."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support import make_plan, make_result
from terminal import run

from ptc_contracts.keys import cache_key, digest, run_key
from ptc_contracts.progress import StopReason
from ptc_contracts.result import ExecutionStatus
from ptc_contracts.run import Run
from ptc_contracts.settings import RedisSettings
from ptc_contracts.stages import Stage
from ptc_contracts.work import WorkStore
from roma_bridge.client import PTC
from roma_bridge.embedded import embedded_server
from roma_bridge.serving import missing_workers

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

EVIL = "a\x1b]0;title\x07\nforged\x9b2J"
PLAN = make_plan("Add two numbers", cache_strategy="never")


@pytest.fixture
def ptc(tmp_path: Path) -> Iterator[PTC]:
    """An installation without workers."""
    with embedded_server(tmp_path / "server") as settings:
        yield PTC(settings)


def enqueue(ptc: PTC, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a user of the installation."""
    return run(folder, {**os.environ, "REDIS_URL": ptc.settings.url}, *arguments)


def ended(ptc: PTC, **facts: Any) -> str:
    """Have a run of the plan that has ended, and name it."""
    store = WorkStore.connect(ptc.settings)
    run_id = store.submit(PLAN).run_id
    begun = store.begin(run_id, Stage.GENERATE, 1)
    assert isinstance(begun, Run)
    store.finish(begun, ExecutionStatus.FAILURE, stop_reason=StopReason.NO_ANSWER, **facts)
    return run_id


@pytest.mark.parametrize("history", [None, "none", [None, {"iteration": 1, "outcome": "dreamt"}]])
def test_a_history_that_cannot_be_read_holds_no_result_back(ptc: PTC, tmp_path: Path, history: Any) -> None:
    """A newer worker may tell what we do not know."""
    run_id = ended(ptc)
    result = make_result(status="FAILURE", metadata={"history": history})
    ptc.store.redis.hset(run_key(run_id), "result", ptc.store.form.result(run_id, digest(PLAN), result)[1])
    done = enqueue(ptc, tmp_path, "--watch", run_id)

    assert (done.returncode, "FAILURE in" in done.stdout) == (3, True), done.stderr


def test_reasons_and_names_do_nothing_to_a_terminal(ptc: PTC, tmp_path: Path) -> None:
    """Those of the dead stay on their line; an error's lose what a terminal would act on."""
    run_id = ended(ptc, error_message=EVIL, given_up=True)
    (tmp_path / EVIL).write_text(make_plan("Add two numbers").model_dump_json())
    listed = enqueue(ptc, tmp_path, "dead", "list")
    missing = enqueue(ptc, tmp_path, "cache", "show", EVIL)

    assert listed.stdout.startswith(run_id)
    assert listed.stdout.endswith("  a forged\n")
    assert (missing.returncode, missing.stderr) == (2, "ptc-enqueue: the cache keeps nothing for a\nforged\n")


@pytest.mark.parametrize("command", ["show", "invalidate"])
@pytest.mark.parametrize("what", ["plan.json", cache_key(PLAN)])
def test_a_server_that_fails_after_its_first_answer_is_told_without_a_traceback(
    ptc: PTC, tmp_path: Path, command: str, what: str
) -> None:
    """Here it refuses whatever the cache is asked for."""
    (tmp_path / "plan.json").write_text(make_plan("Add two numbers").model_dump_json())
    ptc.store.redis.acl_setuser("default", enabled=True, commands=["-mget", "-del", "-scan"])
    done = enqueue(ptc, tmp_path, "cache", command, what)

    assert (done.returncode, "refuses: " in done.stderr, "Traceback" in done.stderr) == (5, True, False)


def test_a_worker_that_answers_with_an_error_serves_nothing(ptc: PTC) -> None:
    """It cannot say what it serves; nobody falls over that."""
    listening, over = threading.Event(), threading.Event()
    asked: list[str] = []
    control: Any = ptc.app.control

    def broken(_state: object) -> None:
        asked.append("queues")
        raise RuntimeError

    def answer() -> None:
        with ptc.app.connection_for_read() as connection:
            node = control.mailbox.Node("odd@test", handlers={"active_queues": broken})
            node.channel = connection.channel()
            with node.listen():
                listening.set()
                while not over.is_set():
                    try:
                        connection.drain_events(timeout=0.1)
                    except TimeoutError:
                        continue

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    listening.wait()
    served = ptc.served(seconds=3)
    over.set()
    thread.join()

    assert (asked, served) == (["queues"], set())


def test_a_hint_that_cannot_be_had_ends_nothing() -> None:
    """Whoever waits for a run learns of an outage from the run itself."""
    assert missing_workers(PTC(RedisSettings(url="redis://127.0.0.1:1"))) == ""
