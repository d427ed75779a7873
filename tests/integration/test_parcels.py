"""Vendors' machines get the packages that they lack from the worker, and need neither a network nor an index for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from daytona_server import KEY, SNAPSHOT, DaytonaServer
from npm import registry
from support import silent_index, until
from uv import find_uv_bin

from ptc_contracts.verdicts import Outcome
from ptc_worker.filetypes import artifact
from ptc_worker.halt import Halt
from ptc_worker.installer import InstallError
from ptc_worker.node import NodeMissingError, run_node_tests
from ptc_worker.node.installed import find_node
from ptc_worker.node.packages import NodeAddition
from ptc_worker.runner import run_tests
from ptc_worker.sandbox import inside
from ptc_worker.sandbox.machine import Facts
from ptc_worker.sandbox.parcels import parcel_for
from ptc_worker.sandbox.protocol import IsolationRefusedError
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ptc_contracts.verdicts import Verdict
    from ptc_worker.sandbox.machine import Parcel

pytestmark = pytest.mark.usefixtures("packages")

SECONDS = 300

OLD_PYTHON = """#!/bin/sh
shift 4  # -I -S -B -c
exec "${0%3}" -I -S -B -c 'import sys; sys.version_info = (3, 10, 14); exec(sys.argv.pop(1))' "$@"
"""
"""A Python that takes itself for an older one."""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which installers look beside their index; it holds ptc-one in two versions, and what that needs."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for version in ("1.0", "2.0"):
        wheel(folder, "ptc_one", version, needs="ptc-two")
        wheel(folder, "ptc_two", version)
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    return folder


def wheel(folder: Path, name: str, version: str, *, needs: str = "") -> None:
    """Write a wheel with one module, which knows its version and its Python's, and a script."""
    about = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + (f"Requires-Dist: {needs}\n" if needs else ""),
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": f"[console_scripts]\n{name} = {name}:version\n",
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{about}/RECORD", "".join(f"{path},,\n" for path in [*files, f"{about}/RECORD"]))


def uv(*arguments: str) -> None:
    """Run uv."""
    subprocess.run([find_uv_bin(), "--quiet", *arguments], check=True)


def image(folder: Path, *requirements: str, python: str = sys.executable) -> Path:
    """Make what a vendor's machines are made from: a Python with these packages, and what serves the machine itself; in a folder that all may enter."""
    uv("venv", "--python", python, str(folder))
    if requirements:
        uv("pip", "install", "--python", str(folder / "bin/python"), "--", *requirements)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    shutil.copytree(Path(inside.__file__).parent, site_packages / "ptc_inside")
    return folder


@contextmanager
def vendor(made_from: Path, cache: Path) -> Iterator[WorkerSettings]:
    """Serve sandboxes from an image; give the settings that lead there."""
    size: dict[str, Any] = {"ptc_cache_dir": cache, "ptc_sandbox_memory_mb": 512, "ptc_sandbox_disk_mb": 256}
    with DaytonaServer(WorkerSettings(**size), made_from, events=False) as server:
        yield WorkerSettings(
            ptc_sandbox="daytona",
            daytona_api_key=KEY,
            daytona_api_url=server.url,
            ptc_daytona_snapshot=SNAPSHOT,
            **size,
        )
        until(lambda: not server.left())


def verdict_on(settings: WorkerSettings, requirements: Sequence[str], **wanted: str) -> Verdict:
    """Run a draft that wants these modules in these versions."""
    lines = [f"import {name}" for name in wanted]
    lines += [f"def test_{name}(): assert {name}.version == {version!r}" for name, version in wanted.items()]
    files = [artifact("test_it.py", "\n".join([*lines, "def test_runs(): assert True"]))]
    return run_tests(settings, files, requirements, SECONDS, Halt())[0]


def test_a_package_that_the_image_lacks_is_brought(tmp_path: Path) -> None:
    """With what it needs itself, beside a pytest that the image has; asked for again, nobody asks an index again."""
    with (
        vendor(
            image(tmp_path / "images/one", "pytest>=9,<10", "pytest-asyncio"), tmp_path / "cache"
        ) as settings,
        pytest.MonkeyPatch.context() as patch,
    ):
        first = verdict_on(settings, ["ptc-one"], ptc_one="2.0", ptc_two="2.0")
        with silent_index(patch) as asked:
            second = verdict_on(settings, ["ptc-one"], ptc_one="2.0", ptc_two="2.0")

    assert first.outcome is second.outcome is Outcome.PASSED
    assert not asked.is_set()


