"""Environments are built from wheels alone, can be read by all, and are kept while there is room or anyone uses them."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from support import WatchedHalt, silent_index, until

from ptc_worker.environments import CacheDirError, environment, hold, sweep
from ptc_worker.halt import Halt
from ptc_worker.installer import InstallError
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("packages")

USE = """
import sys
from ptc_worker.environments import environment
from ptc_worker.halt import Halt
from ptc_worker.settings import WorkerSettings
with environment(WorkerSettings.read(), sys.argv[1:], 60, Halt()) as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""
"""A worker that uses an environment until its input ends."""

SWEEP = """
from ptc_worker.environments import sweep
from ptc_worker.settings import WorkerSettings
sweep(WorkerSettings.read())
"""


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    """Settings with a cache folder of this test alone."""
    return WorkerSettings(ptc_cache_dir=tmp_path / "cache")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which installers look beside their index; it holds the wheels ptc-one, ptc-two and ptc-three."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in ("ptc_one", "ptc_two", "ptc_three"):
        about = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", "x = 1\n")
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(
                f"{about}/RECORD", f"{name}.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n"
            )
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    return folder


def build(settings: WorkerSettings, *requirements: str) -> Path:
    """Get an environment and let go of it."""
    with environment(settings, requirements, 60, Halt()) as folder:
        return folder


def bounded(settings: WorkerSettings, megabytes: int) -> WorkerSettings:
    """Give the same settings with another bound."""
    return settings.model_copy(update={"ptc_cache_max_mb": megabytes})


def in_cache(settings: WorkerSettings) -> set[Path]:
    """List what there is in the folder of environments, locks left out."""
    return {p for p in (settings.ptc_cache_dir / "environments").glob("*") if p.suffix != ".lock"}


def python(
    script: str, *arguments: str, settings: WorkerSettings, max_mb: int = 10_000
) -> subprocess.Popen[str]:
    """Start a worker of another process."""
    env = {**os.environ, "PTC_CACHE_DIR": str(settings.ptc_cache_dir), "PTC_CACHE_MAX_MB": str(max_mb)}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def sweep_elsewhere(settings: WorkerSettings) -> None:
    """Let another worker that may keep nothing sweep."""
    with python(SWEEP, settings=settings, max_mb=0) as worker:
        worker.communicate()
    assert worker.returncode == 0


def installer_below(process: psutil.Process) -> psutil.Process:
    """Find the installer that a worker runs."""
    (uv,) = (child for child in process.children(recursive=True) if child.name() == "uv")
    return uv


def test_an_environment_holds_what_was_asked_for_compiled(settings: WorkerSettings) -> None:
    """pytest, what runs inside sandboxes, and the package: all with byte-code."""
    folder = build(settings, "ptc-one")
    (site_packages,) = folder.glob("lib/python*/site-packages")
    sources = {path.relative_to(site_packages) for path in site_packages.rglob("*.py")}
    compiled = {
        path.parent.parent.relative_to(site_packages) / f"{path.name.partition('.')[0]}.py"
        for path in site_packages.rglob("*.pyc")
    }

    assert {Path("ptc_one.py"), Path("ptc_inside/__init__.py"), Path("pytest/__init__.py")} <= sources
    assert sources - compiled == set()


def test_an_environment_is_built_once_for_all_workers(settings: WorkerSettings) -> None:
    """Workers that want the same set at the same time wait for the first, and use what it built together."""
    with ExitStack() as stack:
        workers = [stack.enter_context(python(USE, "ptc-one", settings=settings)) for _ in range(3)]
        lines = [line for worker in workers for line in _until_folder(worker)]
        for worker in workers:
            worker.communicate("")

    assert len({line for line in lines if line.startswith("/")}) == 1
    assert sum("environment_building" in line for line in lines) == 1


def test_whoever_waits_to_build_uses_what_another_has_built_and_uses(settings: WorkerSettings) -> None:
    """Though it is never let go of: prepared sandboxes hold it, and runs that follow each other."""
    lock_file = build(settings, "ptc-one").with_suffix(".lock")
    sweep_elsewhere(settings)
    both = threading.Barrier(2)
    halts = WatchedHalt(), WatchedHalt()

    def use(halt: Halt) -> Path:
        with environment(settings, ["ptc-one"], 60, halt) as folder:
            both.wait(60)
            return folder

    with ThreadPoolExecutor() as threads:
        with lock_file.open("ab") as lock:  # so that both find nothing there, and wait to build it
            fcntl.flock(lock, fcntl.LOCK_SH)
            users = [threads.submit(use, halt) for halt in halts]
            until(lambda: all(halt.waits for halt in halts))
        folders = {user.result() for user in users}

    assert len(folders) == 1


