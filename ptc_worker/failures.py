"""What went wrong in a run of tests, as its text tells it: its last lines, and what makes two failures the same."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ptc_contracts.verdicts import Outcome

TOLD_LINES = 20
"""Lines of one traceback that are told, its error among them: further up stands what calls tests."""
TOLD_ERROR_LINES = 14
TOLD_LINE_CHARS = 400
TOLD_NAMES = 8
"""Bounds on what is told of one failure."""

_SIGNATURE_DIGITS = 16

_FRAME = re.compile(r"^(?P<path>[^\s:][^:]*):\d+: (?P<where>in .*|.*)$")
_MARKS = re.compile(r"^\s*[\^~]+\s*$")
_PLACE = re.compile(r"(?<=\.py):\d+|(?<=\.py\", line )\d+|(?<=\.py', line )\d+")
_CHANGING = re.compile(
    r"0x[0-9a-f]+"
    r"|\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"
    r"|(?<=\.\.\.)x?[0-9a-f]+(?=>)"
    r"|\b[0-9a-f-]{6,40}+\.\.\.[0-9a-f-]{6,40}\b"
    r"|\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?"
    r"|\bdatetime\(\d+(?:, \d+){6}[^)]{0,80}\)"
    r"|\b\d\d:\d\d:\d\d(?:[.,]\d+)?"
    r"|\b\d+(?:\.\d+)?\s?(?:ns|µs|us|ms)\b"
    r"|\b\d+\.\d+\s?(?:s|secs?|seconds?|minutes?)\b"
    r"|\b\d{9,}(?:\.\d+)?\b"
    r"|\b\d+\.\d{7,}(?:e-?\d+)?"
    r"|\b\d+(?:\.\d+)?e-\d+"
    r"|\b(?:pid|tid|fd|port|thread|process)(?:[ =:#-]|Id)*\d+"
    r"|(?<=[a-z0-9\]]):\d{5}\b"
    r"|\bpytest-\d+\b"
    r"|\btmp[a-z0-9_]{8}\b",
    re.IGNORECASE,
)
"""Addresses, ids, times with a date or seconds, durations, long numbers, processes, ports, temporary names.

