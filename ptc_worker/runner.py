"""Files go into a sandbox, and out comes a verdict."""

from __future__ import annotations

import json
import secrets
import shlex
import time
from typing import TYPE_CHECKING

import structlog

from ptc_contracts.paths import clashes_among
from ptc_worker.eventlog import EventLogReader
from ptc_worker.expected import expected_of
from ptc_worker.filetypes import artifact, import_path
from ptc_worker.frozen import is_test_material
from ptc_worker.sandbox import equipped
from ptc_worker.sandbox.protocol import NOBODYS, SandboxError
from ptc_worker.slots import in_a_slot
from ptc_worker.telling import nobody
from ptc_worker.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ptc_contracts import CodeArtifact
    from ptc_contracts.verdicts import Verdict
    from ptc_worker.halt import Halt
    from ptc_worker.sandbox.protocol import Purpose, Sandbox, Tools
    from ptc_worker.settings import WorkerSettings
    from ptc_worker.slots import Allowance
    from ptc_worker.telling import Listener

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
    purpose: Purpose = NOBODYS,
    told: Listener = nobody,
) -> tuple[Verdict, str]:
    """Run a project's tests for at most so many seconds; return the verdict and what isolated them.

    `given` are tests that no model wrote, path to content: they take the place of the project's own files, and
    whatever changes them makes the verdict red. A sandbox that fails is replaced once: that is our fault, not the draft's. One that is refused is not.
    `told` hears of each test as it ends, and of each begin: a sandbox that is replaced begins again.

    Raises:
        InstallError: the packages cannot be installed.
        SandboxError: no sandbox can be had.
        BusyError: there is no room for one just now.
        TimeoutError: the time was over before the tests began.
        HaltedError: the work must stop; nothing of it is left behind.
    """
    deadline = time.monotonic() + seconds
    project = _Project(files, given or {})
    with equipped(settings, requirements, seconds, halt, purpose=purpose) as open_sandbox:

        def run(allowance: Allowance) -> tuple[Verdict, str]:
            with open_sandbox() as box, halt.calling(box.stop):
                return _run_in(box, project, allowance, told)

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

    def write(self, box: Sandbox, beside: Mapping[str, bytes]) -> None:
        """Write the draft and what lies beside it, then the given tests.

        Raises:
            SandboxError: they are not there as they were written.
        """
        drafted = {f"project/{file.file_path}": file.content.encode() for file in self.drafted}
        box.write({**drafted, **beside})
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
    changed = set(box.changed({f"project/{path}": text for path, text in wanted.items()}))
    return [path for path in wanted if f"project/{path}" in changed]


def _run_in(box: Sandbox, project: _Project, allowance: Allowance, told: Listener) -> tuple[Verdict, str]:
    key = secrets.token_bytes(32)
    reader = EventLogReader(key, told)
    project.write(box, {"ptc/key": key, "home/.keep": b"", "tmp/.keep": b""})
    command = pytest_command(box.tools, project.files)
    ran = box.exec(
        command,
        env={
            "PATH": box.tools.path,
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
        timeout=allowance.seconds,
        heard=reader.feed,
    )
    events = reader.log
    if not (ran.timed_out or ran.output_limited or ran.out_of_memory):  # then the sandbox may be gone, too
        events.meddling += [f"{path}, which the plan gave, was changed" for path in project.changed(box)]
        events.meddling += [f"{path} was changed while the tests ran" for path in project.changed_tests(box)]
    shown = "python " + shlex.join(command[1:])
    verdict = judge(ran, events, shown, expected_of(project.files, project.given), box.root)
    log.info("tests_ran", outcome=verdict.outcome.value, seconds=round(ran.duration_seconds, 2))
    return verdict, box.isolation


def pytest_command(tools: Tools, files: Sequence[CodeArtifact]) -> list[str]:
    """Write the command line that runs a project's tests.

    Nothing of the project chooses what is loaded or run: no options from its configuration, no plugins by
    discovery, no module of its own before pytest's.
    """
    plugins = _plugins(tools, files)
    path = import_path(file.file_path for file in files if file.file_path.endswith(".py"))
    return [
        *(tools.python, "-P", "-B", "-m", "pytest", "-q", "--tb=short", "--color=no"),
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


def _plugins(tools: Tools, files: Sequence[CodeArtifact]) -> list[str]:
    """Name the plugins to load: all of distributions named pytest-…; of those that are always there if used."""
    texts = [file.content for file in files if file.file_path.endswith((".py", ".ini", ".toml", ".cfg"))]
    unused = {name for name, sign in _LOADED_WHEN_USED.items() if not any(sign in text for text in texts)}
    return sorted(set(tools.plugins) - unused)


_LOADED_WHEN_USED = {"asyncio": "asyncio", "anyio": "mark.anyio"}
"""Names of plugins that are there for other reasons, and what a project holds that needs them."""