def test_what_the_image_has_is_taken_as_it_is(tmp_path: Path) -> None:
    """No index is asked where everything is there, whatever newer versions there are."""
    made_from = image(
        tmp_path / "images/one", "pytest>=9,<10", "pytest-asyncio", "ptc-one==1.0", "ptc-two==1.0"
    )
    with (
        vendor(made_from, tmp_path / "cache") as settings,
        pytest.MonkeyPatch.context() as patch,
        silent_index(patch) as asked,
    ):
        verdict = verdict_on(settings, ["ptc-one"], ptc_one="1.0", ptc_two="1.0")

    assert verdict.outcome is Outcome.PASSED
    assert not asked.is_set()
    assert not (tmp_path / "cache/environments").exists()


def test_a_version_that_the_image_has_otherwise_is_brought(tmp_path: Path) -> None:
    """It stands before the image's own; what is needed beside it stays the image's where that will do."""
    made_from = image(
        tmp_path / "images/one", "pytest>=9,<10", "pytest-asyncio", "ptc-one==1.0", "ptc-two==1.0"
    )
    with vendor(made_from, tmp_path / "cache") as settings:
        verdict = verdict_on(settings, ["ptc-one>=2"], ptc_one="2.0", ptc_two="1.0")

    assert verdict.outcome is Outcome.PASSED


def test_an_image_without_any_package_will_do(tmp_path: Path) -> None:
    """Even what runs the tests is brought then, with its plugins."""
    with vendor(image(tmp_path / "images/one"), tmp_path / "cache") as settings:
        files = [
            artifact("test_it.py", "import pytest\n@pytest.mark.asyncio\nasync def test_waits(): pass\n")
        ]
        verdict, isolation = run_tests(settings, files, [], SECONDS, Halt())

    assert verdict.outcome is Outcome.PASSED
    assert isolation == "daytona"


def other_python() -> Path:
    """Find the folder of a Python of another version than ours."""
    ours = sysconfig.get_python_version()
    for folder in sorted(Path(sys.base_prefix).parent.glob("3.1[1-9].*")):
        if not folder.name.startswith(f"{ours}."):
            return folder
    pytest.skip("there is no other Python beside this one")


def test_an_image_with_another_python_gets_packages_for_that(tmp_path: Path) -> None:
    """Also compiled ones; its Python need be no virtual environment."""
    python, made_from = other_python(), tmp_path / "images/one"
    unneeded = shutil.ignore_patterns(
        "test", "idlelib", "tkinter", "config-*", "__pycache__", "*.a", "site-packages"
    )
    shutil.copytree(python, made_from, symlinks=True, ignore=unneeded)
    (lib,) = made_from.glob("lib/python3.*")
    shutil.copytree(Path(inside.__file__).parent, lib / "site-packages/ptc_inside")
    program = made_from / "bin" / lib.name
    elsewhere = f"{python}/lib".encode()  # where one that was built there looks for its library
    program.write_bytes(
        program.read_bytes().replace(elsewhere, b"$ORIGIN/../lib".ljust(len(elsewhere), b"\0"))
    )
    (made_from / "bin/python").unlink(missing_ok=True)
    (made_from / "bin/python").symlink_to(lib.name)
    files = [
        artifact(
            "test_it.py",
            "import sys, yaml, ptc_one\n"
            f"def test_version(): assert 'python%d.%d' % sys.version_info[:2] == {lib.name!r}\n"
            "def test_compiled(): assert yaml.__with_libyaml__\n",
        )
    ]
    with vendor(made_from, tmp_path / "cache") as settings:
        verdict, _ = run_tests(settings, files, ["pyyaml", "ptc-one"], SECONDS, Halt())

    assert verdict.outcome is Outcome.PASSED


def test_packages_of_npm_are_brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Node that runs is the image's; the registry is asked once."""
    made_from = image(tmp_path / "images/one")
    shutil.copy(find_node().program, made_from / "bin/node")
    files = [
        artifact("package.json", '{"type": "module", "dependencies": {"ptc-adds": "^1.0.0"}}'),
        artifact(
            "it.test.ts",
            "import test from 'node:test';\nimport assert from 'node:assert/strict';\n"
            "import add from 'ptc-adds';\nenum Sum { Three = 3 }\n"
            "test('adds', () => { assert.equal(add(1, 2), Sum.Three); });\n",
        ),
    ]
    adds = {"index.js": "module.exports = (a, b) => a + b;"}
    with (
        vendor(made_from, tmp_path / "cache") as settings,
        registry(monkeypatch, **{"ptc-adds": adds}) as asked,
    ):
        first, _ = run_node_tests(settings, files, SECONDS, Halt(), ["ptc-adds"])
        times = len(asked)
        second, _ = run_node_tests(settings, files, SECONDS, Halt(), ["ptc-adds"])

    assert first.outcome is second.outcome is Outcome.PASSED
    assert len(asked) == times > 0


# ── what is gathered ───────────────────────────────────────────────────────────────────────────────────────


def bare(**told: Any) -> Facts:
    """Tell of an image without packages; further facts are what differs."""
    machine = {"version": "3.12.4", "machine": "x86_64", "libc": ["glibc", "2.36"], "node": None}
    return Facts({**machine, "packages": {}, "requires": {}, "plugins": {}, **told})