A number of eight digits, or a float of six places, may be what a test is about.
"""
_TEMPORARY = re.compile(r"(?:/private)?(?:/tmp|/var/tmp|/dev/shm|\.\./tmp)/[\w./+-]*")
_WORD = re.compile(r"[A-Za-z0-9_-]{8,}")
_HEX = re.compile(r"[0-9a-f-]+|[0-9A-F-]+")
_RANDOM_CHARS = 16
"""From this length on, a word of digits and letters of both cases is no name."""
_COMPARED_CHARS = 10_000
"""Of a longer text the start and the end: nothing else runs in this process while an expression is looked for."""
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_DEPTH = 4


@dataclass(frozen=True)
class Failure:
    """One test, or file, that is red."""

    name: str
    """Its id."""
    became: str
    """What became of it; empty for what is no test."""
    text: str
    """What was reported, ending in lines that start with `E`."""

    @cached_property
    def cause(self) -> tuple[str, ...]:
        """Where it failed and with what, in a form that is equal for equal causes, whatever test met with them."""
        lines = [line for line in self.text.split("\n") if not _MARKS.match(line)]
        frames = [number for number, line in enumerate(lines) if _FRAME.match(line)]
        error = [line for line in lines if _is_error(line)]
        if not frames:
            return _in_any_order(lines)
        last = frames[-1]
        place = [_FRAME.sub(r"\g<path>", lines[last]), *(line.strip() for line in lines[last + 1 : last + 2])]
        return (*map(normalised, place if error else lines[last:]), *_in_any_order(error))

    def told(self, others: Sequence[str] = ()) -> str:
        """Word it for a model, with the names of others that failed in the same way."""
        title = f"{self.name} ({self.became})" if self.became else self.name
        more = [f"also: {_listed(others)}"] if others else []
        return "\n".join([title, *more, *last_lines(self.text)])

    @property
    def fingerprint(self) -> str:
        """Tell this failure from others in the same run and in later ones."""
        test, bracket, parameters = self.name.partition("[")
        return "\n".join([test + bracket + normalised(parameters), self.became, *self.cause])


def _is_error(line: str) -> bool:
    return line == "E" or line.startswith("E ")


def _listed(names: Sequence[str]) -> str:
    more = [f"and {len(names) - TOLD_NAMES} more"] if len(names) > TOLD_NAMES else []
    return ", ".join([*names[:TOLD_NAMES], *more])


def grouped(failures: Iterable[Failure]) -> list[tuple[Failure, list[str]]]:
    """Put equal failures together: the first of each, and the names of the others."""
    groups: dict[tuple[str, ...], tuple[Failure, list[str]]] = {}
    for failure in failures:
        if failure.cause in groups:
            groups[failure.cause][1].append(failure.name)
        else:
            groups[failure.cause] = failure, []
    return list(groups.values())


def last_lines(text: str) -> list[str]:
    """Give the end of a traceback: the start and end of its last error, and as many lines above as there is room for."""
    lines = [_narrowed(line) for line in text.rstrip().split("\n")]
    if len(lines) <= TOLD_LINES:
        return lines
    end = next((n for n in range(len(lines), 0, -1) if _is_error(lines[n - 1])), len(lines))
    start = next((n for n in range(end, 0, -1) if not _is_error(lines[n - 1])), 0)
    error = _clipped(lines[start:end] or lines[-TOLD_ERROR_LINES:], TOLD_ERROR_LINES)
    above = lines[: start if start < end else len(lines) - len(error)]
    room = TOLD_LINES - len(error)
    return [*(["…"] if len(above) > room else []), *above[-room:], *error]


def _clipped(lines: list[str], most: int) -> list[str]:
    """Leave lines out of the middle: the first ones say what differs, the last ones often where."""
    if len(lines) <= most:
        return lines
    last = most // 3
    return [*lines[: most - last - 1], f"… {len(lines) - most + 1} lines …", *lines[-last:]]


def _narrowed(line: str) -> str:
    half = TOLD_LINE_CHARS // 2
    return line if len(line) <= TOLD_LINE_CHARS else f"{line[:half]} … {line[-half:]}"


def signature_of(outcome: Outcome, causes: Iterable[str]) -> str:
    """Name a red verdict in 16 hexadecimal digits: equal for an equal outcome with equal causes, in whatever order."""
    told = sorted(set(causes))
    return sha256("\0".join([outcome.value, *told]).encode(errors="replace")).hexdigest()[:_SIGNATURE_DIGITS]


def normalised(text: str) -> str:
    """Take out of a text what differs between two runs of the same code.

    That is: addresses, times, durations, temporary paths, process and thread numbers, ids and tokens, line numbers
    of files, and the order in braces. Short numbers stay: they tell `assert 2 == 3` from `assert 4 == 3`.
    """
    if len(text) > _COMPARED_CHARS:
        text = text[: _COMPARED_CHARS // 2] + text[-_COMPARED_CHARS // 2 :]
    text = _TEMPORARY.sub("#", _PLACE.sub("", text))
    text = _WORD.sub(_without_randomness, _CHANGING.sub("#", text))
    for _ in range(_DEPTH):
        text, found = _INNERMOST.subn(_sorted_within, text)
        if not found:
            break
    return text


def _without_randomness(word: re.Match[str]) -> str:
    text = word[0]
    digits = any(c.isdigit() for c in text)
    letters = text.lower() != text.upper()
    if digits and letters and _HEX.fullmatch(text):
        return "#"
    both_cases = text.lower() != text != text.upper()
    return "#" if len(text) >= _RANDOM_CHARS and digits and both_cases else text


def _sorted_within(braces: re.Match[str]) -> str:
    return "⟨" + ", ".join(sorted(part.strip() for part in braces[1].split(","))) + "⟩"


def _in_any_order(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({" ".join(normalised(line).split()) for line in lines} - {"", "E"}))
