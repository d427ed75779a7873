"""How a command ends: its exit code, what it says of an error, and what an interrupt does to runs."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager, suppress
from enum import Enum
from typing import TYPE_CHECKING, NoReturn

import click

from roma_bridge.cli.questions import answer_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import FrameType

    from roma_bridge.handle import PlanHandle

EXIT_CODES = {
    0: "SUCCESS or CACHE_HIT (and whatever else was asked for is done; with --no-wait: submitted)",
    1: "PARTIAL_SUCCESS: there is code, but its tests are not green",
    2: "the command line, a plan or a setting is wrong",
    3: "FAILURE: no usable code",
    4: "TIMEOUT: the plan's time ran out",
    5: "Redis cannot be reached",
    6: "the run goes on: --timeout was over, or it has no result yet",
    7: "the files, or standard output, cannot be written",
    8: "--cancel changed nothing: others wait for the run",
    130: "interrupted; the run goes on unless you cancelled it (with --local it is left for the next --local, with --replay it ends)",
    141: "standard output was closed before all of it was printed; files are written all the same",
}

GOES_ON = "GOES ON"
"""Stands for the status of a run that has not ended."""

NOT_SUBMITTED = "NOT SUBMITTED"
"""Stands for the status of a plan whose turn has not come."""

REFUSED = "REFUSED"
"""Stands for the status of a plan that could not be submitted."""

LOST = "LOST"
"""Stands for the status of a plan whose run, or its result, cannot be had any more."""

CANCELLED = "CANCELLED"
"""Stands for the status of a run that was cancelled when the command was interrupted; it stops within a second or two."""

ENDED = "ENDED"
"""Stands for the status of a run that was to be cancelled then and had ended: nobody has read how."""

_STATUS_EXIT = {
    "SUCCESS": 0,
    "CACHE_HIT": 0,
    "PARTIAL_SUCCESS": 1,
    REFUSED: 2,
    LOST: 2,
    "FAILURE": 3,
    CANCELLED: 3,
    "TIMEOUT": 4,
    GOES_ON: 6,
    ENDED: 6,
    NOT_SUBMITTED: 6,
}
UNWRITABLE = 7
INTERRUPTED = 130
UNREAD = 141
"""What a shell tells of a program that SIGPIPE ended."""

WORST_FIRST = (INTERRUPTED, 2, 5, 7, UNREAD, 8, 6, 3, 4, 1, 0)
"""Which of several exit codes is the command's: the first of these that is among them."""


def exit_code(status: str) -> int:
    """Give the exit code for one plan's status."""
    return _STATUS_EXIT[status]


def worst(codes: Iterable[int]) -> int:
    """Give the exit code where several apply."""
    found = set(codes)
    return next((code for code in WORST_FIRST if code in found), 0)


def after_loss(lost: OSError, code: int) -> int:
    """Give the exit code of a command that lost standard output; what else than a reader who left is told."""
    if isinstance(lost, BrokenPipeError):
        return worst([code, UNREAD])
    click.echo(f"ptc-enqueue: standard output cannot be written: {lost.strerror}", err=True)
    return worst([code, UNWRITABLE])


class _Told(KeyboardInterrupt):
    """The command was told to end by whoever started it, and nobody is there to be asked."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Print an interrupt, and what PTC raises on purpose, as a message with its exit code."""
    try:
        with _told_to_end():
            yield
    except (click.ClickException, click.exceptions.Exit):
        raise  # click words these
    except (KeyboardInterrupt, click.Abort) as interrupt:
        fail(": ".join(["interrupted", *filter(None, map(str, interrupt.args))]), INTERRUPTED)
    except Exception as error:  # noqa: BLE001 what is no error of ours is raised again
        fail(*_worded(error))


def _worded(error: Exception) -> tuple[str, int]:
    """Word an error, with its exit code; anything that PTC does not raise on purpose is a bug and is shown."""
    from ptc_contracts import InvalidPlanError, PTCError, RunNotFinishedError, ServerUnavailableError
    from roma_bridge.files import UnwritableError

    if not isinstance(error, PTCError):
        raise error
    if isinstance(error, InvalidPlanError):
        lines = "".join(f"\n  {line}" for line in str(error).splitlines())
        return f"not valid, so nothing was done:{lines}", 2
    codes = {ServerUnavailableError: 5, RunNotFinishedError: 6, UnwritableError: UNWRITABLE}
    return str(error), next((code for kind, code in codes.items() if isinstance(error, kind)), 2)


