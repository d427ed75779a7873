"""Reads plans: from files, globs, standard input, one document or one a line, all of them before anything is done."""

from __future__ import annotations

import codecs
import errno
import glob
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ptc_contracts import InvalidPlanError, PayloadTooLargeError
from ptc_contracts.blobs import Blobs
from ptc_contracts.record import RecordForm
from roma_bridge.cli.changes import Change, changed
from roma_bridge.plans import read_plan
from roma_bridge.terminal import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ptc_contracts import PTCExecutionPlan

MOST_PROBLEMS = 50
"""Lines of a message about plans that are not valid."""

_STANDARD_INPUT = "-"
_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Given:
    """A plan, and where it stands."""

    file: str
    """As the user named it, or a word for what is no file."""
    line: int | None
    """From 1, where the file holds one plan a line."""
    plan: PTCExecutionPlan

    @property
    def place(self) -> str:
        """The two in words, on one line."""
        return one_line(_place(self.file, self.line))


def read(
    names: Sequence[str], changes: Sequence[str] = (), check: Callable[[PTCExecutionPlan], None] | None = None
) -> list[Given]:
    """Read all plans of files, quoted globs and `-`, with what `--set` changes.

    Args:
        names: What the user named.
        changes: As the user wrote them.
        check: Raises InvalidPlanError for a plan that will not do here.

    Raises:
        InvalidPlanError: with a line for every file that cannot be read, every field that breaks the contract, and
            every plan that is larger than `PTC_MAX_PAYLOAD_MB`.
        ConfigurationError: a default from the environment does not fit a plan, or a setting is wrong.
        click.UsageError: a change is none.
    """
    parsed = [Change.parse(change) for change in changes]
    form = RecordForm(Blobs.from_environment())
    plans: list[Given] = []
    problems: list[str] = []
    for file, line, text in _documents(names, problems):
        try:
            plan = read_plan(changed(text, parsed))
            form.small(plan)
            if check:
                check(plan)
            plans.append(Given(file, line, plan))
        except (InvalidPlanError, PayloadTooLargeError) as error:
            hint = "; give an array's plans one a line: jq -c '.[]'" if text.lstrip()[:1] == b"[" else ""
            problems += [f"{_place(file, line)}: {problem}{hint}" for problem in str(error).splitlines()]
    if problems:
        raise InvalidPlanError(_told(problems))
    return plans


def _told(problems: Sequence[str]) -> str:
    told = [one_line(problem) for problem in problems[:MOST_PROBLEMS]]
    if len(problems) > MOST_PROBLEMS:
        told.append(f"… and {len(problems) - MOST_PROBLEMS} more")
    return "\n".join(told)


def _documents(names: Sequence[str], problems: list[str]) -> Iterator[tuple[str, int | None, bytes]]:
    """Give every plan's text with its place; note what cannot be read."""
    for file in dict.fromkeys(file for name in names for file in _files(name, problems)):
        try:
            shown, text = _text(file)
        except OSError as error:
            problems.append(_unreadable(file, error))
            continue
        text = text.removeprefix(codecs.BOM_UTF8)
        if not text.strip() and file.endswith(_LINES):
            problems.append(f"{shown}: there is no plan in it")
            continue
        for line, document in _parts(file, text):
            yield shown, line, document


def _files(name: str, problems: list[str]) -> list[str]:
    if name == _STANDARD_INPUT or Path(name).exists() or not glob.has_magic(name):
        return [name]
    matching = glob.glob(name, recursive=True)  # noqa: PTH207 Path.glob takes no absolute pattern
    found = sorted(file for file in matching if not Path(file).is_dir())
    if not found:
        problems.append(f"{name!r} matches no file")
    return found


def _text(file: str) -> tuple[str, bytes]:
    if file == _STANDARD_INPUT:
        if sys.stdin is None:
            raise OSError(errno.EBADF, "standard input is closed")
        return "standard input", sys.stdin.buffer.read()
    return file, Path(file).read_bytes()


def _unreadable(file: str, error: OSError) -> str:
    if not file:
        return "a file's name is empty"
    if isinstance(error, IsADirectoryError):
        return f"{file!r} is a directory: give its plans, such as '{file.rstrip('/')}/*.json'"
    return f"{file!r}: {error.strerror}"


def _parts(file: str, text: bytes) -> list[tuple[int | None, bytes]]:
    """Cut a text into plans: one a line, unless the whole is one document (or means to be)."""
    lines = [(number, line) for number, line in enumerate(text.split(b"\n"), 1) if line.strip()]
    by_line = file.endswith(_LINES)
    if len(lines) > 1 and not _is_object(text) and (by_line or _is_object(lines[0][1])):
        return [*lines]
    return [(lines[0][0] if by_line else None, text)]


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _place(file: str, line: int | None) -> str:
    return file if line is None else f"{file}, line {line}"