def gathered(
    cache: Path, facts: Facts, *requirements: str
) -> tuple[Parcel, dict[str, tarfile.TarInfo], bytes]:
    """Gather a parcel; give what is in it by path, and its bytes."""
    settings = WorkerSettings(ptc_cache_dir=cache)
    with parcel_for(settings, facts, requirements, SECONDS, Halt(), image="the snapshot") as parcel:
        assert parcel.archive
        with tarfile.open(parcel.archive) as tar:
            return parcel, {member.name: member for member in tar}, parcel.archive.read_bytes()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_packages_are_those_for_the_machine(tmp_path: Path, machine: str) -> None:
    """Of its kind, and for its version of Python, whatever the worker's are."""
    _, members, _ = gathered(tmp_path, bare(machine=machine), "pyyaml")
    compiled = [path for path in members if path.endswith(".so")]

    assert compiled
    assert all(f"cpython-312-{machine}" in path for path in compiled)
    assert all(path.startswith("lib/python3.12/site-packages/") for path in compiled)


def test_the_same_packages_are_the_same_bytes(tmp_path: Path) -> None:
    """Whoever gathers them, and whatever the umask: readable by all, of no user, byte-code included."""
    here = bare(version=".".join(map(str, sys.version_info[:3])))
    parcel, members, first = gathered(tmp_path / "one", here, "ptc-one", "pytest-mock")
    before = os.umask(0o077)
    try:
        _, _, second = gathered(tmp_path / "two", here, "ptc-one", "pytest-mock")
    finally:
        os.umask(before)

    assert first == second
    assert {member.mode for member in members.values()} == {0o644, 0o755}
    assert {(member.uid, member.gid) for member in members.values()} == {(0, 0)}
    assert any(path.endswith(".pyc") for path in members)
    assert not [path for path in members if path.startswith("bin") or "/site-packages/bin/" in path]
    assert parcel.plugins == ("asyncio", "pytest_mock")


@pytest.mark.parametrize(
    "facts",
    [{"libc": ["", ""]}, {"libc": ["musl", "1.2.5"]}, {"machine": "s390x"}, {"libc": ["glibc", "2.12"]}],
    ids=str,
)
def test_a_machine_that_nothing_can_be_brought_to_is_refused(tmp_path: Path, facts: dict[str, Any]) -> None:
    """The message names the image and a way out; one that has all it needs will do."""
    settings = WorkerSettings(ptc_cache_dir=tmp_path)
    there = {"packages": {"pytest": "9.1.0", "pytest-asyncio": "1.2.0"}}
    with (
        pytest.raises(IsolationRefusedError, match=r"the snapshot .*python:3\.12-slim"),
        parcel_for(settings, bare(**facts), (), SECONDS, Halt(), image="the snapshot"),
    ):
        pass

    with parcel_for(settings, bare(**facts, **there), (), SECONDS, Halt(), image="the snapshot") as parcel:
        assert parcel.archive is None


@pytest.mark.parametrize(
    ("node", "told"), [(None, "has none"), ({"version": "20.1.0", "flags": []}, r"has 20\.1\.0")]
)
def test_an_image_without_a_node_that_is_new_enough_says_so(
    tmp_path: Path, node: dict[str, Any] | None, told: str
) -> None:
    """The message names the image, for it is the image that must change."""
    settings = WorkerSettings(ptc_cache_dir=tmp_path)
    with (
        pytest.raises(NodeMissingError, match=rf"need Node .* the snapshot {told}"),
        parcel_for(
            settings,
            bare(node=node),
            (),
            SECONDS,
            Halt(),
            addition=NodeAddition(find_node(), ()),
            image="the snapshot",
        ),
    ):
        pass


def test_an_image_with_too_old_a_python_is_refused(tmp_path: Path) -> None:
    """The message names it, and the setting that says which it is."""
    made_from = image(tmp_path / "images/one")
    python = made_from / "bin/python3"
    python.unlink()
    python.write_text(OLD_PYTHON)
    python.chmod(0o755)
    with (
        vendor(made_from, tmp_path / "cache") as settings,
        pytest.raises(IsolationRefusedError, match=r"Python 3\.11 .*'ptc-test' \(PTC_DAYTONA_SNAPSHOT\)"),
    ):
        verdict_on(settings, ())


def test_a_package_that_is_not_to_be_had_is_told(tmp_path: Path) -> None:
    """In the installer's words; nothing half-gathered stays."""
    settings = WorkerSettings(ptc_cache_dir=tmp_path)
    with (
        pytest.raises(InstallError, match="ptc-one"),
        parcel_for(settings, bare(), ["ptc-one>=3"], SECONDS, Halt(), image="the snapshot"),
    ):
        pass

    assert [path for path in (tmp_path / "environments").iterdir() if path.suffix != ".lock"] == []
