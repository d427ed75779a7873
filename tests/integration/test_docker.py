"""Containers as sandboxes, of the engine that DOCKER_HOST names: what they may have, and how they end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import pytest
from docker import APIClient
from docker.errors import NotFound
from docker.utils import kwargs_from_env
from sandbox.host import alive
from support import until

from ptc_worker.filetypes import artifact
from ptc_worker.halt import Halt
from ptc_worker.loop import run_async
from ptc_worker.runner import run_tests
from ptc_worker.sandbox import equipped, prepare_sandboxes, reap_sandboxes
from ptc_worker.sandbox.kinds.docker import CAPABILITIES, Docker
from ptc_worker.sandbox.protocol import NOBODYS, IsolationRefusedError, Purpose, SandboxError
from ptc_worker.sandbox.vendors import RemoteKind
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ptc_worker.sandbox.protocol import Sandbox

PATH = "/usr/bin:/bin"

LEFT = """
import sys, time
from ptc_worker.halt import Halt
from ptc_worker.sandbox import equipped
from ptc_worker.sandbox.protocol import Purpose
from ptc_worker.settings import WorkerSettings
purpose = Purpose(installation=sys.argv[1], worker="dead", run_id="run-" + sys.argv[1], fence=1)
with equipped(WorkerSettings(ptc_sandbox="docker"), (), 60, Halt(), purpose=purpose) as opening, opening() as box:
    box.exec(["/bin/sleep", "600"], env={"MARKER": sys.argv[1]}, cwd=".", timeout=600)
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> WorkerSettings:
    """Settings for the engine of whoever runs these tests; without one they are reported as skipped."""
    found = WorkerSettings(ptc_sandbox="docker", ptc_cache_dir=tmp_path_factory.mktemp("cache"))
    try:
        prepare_sandboxes(found, NOBODYS)
    except IsolationRefusedError as error:
        pytest.skip(f"NOT RUN, nothing is known of Docker here: {error}")
    return found


@pytest.fixture
def engine(settings: WorkerSettings) -> Iterator[APIClient]:
    """The engine, to look what is there."""
    assert settings.sandbox == "docker"
    with_address = APIClient(version="auto", **kwargs_from_env())
    yield with_address
    with_address.close()


@pytest.fixture
def us() -> Purpose:
    """An installation of this test alone."""
    return Purpose(installation=token_hex(6), worker="us", run_id=f"run-{token_hex(6)}", fence=3)


def containers(engine: APIClient, us: Purpose) -> list[dict[str, Any]]:
    """Inspect the containers of an installation."""
    found = []
    for each in engine.containers(all=True, filters={"label": f"ptc={us.installation}"}):
        with suppress(NotFound):  # it is just being removed
            found.append(engine.inspect_container(each["Id"]))
    return found


@contextmanager
def opened(settings: WorkerSettings, purpose: Purpose) -> Iterator[Sandbox]:
    """Open a sandbox that is there."""
    with equipped(settings, (), 60, Halt(), purpose=purpose) as opening, opening() as box:
        box.write({"file": b""})
        yield box


def test_a_container_has_nothing_that_it_does_not_need(
    settings: WorkerSettings, engine: APIClient, us: Purpose
) -> None:
    """No network, no privileges, no place on a disk, bounded memory and processes; and it ends by itself."""
    with opened(settings, us):
        (found,) = containers(engine, us)
    config, host = found["Config"], found["HostConfig"]
    hold = (settings.ptc_sandbox_memory_mb + settings.ptc_sandbox_disk_mb + 256) * 2**20

    assert config["Labels"].items() >= us.labels.items()
    assert found["Name"].startswith(f"/ptc-{us.run_id}-3-")
    assert {name: host[name] for name in ("NetworkMode", "ReadonlyRootfs", "CapDrop", "Privileged")} == {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "Privileged": False,
    }
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert "seccomp=unconfined" not in host["SecurityOpt"]
    assert (host["Memory"], host["MemorySwap"]) == (hold, hold)
    assert (0 < host["PidsLimit"] < 256, host["NanoCpus"]) == (True, 10**9)
    assert (host["Binds"], found["Mounts"], host["IpcMode"]) == (None, [], "private")
    assert (host["AutoRemove"], host["Init"], host["LogConfig"]["Type"]) == (True, True, "none")
    assert (config["Entrypoint"], int(config["Cmd"][0]) < 6 * 3600) == (["sleep"], True)
    assert (config["User"], host["CapAdd"]) in [("65534:65534", None), ("0:0", list(CAPABILITIES))]
    until(lambda: not containers(engine, us))


def test_tests_run_in_a_container(settings: WorkerSettings) -> None:
    """A project's verdict is the same as anywhere, and the result says where it was made."""
    files = [
        artifact("sums.py", "def add(a, b):\n    return a + b\n"),
        artifact("test_sums.py", "from sums import add\n\ndef test_add():\n    assert add(2, 2) == 4\n"),
    ]
    verdict, isolation = run_tests(settings, files, (), 60, Halt())

    assert (verdict.outcome, isolation) == ("passed", "docker")


def test_what_a_killed_worker_left_is_removed(
    settings: WorkerSettings, engine: APIClient, us: Purpose
) -> None:
    """By the next that looks, and by nobody while its worker lives."""
    worker = subprocess.Popen([sys.executable, "-c", LEFT, us.installation])
    try:
        until(lambda: alive(f"MARKER={us.installation}"))
    finally:
        worker.kill()
        worker.wait()

    assert reap_sandboxes(settings, us, lambda workers: workers) == 0
    assert len(containers(engine, us)) == 1
    assert reap_sandboxes(settings, us, lambda _: ()) == 1
    assert containers(engine, us) == []
    assert alive(f"MARKER={us.installation}") == []