def _until_folder(worker: subprocess.Popen[str]) -> list[str]:
    """Read what a worker says until it tells its folder."""
    assert worker.stdout
    lines = []
    for line in worker.stdout:
        lines.append(line.strip())
        if line.startswith("/"):
            break
    return lines


def test_every_user_can_read_an_environment(settings: WorkerSettings) -> None:
    """However secretive the worker's umask is: tests run under another user id."""
    before = os.umask(0o077)
    try:
        folder = build(settings, "ptc-one")
    finally:
        os.umask(before)
    places = [settings.ptc_cache_dir, folder.parent, folder, *folder.rglob("*")]
    files = [path for path in places if path.is_file() and not path.is_symlink()]

    assert [path for path in files if not path.stat().st_mode & 0o004] == []
    assert [path for path in places if path.is_dir() and path.stat().st_mode & 0o005 != 0o005] == []
    assert (folder / "bin" / "pytest").stat().st_mode & 0o005 == 0o005


def test_a_source_distribution_is_not_built(settings: WorkerSettings, packages: Path, tmp_path: Path) -> None:
    """Building one would run its code outside the sandbox."""
    trap = tmp_path / "it-ran"
    content = f"open({str(trap)!r}, 'w')\n".encode()
    with tarfile.open(packages / "ptc_source-1.0.tar.gz", "w:gz") as archive:
        for name, data in {"setup.py": content, "PKG-INFO": b"Name: ptc-source\nVersion: 1.0\n"}.items():
            member = tarfile.TarInfo(f"ptc_source-1.0/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))

    with pytest.raises(InstallError, match="ptc-source"):
        build(settings, "ptc-source")
    assert not trap.exists()
    assert in_cache(settings) == set()


def test_the_installer_is_told_no_secret(settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows its own variables, and none of ours."""
    ours = (
        "ANTHROPIC_API_KEY",
        "OPENAI_API_KEY",
        "REDIS_PASSWORD",
        "REDIS_URL",
        "PTC_SIGNING_KEY",
        "DAYTONA_API_KEY",
    )
    for name in ours:
        monkeypatch.setenv(name, "redis://not-for-installers")
    with silent_index(monkeypatch) as asked, python(USE, settings=settings) as worker:
        asked.wait()
        uv = installer_below(psutil.Process(worker.pid))
        known, command = uv.environ(), uv.cmdline()
        worker.kill()

    assert "UV_DEFAULT_INDEX" in known
    assert set(ours) & known.keys() == set()
    assert "not-for-installers" not in str((known, command))


def test_an_installer_dies_with_its_worker(settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when the worker has no time to see to it; what it left half-built is swept by the next build."""
    with monkeypatch.context() as patch, silent_index(patch) as asked:
        with python(USE, "iniconfig<3", settings=settings) as worker:
            asked.wait()
            uv = installer_below(psutil.Process(worker.pid))
            worker.send_signal(signal.SIGKILL)
        until(lambda: not uv.is_running() or uv.status() == psutil.STATUS_ZOMBIE)
    left = in_cache(settings)
    base = build(settings)

    assert len(left) == 1
    assert in_cache(settings) == {base}


def test_what_a_killed_worker_left_half_built_is_built_anew(
    settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one to want it finds neither a lock nor remains."""
    with (
        monkeypatch.context() as patch,
        silent_index(patch) as asked,
        python(USE, "iniconfig<3", settings=settings) as worker,
    ):
        asked.wait()
        worker.kill()
    (left,) = in_cache(settings)
    (left / "remains").touch()
    folder = build(settings, "iniconfig<3")

    assert folder == left
    assert not (folder / "remains").exists()
    assert (folder / "bin" / "pytest").exists()


def test_the_least_recently_used_environment_goes_first(settings: WorkerSettings) -> None:
    """Downloads go before environments; the one without further packages stays, however long it was not used."""
    base, one, two, three = (
        build(settings, *wanted) for wanted in ((), ("ptc-one",), ("ptc-two",), ("ptc-three",))
    )
    build(settings, "ptc-one")
    taken = sum(path.lstat().st_blocks * 512 for path in settings.ptc_cache_dir.glob("environments/**/*"))
    sweep(bounded(settings, (taken >> 20) + 1))
    after_downloads = in_cache(settings)
    sweep(bounded(settings, (taken >> 20) - 1))

    assert not (settings.ptc_cache_dir / "uv").exists()
    assert after_downloads == {base, one, two, three}
    assert in_cache(settings) == {base, one, three}
    sweep(bounded(settings, 0))
    assert in_cache(settings) == {base}


def test_a_build_makes_room_for_itself(settings: WorkerSettings) -> None:
    """The bound holds without anybody sweeping; what was just built is not what goes."""
    small = bounded(settings, 0)
    build(small)
    build(small, "ptc-one")
    with environment(small, ["ptc-two"], 60, Halt()) as two:
        kept = in_cache(settings)

    assert two in kept
    assert len(kept) == 2


def test_an_environment_in_use_is_never_removed(settings: WorkerSettings) -> None:
    """Not by another worker either; a hold outlasts the block in which it was taken."""
    with environment(settings, ["ptc-one"], 60, Halt()) as folder:
        sweep_elsewhere(settings)
        used = folder.exists()
        held = hold(folder)
    sweep_elsewhere(settings)
    still_held = folder.exists()
    held.close()
    sweep_elsewhere(settings)

    assert (used, still_held, folder.exists()) == (True, True, False)
    with pytest.raises(CacheDirError):
        hold(folder)


def test_an_environment_of_an_older_version_is_no_leftover(settings: WorkerSettings) -> None:
    """Its mark tells no size, and workers that know of no holds may be using it."""
    folder = build(settings, "ptc-one")
    (folder / "ptc-ready").write_text("")
    sweep(settings)

    assert (folder / "bin" / "pytest").exists()


def test_a_killed_worker_holds_nothing(settings: WorkerSettings) -> None:
    """Its locks go with it."""
    with python(USE, "ptc-one", settings=settings) as worker:
        folder = Path(_until_folder(worker)[-1])
        sweep_elsewhere(settings)
        used = folder.exists()
        worker.kill()
    sweep_elsewhere(settings)

    assert (used, folder.exists()) == (True, False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB: too small for any environment."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if _mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)):
        pytest.skip("only root can mount a small disk")
    try:
        yield disk
    finally:
        _mount("--lazy", str(disk), program="umount")


def _mount(*arguments: str, program: str = "mount") -> int:
    return subprocess.run([program, *arguments], stderr=subprocess.DEVNULL, check=False).returncode


def test_a_full_disk_is_told_as_such(small_disk: Path) -> None:
    """The message names the setting; nothing half-built stays in the way; with room, the next try works."""
    settings = WorkerSettings(ptc_cache_dir=small_disk / "cache")
    with pytest.raises(CacheDirError, match=r"PTC_CACHE_DIR .* has no room") as caught:
        build(settings)
    left = in_cache(settings)
    _mount("-o", "remount,size=200m", str(small_disk))
    folder = build(settings, "ptc-one")

    assert str(small_disk) in str(caught.value)
    assert left == set()
    assert (folder / "bin" / "pytest").exists()


def test_a_full_disk_costs_what_nobody_uses(small_disk: Path) -> None:
    """A disk smaller than the bound is no reason to refuse work for ever."""
    settings = WorkerSettings(ptc_cache_dir=small_disk / "cache")
    _mount("-o", "remount,size=200m", str(small_disk))
    one = build(settings, "ptc-one")
    (small_disk / "others").write_bytes(bytes(_free(small_disk) - 4 * 2**20))
    two = build(settings, "ptc-two")

    assert in_cache(settings) == {two}
    assert one != two


def _free(disk: Path) -> int:
    facts = os.statvfs(disk)
    return facts.f_bavail * facts.f_frsize


def test_a_cache_folder_that_is_none_is_told_as_such(tmp_path: Path) -> None:
    """The message names the setting."""
    (tmp_path / "file").touch()

    with pytest.raises(CacheDirError, match="PTC_CACHE_DIR cannot be used"):
        build(WorkerSettings(ptc_cache_dir=tmp_path / "file"))
