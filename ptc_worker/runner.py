"""Files go into a sandbox, and out comes a verdict."""

from __future__ import annotations

import json
import secrets
import shlex
import time
from functools import cache
from importlib.metadata import distributions
from typing import TYPE_CHECKING

import structlog
from packaging.utils import canonicalize_name

from ptc_contracts.paths import clashes_among
from ptc_worker.environments import environment
from ptc_worker.expected import expected_of
from ptc_worker.filetypes import artifact, import_path
from ptc_worker.frozen import is_test_material
from ptc_worker.sandbox import open_sandbox
from ptc_worker.sandbox.protocol import SandboxError
from ptc_worker.slots import in_a_slot
from ptc_worker.verdict import EventLog, judge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ptc_contracts import CodeArtifact
    from ptc_contracts.verdicts import Verdict
    from ptc_worker.halt import Halt
    from ptc_worker.sandbox.protocol import Sandbox
    from ptc_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

PLUGIN = "ptc_inside.pytest_report"


def run_tests(
    settings: WorkerSettings,
    files: Sequence[CodeArtifact],
    requirements: Sequence[str],
    seconds: float,
    halt: Halt,
    *,
    given: Mapping[str, str] | None = None,
) -> tuple[Verdict, str]:
    """Run a project's tests for at most so many seconds; return the verdict and what isolated them.

    `given` are tests that no model wrote, path to content: they take the place of the project's own files, and
    whatever changes them makes the verdict red. A sandbox that fails is replaced once: that is our fault, not the draft's. One that is refused is not.

    Raises:
        InstallError: the packages cannot be installed.
        SandboxError: no sandbox can be had.
        TimeoutError: the time was over before the tests began.
        HaltedError: the work must stop; nothing of it is left behind.
    """
    deadline = time.monotonic() + seconds
    project = _Project(files, given or {})
    with environment(settings, requirements, seconds, halt) as folder:

        def run(left: float) -> tuple[Verdict, str]:
            return _run_once(settings, project, folder, left, halt)

        return in_a_slot(settings, deadline, halt, run)


def with_given(files: Sequence[CodeArtifact], given: Mapping[str, str]) -> list[CodeArtifact]:
    """Put tests that a plan gives, path to content, in their places among a draft's files."""
    return _Project(files, given).files


class _Project:
    """A draft's files, and the tests that its plan gave in their places."""

    def __init__(self, files: Sequence[CodeArtifact], given: Mapping[str, str]) -> None:
        self.given = given
        self.drafted = [file for file in files if not clashes_among([file.file_path, *given])]
        self.files = [*self.drafted, *(artifact(path, content) for path, content in given.items())]

    def write(self, box: Sandbox) -> None:
        """Write the draft, then the given tests.

        Raises:
            SandboxError: they are not there as they were written.
        """
        box.write({f"project/{file.file_path}": file.content.encode() for file in self.drafted})
        box.write({f"project/{path}": text.encode() for path, text in self.given.items()}, read_only=True)
        if changed := self.changed(box):
            raise SandboxError(f"{changed[0]} is not there as it was written")

    def changed(self, box: Sandbox) -> list[str]:
        """Name the given tests that are not what they were."""
        return _changed(box, self.given)

    def changed_tests(self, box: Sandbox) -> list[str]:
        """Name the draft's tests, and what lies beside them, that are not what they were."""
        drafted = [file for file in self.drafted if file.content.strip() and is_test_material(file.file_path)]
        return _changed(box, {file.file_path: file.content for file in drafted})


def _changed(box: Sandbox, files: Mapping[str, str]) -> list[str]:
    wanted = {path: text.encode(errors="replace") for path, text in files.items()}
    return [path for path, text in wanted.items() if box.read(f"project/{path}", len(text) + 1) != text]