def test_our_own_containers_are_not_reaped(settings: WorkerSettings, engine: APIClient, us: Purpose) -> None:
    """Whoever looks for what is lost does not remove what is in use."""
    with opened(settings, us):
        assert reap_sandboxes(settings, us, lambda _: ()) == 0
        assert len(containers(engine, us)) == 1


def test_a_container_whose_making_was_not_answered_is_adopted(
    settings: WorkerSettings, engine: APIClient, us: Purpose
) -> None:
    """Asked again under the same name there is one; somebody else's of that name is left alone."""
    name, vendor = f"ptc-{us.run_id}-3-1", Docker(settings)
    machine, again = vendor.machine(name, us), vendor.machine(name, us)
    others = vendor.machine(name, Purpose(installation=us.installation, worker="them", fence=1))
    try:
        run_async(machine.start(), Halt())
        run_async(again.start(), Halt())
        with pytest.raises(SandboxError, match="somebody else"):
            run_async(others.start(), Halt())

        assert len(containers(engine, us)) == 1
        assert run_async(again.run("echo here", 20), Halt()) == (0, b"here\n")
    finally:
        run_async(machine.delete(), Halt())
    run_async(again.delete(), Halt())
    assert containers(engine, us) == []


def test_without_landlock_commands_have_another_user_than_the_courier(
    settings: WorkerSettings, us: Purpose
) -> None:
    """They cannot reach it, nor gain what it has; what they write can be read and written by us."""
    vendor = Docker(settings)
    vendor._engine.walled = False  # as a kernel without Landlock would have it
    kind = RemoteKind(settings, vendor)
    with kind.equipped((), 60, Halt(), None, us) as opening, opening() as box:
        box.write({"folder/file": b"1"})
        script = "id -u; grep CapEff /proc/self/status; cat ../lib/ptc_inside/*.py | wc -l; rm -rf ../lib ../env 2>/dev/null; echo 2 >> folder/file; kill -9 1; kill -9 -1"
        ran = box.exec(["/bin/sh", "-c", script], env={"PATH": PATH}, cwd=".", timeout=20)
        user, capabilities, *_ = ran.stdout.decode().splitlines()

        assert int(user) > 0
        assert capabilities.split()[1].strip("0") == ""
        assert box.read("folder/file", 9) == b"12\n"
        assert box.changed({"folder/file": b"1"}) == ["folder/file"]


class Relay:
    """A way to the engine that can be cut."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._open: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._server.accept()
                there = socket.socket(socket.AF_UNIX)
                there.connect(self._path)
                self._open += [here, there]
                for ends in ((here, there), (there, here)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while part := source.recv(2**16):
                target.sendall(part)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Cut what is open; new connections are let through."""
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let nothing through any more."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        for each in self._open:
            each.close()


def test_a_connection_that_is_cut_costs_no_command(
    settings: WorkerSettings, engine: APIClient, us: Purpose
) -> None:
    """It runs once, and what it said comes over another connection."""
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not address.startswith("unix://"):
        pytest.skip("NOT RUN: the engine is not reached over a local socket")
    relay, marker = Relay(address.removeprefix("unix://")), token_hex(8)
    far = settings.model_copy(update={"docker_host": relay.address})
    script = "echo once >> ran; sleep 2; cat ran"
    with opened(far, us) as box, ThreadPoolExecutor() as pool:
        running = pool.submit(
            box.exec,
            ["/bin/sh", "-c", script],
            env={"PATH": PATH, "MARKER": marker},
            cwd=".",
            timeout=30,
        )
        until(lambda: alive(marker))
        relay.cut()

        assert running.result(timeout=60).stdout == b"once\n"
    until(lambda: not containers(engine, us))
    relay.close()


def test_an_image_that_cannot_be_had_is_named(settings: WorkerSettings) -> None:
    """With the setting that names another one; no other try would end differently."""
    missing = settings.model_copy(update={"ptc_docker_image": "ptc.invalid/no-such-image:0"})

    with pytest.raises(IsolationRefusedError, match=r"ptc\.invalid/no-such-image:0.*PTC_DOCKER_IMAGE"):
        prepare_sandboxes(missing, NOBODYS)


def test_a_runtime_that_the_engine_does_not_know_is_named(settings: WorkerSettings) -> None:
    """It is not replaced by another one, that may keep in less."""
    unknown = settings.model_copy(update={"ptc_docker_runtime": "no-such-runtime"})

    with pytest.raises(IsolationRefusedError, match=r"no-such-runtime.*PTC_DOCKER_RUNTIME"):
        prepare_sandboxes(unknown, NOBODYS)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_an_engine_that_is_not_there_is_named(kind: str, tmp_path: Path) -> None:
    """With its address, and the ways out."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = f"unix://{tmp_path}/none.sock" if kind == "unix" else f"tcp://127.0.0.1:{port}"
    settings = WorkerSettings(ptc_sandbox="docker", docker_host=address, ptc_cache_dir=tmp_path)

    with pytest.raises(IsolationRefusedError, match=f"{address}.*DOCKER_HOST.*PTC_SANDBOX"):
        prepare_sandboxes(settings, NOBODYS)
