"""Flower, as deploy/ configures it, shows runs by their id and none of their files."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import PATIENCE_SECONDS, answer_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cluster import Cluster

    from roma_bridge import PlanHandle

DEPLOY = Path(__file__).parents[2] / "deploy"
MARK = "what_stands_in_the_files"
TESTS = f"from calc import {MARK}\n\ndef test_add():\n    assert {MARK}(1, 2) == 3"
RED = answer_with(calc_py=f"def {MARK}(a, b):\n    return a - b", tests__test_calc_py=TESTS)
FIXED = answer_with(calc_py=f"def {MARK}(a, b):\n    return a + b")


@dataclass(frozen=True)
class Flower:
    """A running Flower."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]

    def ask(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Send a request; return the status and the body."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def wait_for(self, path: str, satisfied: Callable[[str], bool]) -> str:
        """Ask again and again until the answer satisfies."""
        deadline, answer = time.monotonic() + PATIENCE_SECONDS, "nothing"
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                status, answer = self.ask(path)
            except (OSError, HTTPException) as error:
                status, answer = 0, repr(error)
            if status == 200 and satisfied(answer):
                return answer
            time.sleep(0.05)
        raise AssertionError(f"Flower does not show it: {answer[:2000]}\n{self.log.read_text()}")


@dataclass(frozen=True)
class Shown:
    """A run that has ended, and what Flower knows of it."""

    handle: PlanHandle
    task: dict[str, Any]


@contextmanager
def flower_for(cluster: Cluster, folder: Path, **environment: str) -> Iterator[Flower]:
    """Run Flower for the time of the block, with the settings file that compose.yml gives it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "flower.log"
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "ptc_worker",
        "flower",
        "--address=127.0.0.1",
        f"--port={port}",
    ]
    with (
        log.open("wb") as file,
        subprocess.Popen(
            [*command, f"--conf={DEPLOY / 'flowerconfig.py'}"],
            env=cluster.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            yield Flower(port=port, log=log, process=process)
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def flower(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    """A Flower that hears the cluster's worker and answers without a password."""
    folder = tmp_path_factory.mktemp("flower")
    with flower_for(cluster, folder, FLOWER_UNAUTHENTICATED_API="true") as running:
        online = f'flower_worker_online{{worker="{cluster.workers[0].name}"}} 1.0'
        running.wait_for("/metrics", lambda metrics: online in metrics)
        yield running


@pytest.fixture(scope="module")
def shown(cluster: Cluster, flower: Flower) -> Shown:
    """A run of two iterations, as Flower lists it after its end."""
    handle = cluster.ptc.submit(cluster.record([RED, FIXED]))
    handle.get(timeout=PATIENCE_SECONDS)
    listed = flower.wait_for(
        "/api/tasks", lambda tasks: json.loads(tasks).get(handle.run_id, {}).get("state") == "SUCCESS"
    )
    return Shown(handle=handle, task=json.loads(listed)[handle.run_id])


def test_a_run_is_one_task_under_its_run_id(flower: Flower, shown: Shown) -> None:
    """However many messages a run took, Flower has one entry, and the client's id finds it."""
    _, listed = flower.ask("/api/tasks")

    assert [task for task in json.loads(listed) if task.startswith(shown.handle.key)] == [shown.handle.run_id]


def test_runs_beside_each_other_are_all_shown_to_their_end(cluster: Cluster, flower: Flower) -> None:
    """What the threads of a worker tell at the same time is not lost, and waits for nothing."""
    handles = [cluster.ptc.submit(cluster.record([RED, FIXED])) for _ in range(8)]
    for handle in handles:
        handle.get(timeout=PATIENCE_SECONDS)

    def states(listed: str) -> set[str]:
        tasks = json.loads(listed)
        return {tasks.get(handle.run_id, {}).get("state") for handle in handles}

    flower.wait_for("/api/tasks", lambda listed: states(listed) == {"SUCCESS"})


def test_a_run_shows_its_key_and_its_iteration(shown: Shown) -> None:
    """They stand in what Flower shows as keyword arguments; the message itself holds the run id alone."""
    assert shown.task["kwargs"] == f"{{'key': '{shown.handle.key}', 'iteration': 2}}"
    assert shown.task["args"] == f"('{shown.handle.run_id}',)"


def test_a_result_is_one_line_without_content(shown: Shown) -> None:
    """The text tells how the run ended, and how many files and tests there are."""
    assert shown.task["result"] == "SUCCESS: iteration 2, 2 files, 1 passed, 0 failed"


@pytest.mark.parametrize("path", ["/api/tasks", "/api/task/info/{run_id}", "/metrics"])
def test_no_file_and_no_description_reaches_flower(flower: Flower, shown: Shown, path: str) -> None:
    """Events carry neither what a plan says nor what a model wrote."""
    status, answer = flower.ask(path.format(run_id=shown.handle.run_id))

    assert status == 200
    assert MARK not in answer
    assert shown.handle.plan.scaffolding.task_description not in answer


def test_both_queues_are_seen(flower: Flower, shown: Shown) -> None:
    """Flower finds our queues under their prefix, empty once all runs have ended."""
    assert shown.task["state"] == "SUCCESS"

    _, lengths = flower.ask("/api/queues/length")

    assert {queue["name"] for queue in json.loads(lengths)["active_queues"]} == {"generate", "sandbox"}


def test_a_run_cannot_be_revoked_behind_its_records_back(flower: Flower, shown: Shown) -> None:
    """Flower is read-only: recovery would send a revoked task again, in vain, until the run's deadline."""
    status, _ = flower.ask(f"/api/task/revoke/{shown.handle.run_id}", method="POST")

    assert status == 403


def test_the_api_wants_the_password(cluster: Cluster, tmp_path: Path) -> None:
    """With basic auth and nothing else, tasks are not for everybody."""
    with flower_for(cluster, tmp_path, FLOWER_BASIC_AUTH="user:password") as flower:
        flower.wait_for("/healthcheck", lambda _: True)

        assert flower.ask("/api/tasks")[0] == 401
