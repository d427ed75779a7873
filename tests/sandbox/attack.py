"""An attack: a hostile program, and how one sees that it was contained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sandbox.host import Host
    from sandbox.ways import Way

    from ptc_worker.sandbox.protocol import ExecResult, Sandbox

FINISHED = "the attack is over"
"""What every program prints last: silence must not pass for failure of the attack."""


@dataclass(frozen=True)
class Scene:
    """What is there to look at once the program has ended."""

    box: Sandbox
    way: Way
    host: Host
    ran: ExecResult

    @property
    def said(self) -> str:
        """What the program wrote, and how it ended, for a reader."""
        ran, end = self.ran, 3000
        return (
            f"exit {ran.exit_code} timed_out={ran.timed_out} output_limited={ran.output_limited} "
            f"out_of_memory={ran.out_of_memory} after {ran.duration_seconds:.2f} s\n"
            f"{ran.stdout[-end:].decode(errors='replace')}\n{ran.stderr[-end:].decode(errors='replace')}"
        )


class Check(Protocol):
    """Looks at a scene."""

    def __call__(self, scene: Scene) -> None:
        """Raise AssertionError if the attack had its way."""


def gained_nothing(scene: Scene) -> None:
    """Everything was tried to the end, and nothing worked."""
    assert b"GAINED" not in scene.ran.stdout, scene.said
    assert FINISHED.encode() in scene.ran.stdout, scene.said
    assert scene.ran.exit_code == 0, scene.said


def ended(**facts: object) -> Check:
    """It gained nothing, and ended in just this way."""

    def check(scene: Scene) -> None:
        assert b"GAINED" not in scene.ran.stdout, scene.said
        whole = {"timed_out": False, "output_limited": False, "out_of_memory": False, **facts}
        assert {name: getattr(scene.ran, name) for name in whole} == whole, scene.said

    return check


def ended_or_held(**facts: object) -> Check:
    """It gained nothing: it was ended in just this way, or refused and so came to its end."""

    def check(scene: Scene) -> None:
        if (
            FINISHED.encode() in scene.ran.stdout and scene.ran.exit_code == 0
        ):  # else it came too late to its end
            gained_nothing(scene)
        else:
            ended(**facts)(scene)

    return check


OVER_TIME = ended(timed_out=True)
TOO_MUCH_OUTPUT = ended(output_limited=True)
TOO_MUCH_MEMORY = ended_or_held(out_of_memory=True)


def too_much_on_disk(scene: Scene) -> None:
    """It gained nothing: it was refused, or ended for what its files hold, or by time while it was still at it."""
    assert b"GAINED" not in scene.ran.stdout, scene.said
    if scene.ran.out_of_memory:
        TOO_MUCH_MEMORY(scene)
    elif scene.ran.timed_out:
        OVER_TIME(scene)
    else:
        ended_or_held(output_limited=True)(scene)


@dataclass(frozen=True)
class Attack:
    """A hostile program, and how one sees that it was contained."""

    name: str
    program: str
    """Python, with the names of `sandbox.foothold` at hand."""
    holds: Check = gained_nothing
    seconds: float = 20
    """How long it may run."""
