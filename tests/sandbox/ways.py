"""The ways to have a sandbox, each with what it promises: a new kind is one line here."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ptc_worker.halt import Halt
from ptc_worker.sandbox import equipped
from ptc_worker.sandbox.inside.confine import SCOPE_ABI, landlock_abi
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ptc_worker.sandbox.protocol import Sandbox

MEMORY_MB, DISK_MB = 384, 64
"""What these sandboxes may hold: small, so that exhausting it is quick."""

OPEN_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to have a sandbox, and what its documentation promises."""

    isolation: str
    """What keeps programs in, as the sandbox and every result name it."""
    pool: int = 0
    """Sandboxes that are prepared ahead."""
    loopback: bool
    """Whether programs inside can talk to themselves over the network."""
    own_processes: bool
    """Whether programs inside are alone with their processes, so that signals to all reach no one else."""
    modes: bool = True
    """Whether programs can change the modes of files: not as the user of whatever started them, without namespaces."""
    image: bool = False
    """Whether programs see the files of an image, which anyone may, and none of this host's."""
    optional: bool = False
    """Whether it needs what no package brings: it is reported as not run in CI, too, where it is not to be had."""
    forks: bool = False
    """Whether a Python program runs in a fork of what was prepared."""
    served_by: str = ""
    """The fixture of the server that it needs, if it needs one."""
    chosen_by: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The settings that lead to it."""

    def __str__(self) -> str:
        """Name it as the summary does."""
        return f"{self.isolation}-{'pooled' if self.pool else 'cold'}"

    def at(self, **more: Any) -> Way:
        """Lead it to where its server is."""
        return replace(self, chosen_by={**self.chosen_by, **more})

    def settings(self, cache_dir: Path, **more: Any) -> WorkerSettings:
        """Settings that lead to it."""
        return WorkerSettings(
            **{
                "ptc_sandbox_pool": self.pool,
                "ptc_cache_dir": cache_dir,
                "ptc_sandbox_memory_mb": MEMORY_MB,
                "ptc_sandbox_disk_mb": DISK_MB,
                **self.chosen_by,
                **more,
            }
        )

    def program(self, python: str, path: str) -> list[str]:
        """A command that runs a Python file: as a process of its own, or in a fork of what was prepared."""
        if not self.forks:
            return [python, path]
        return [python, "-P", "-B", "-m", "timeit", "-n1", "-r1", f"exec(open({path!r}).read(), {{}})"]

    @contextmanager
    def open(self, cache_dir: Path) -> Iterator[Sandbox]:
        """Open a sandbox in this way."""
        with (
            equipped(self.settings(cache_dir), (), OPEN_SECONDS, Halt()) as open_sandbox,
            open_sandbox() as box,
        ):
            yield box


def local(isolation: str, *, pool: int, walled: bool) -> Way:
    """Describe a tier of the local sandbox; where there are only walls, host and network are shared."""
    return Way(
        isolation=isolation,
        pool=pool,
        loopback=not walled,
        own_processes=not walled,
        forks=pool > 0,
        chosen_by={"ptc_sandbox": "local", "ptc_sandbox_isolation": isolation},
    )


WAYS = (
    local("bubblewrap", pool=0, walled=False),
    local("bubblewrap", pool=1, walled=False),
    local("landlock", pool=0, walled=True),
    local("landlock", pool=1, walled=True),
    Way(
        isolation="daytona",
        loopback=True,
        own_processes=False,
        modes=False,
        served_by="daytona",
        chosen_by={"ptc_sandbox": "daytona", "ptc_daytona_snapshot": "ptc-test"},
    ),
    Way(
        isolation="docker",
        loopback=True,
        own_processes=False,
        modes=landlock_abi() < SCOPE_ABI,  # else its courier is no other user than its commands
        image=True,
        optional=True,  # an engine: DOCKER_HOST and PTC_DOCKER_IMAGE of whoever runs the tests lead to it
        chosen_by={"ptc_sandbox": "docker"},
    ),
    Way(isolation="e2b", loopback=True, own_processes=False, modes=False, served_by="e2b"),
)

ATTACKED = tuple(way for way in WAYS if way.pool or way.optional or os.environ.get("PTC_TEST_ALL_WAYS"))
"""Those that all of the battery is thrown at, unless it is asked for all: the local ones as workers have them."""