def fail(message: str, code: int) -> NoReturn:
    """End the command with a message."""
    from roma_bridge.terminal import printable

    click.echo(click.style("ptc-enqueue: ", fg="red") + printable(message), err=True)
    sys.exit(code)


_ENDS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Let SIGTERM, and a terminal that closes, clean up as Ctrl-C does."""

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        raise _Told

    ends = [
        number for number in _ENDS if signal.getsignal(number) is not signal.SIG_IGN
    ]  # nohup's is left alone
    before = [signal.signal(number, end) for number in ends]
    try:
        yield
    finally:
        for number, handler in zip(ends, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back what would end the command until it is known what was submitted: that takes seconds at most."""
    came: list[int] = []
    caught = [n for n in (signal.SIGINT, *_ENDS) if signal.getsignal(n) is not signal.SIG_IGN]
    before = [signal.signal(number, lambda number, _: came.append(number)) for number in caught]
    try:
        yield
    finally:
        for number, handler in zip(caught, before, strict=True):
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


class Afterwards(Enum):
    """What becomes of a run that has not ended when the command does; the value words the choice."""

    GOES_ON = "let {it} go on"
    IS_LEFT = "leave {it} for the next --local"
    ENDS = "let {it} end with this command"


@contextmanager
def interruptible(
    under_way: Callable[[], Sequence[PlanHandle]], afterwards: Afterwards
) -> Iterator[Mapping[str, str]]:
    """Let Ctrl-C on a terminal ask once what becomes of the runs under way; then the command ends.

    Yields what became of the runs that were to be cancelled, by their ids: a Departure's value, or an error's words.

    Args:
        under_way: Tells which runs it would be about.
        afterwards: What becomes of those that are not cancelled.
    """
    became: dict[str, str] = {}
    try:
        yield became
    except KeyboardInterrupt as interrupt:
        handles = under_way()
        asks = handles and not isinstance(interrupt, _Told)
        with suppress(KeyboardInterrupt):  # whoever presses it again does not want to be asked
            if asks and _cancel_is_wanted(len(handles), afterwards):
                _cancel(handles, became)
        left = [handle for handle in handles if handle.run_id not in became]
        raise KeyboardInterrupt("; ".join([*_told_together(became), *_left(left, afterwards)])) from None


def _cancel_is_wanted(runs: int, afterwards: Afterwards) -> bool:
    """Ask whoever sits at the terminal; nobody and no answer let the runs go on."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty()):
        return False
    what = "the run" if runs == 1 else f"the {runs} runs under way"
    stay = afterwards.value.format(it="it" if runs == 1 else "them")
    return answer_to(f"\nCancel {what} (c), or {stay} (Enter)? ") in {"c", "cancel"}


def _cancel(handles: Sequence[PlanHandle], became: dict[str, str]) -> None:
    """Cancel runs, each whatever becomes of the others, and note what became of them."""
    from ptc_contracts import PTCError

    for handle in handles:
        try:
            became[handle.run_id] = handle.cancel().value
        except PTCError as error:
            became[handle.run_id] = f"could not be cancelled: {error}"


def _told_together(became: Mapping[str, str]) -> Iterator[str]:
    """Word what became of runs, those that fared alike together."""
    for how in dict.fromkeys(became.values()):
        runs = [run_id for run_id, its in became.items() if its == how]
        several = len(runs) > 1
        who = f"{len(runs)} runs" if several else f"run {runs[0]}"
        yield f"{who} " + _BECAME.get(how, how).format(
            is_="are" if several else "is", es="" if several else "es"
        )


_BECAME = {
    "stopped": "{is_} cancelled",
    "ended": "had ended before",
    "left": "go{es} on: others wait for it",
    "shared": "go{es} on: several wait for it; --cancel RUN --force stops it for all",
    "stranger": "go{es} on: others wait for it; --cancel RUN --force stops it for all",
}


def _left(handles: Sequence[PlanHandle], afterwards: Afterwards) -> Iterator[str]:
    if not handles:
        return
    several = len(handles) > 1
    runs = f"{len(handles)} runs" if several else f"run {handles[0].run_id}"
    match afterwards:
        case Afterwards.IS_LEFT:
            yield f"{runs} {'are' if several else 'is'} left for the next --local"
        case Afterwards.ENDS:
            yield f"{runs} ended with {'their' if several else 'its'} server, as a replay's do"
        case Afterwards.GOES_ON if several:
            yield f"{runs} go on; see them with: ptc-enqueue --runs"
        case Afterwards.GOES_ON:
            yield f"{runs} goes on; see it with: ptc-enqueue --watch {handles[0].run_id}"