def _run_once(
    settings: WorkerSettings, project: _Project, folder: Path, seconds: float, halt: Halt
) -> tuple[Verdict, str]:
    key = secrets.token_bytes(32)
    command = pytest_command(folder, project.files)
    with open_sandbox(settings, folder) as box, halt.calling(box.stop):
        project.write(box)
        box.write({"ptc/key": key, "home/.keep": b"", "tmp/.keep": b""})
        ran = box.exec(
            command,
            env={
                "PATH": f"{folder}/bin:/usr/bin:/bin",
                "HOME": f"{box.root}/home",
                "TMPDIR": f"{box.root}/tmp",  # noqa: S108 its own
                "USER": "sandbox",
                "LANG": "C.UTF-8",
                "PTC_KEY": f"{box.root}/ptc/key",
                "PTC_GIVEN": json.dumps([*project.given]),
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONHASHSEED": "0",
                "OPENBLAS_NUM_THREADS": "1",
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            },
            cwd="project",
            timeout=seconds,
        )
        events = EventLog.parse(ran.events, key)
        if not (
            ran.timed_out or ran.output_limited or ran.out_of_memory
        ):  # then the sandbox may be gone, too
            events.meddling += [f"{path}, which the plan gave, was changed" for path in project.changed(box)]
            events.meddling += [
                f"{path} was changed while the tests ran" for path in project.changed_tests(box)
            ]
        told = "python " + shlex.join(command[1:])
        verdict = judge(ran, events, told, expected_of(project.files, project.given), box.root)
        log.info("tests_ran", outcome=verdict.outcome.value, seconds=round(ran.duration_seconds, 2))
        return verdict, box.isolation


def pytest_command(folder: Path, files: Sequence[CodeArtifact]) -> list[str]:
    """Write the command line that runs a project's tests in an environment.

    Nothing of the project chooses what is loaded or run: no options from its configuration, no plugins by
    discovery, no module of its own before pytest's.
    """
    plugins = _plugins(folder, files)
    path = import_path(file.file_path for file in files if file.file_path.endswith(".py"))
    return [
        *(str(folder / "bin" / "python"), "-P", "-B", "-m", "pytest", "-q", "--tb=short", "--color=no"),
        *("-p", "no:cacheprovider", "--import-mode=importlib", "--rootdir=."),
        # The last to be loaded is the first to be asked: before a plugin that loads code of the project, as Django's.
        *(part for name in (*plugins, PLUGIN) for part in ("-p", name)),
        *(_loop_scope(files) if "asyncio" in plugins else ()),
        *("-o", "addopts=", "-o", f"pythonpath={shlex.join(path)}", "."),
    ]


def _loop_scope(files: Sequence[CodeArtifact]) -> list[str]:
    """Choose what pytest-asyncio warns of when nobody does: a warning may count as an error."""
    name = "asyncio_default_fixture_loop_scope"
    return [] if any(name in file.content for file in files) else ["-o", f"{name}=function"]


def _plugins(folder: Path, files: Sequence[CodeArtifact]) -> list[str]:
    """Name the plugins to load: all of distributions named pytest-…; of those that are always there if used."""
    texts = [file.content for file in files if file.file_path.endswith((".py", ".ini", ".toml", ".cfg"))]
    unused = {name for name, sign in _LOADED_WHEN_USED.items() if not any(sign in text for text in texts)}
    return sorted(set(_entry_points(folder)) - unused)


_LOADED_WHEN_USED = {"asyncio": "asyncio", "anyio": "mark.anyio"}
"""Names of plugins that are there for other reasons, and what a project holds that needs them."""


@cache
def _entry_points(folder: Path) -> tuple[str, ...]:
    """Name the pytest plugins in an environment; of distributions that are named otherwise only anyio's."""
    (site_packages,) = folder.glob("lib/python*/site-packages")
    return tuple(
        point.name
        for distribution in distributions(path=[str(site_packages)])
        if (name := canonicalize_name(distribution.name)).startswith("pytest-") or name == "anyio"
        for point in distribution.entry_points.select(group="pytest11")
    )
