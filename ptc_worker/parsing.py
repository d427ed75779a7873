"""From a model's answer to files: only paths that are safe, only files that are whole, never a guess."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ptc_contracts.paths import MAX_PATH_CHARS, untidy_reason
from ptc_worker.filetypes import artifact, language

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ptc_contracts.result import CodeArtifact

MAX_FILES = 200
MAX_FILE_CHARS = 1_000_000
MAX_TOTAL_CHARS = 4_000_000
"""Bounds on one answer: above what any model writes in one reply, below what hurts us."""
MAX_PROBLEMS = 20
"""How many problems are told one by one."""
MAX_DISPUTES = 3
MAX_DISPUTE_CHARS = 1_000
"""Bounds on what a model may say against the tests in one answer."""

_OPEN = re.compile(r"""^\s{0,3}<file\s+path\s*=\s*(["'])(?P<path>[^"'<>]*)\1\s*>\s*$""")
_ALMOST_OPEN = re.compile(r"^\s*<file\b", re.IGNORECASE)
_CLOSE = re.compile(r"^\s{0,3}</file\s*>\s*$")
_DELETE = re.compile(r"""^\s{0,3}<delete\s+path\s*=\s*(["'])(?P<path>[^"'<>]*)\1\s*/?>\s*$""")
_DISPUTE = re.compile(r"^\s{0,3}<dispute\s*>(?P<text>.*)")
_DISPUTE_END = re.compile(r"</dispute\s*+>")
_FENCE = re.compile(r"^\s{0,3}(?P<ticks>`{3,}+|~{3,}+)(?P<info>[^`]*+)$")
_PATH_ON_LINE = re.compile(
    r"""^\s*(?:(?:[#>*-]+|\d+[.)])\s+)*[`*"']*(?:file(?:name)?\s*:[\s`*"']*)?"""
    r"""(?P<path>[\w.][\w./@+-]*)[`*"':]*\s*$""",
    re.IGNORECASE,
)
_PATH_IN_COMMENT = re.compile(
    r"^\s*(?:#|//|--|/\*|<!--|;)\s*(?:file(?:name)?\s*:\s*)?(?P<path>[\w.][\w./@+-]*)\s*(?:\*/|-->)?\s*$",
    re.IGNORECASE,
)
_PATH_IN_INFO = re.compile(r"(?:^|[\s:=\"'])(?P<path>[\w.][\w./@+-]*)[\"']?\s*$")
_EXTENSIONLESS = {"Makefile", "Dockerfile", "LICENSE", "Procfile", "py.typed", ".gitignore", ".dockerignore"}


@dataclass(frozen=True, kw_only=True)
class ParsedAnswer:
    """What an answer holds."""

    files: list[CodeArtifact] = field(default_factory=list)
    """Whole files, in order, each path once."""
    deleted: list[str] = field(default_factory=list)
    """Paths the answer wants removed."""
    problems: list[str] = field(default_factory=list)
    """What could not be used, one sentence each."""
    complete: bool = True
    """False when the last file was cut."""
    open_path: str | None = None
    """The path of the file that was cut, if it stands in a whole tag and is safe."""
    disputes: list[str] = field(default_factory=list)
    """What the answer says against tests, note by note, each shortened to `MAX_DISPUTE_CHARS`."""


def parse_answer(text: str) -> ParsedAnswer:
    """Read the files in a model's answer.

    The form asked for is `<file path="…">`, content, `</file>`; a closing tag that was forgotten is tolerated
    where another file follows, and a file that is still open at the end is dropped. An answer without any tag
    is read as fenced blocks whose path stands above them, behind the fence, or in a comment on their first
    line. A block without a path is a problem, not a guess. Outside of files, `<dispute>` … `</dispute>` is a note
    against tests. Time is linear in the length of the text.
    """
    lines = _normalised(text).split("\n")
    tagged = any(_OPEN.match(line) or _DELETE.match(line) for line in lines)
    collector = _Collector()
    for block in _tagged_blocks(lines, collector) if tagged else _fenced_blocks(lines, collector):
        collector.add(*block)
    return collector.answer()


def _normalised(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


class _Collector:
    """Gathers files under the rules for paths, sizes and duplicates."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[str, str]] = {}
        self._chars = 0
        self.deleted: list[str] = []
        self.disputes: list[str] = []
        self.problems: list[str] = []
        self.complete = True
        self.open_path: str | None = None

    def add(self, path: str, content: str) -> None:
        path = _tidied(path)
        if reason := untidy_reason(path) or self._content_reason(content):
            self.problems.append(f"{_shown(path)} was not taken: {reason}")
            return
        if earlier := self._files.pop(path.casefold(), None):
            self._chars -= len(earlier[1])
            self.problems.append(f"{path!r} was given more than once; the last one counts")
        if len(self._files) >= MAX_FILES or self._chars + len(content) > MAX_TOTAL_CHARS:
            self.problems.append(f"{path!r} was not taken: the answer is larger than a project may be")
            return
        self._chars += len(content)
        self._files[path.casefold()] = path, content

    @staticmethod
    def _content_reason(content: str) -> str | None:
        if "\0" in content:
            return "it holds a NUL character"
        if not _is_unicode(content):
            return "it is not valid Unicode"
        return f"it is longer than {MAX_FILE_CHARS} characters" if len(content) > MAX_FILE_CHARS else None

    def delete(self, path: str) -> None:
        path = _tidied(path)
        if reason := untidy_reason(path):
            self.problems.append(f"{_shown(path)} was not removed: {reason}")
        else:
            self.deleted.append(path)

    def dispute(self, lines: list[str], start: int) -> int:
        """Take the note that opens on a line; return the position of the line that follows.

        One that is not closed ends where a file or a removal begins; else it is not taken, for it could be anything.
        """
        body: list[str] = []
        for position in range(start, len(lines)):
            line = lines[position]
            if _OPEN.match(line) or _DELETE.match(line):
                self._note(body)
                return position
            if opening := _DISPUTE.match(line):
                if position > start:
                    break
                line = opening["text"]
            if end := _DISPUTE_END.search(line):
                self._note([*body, line[: end.start()]])
                return position + 1
            body.append(line)
        self.problems.append("a dispute was not taken: it is not closed")
        return start + 1

    def _note(self, body: list[str]) -> None:
        text = (
            "\n".join(body).strip()[:MAX_DISPUTE_CHARS].encode(errors="replace").decode().replace("\0", "?")
        )
        if text and len(self.disputes) == MAX_DISPUTES:
            self.problems.append(f"a dispute was not taken: there are more than {MAX_DISPUTES}")
        elif text:
            self.disputes.append(text)

    def cut(self, path: str) -> None:
        """Note the file that the end of the answer cuts off."""
        self.complete = False
        self.problems.append(f"{_shown(path)} was not taken: the answer ends in the middle of it")
        tidied = _tidied(path)
        self.open_path = None if untidy_reason(tidied) else tidied

    def answer(self) -> ParsedAnswer:
        folders = {str(parent).casefold() for path, _ in self._files.values() for parent in _parents(path)}
        clashes = [name for name in self._files if name in folders]
        for name in clashes:
            self.problems.append(f"{self._files.pop(name)[0]!r} was not taken: it is a folder, too")
        if (more := len(self.problems) - MAX_PROBLEMS) > 0:
            self.problems[MAX_PROBLEMS:] = [f"… and {more} more problems"]
        return ParsedAnswer(
            files=[artifact(*file) for file in self._files.values()],
            deleted=list(dict.fromkeys(self.deleted)),
            problems=self.problems,
            complete=self.complete,
            open_path=self.open_path,
            disputes=self.disputes,
        )


def _tagged_blocks(lines: list[str], collector: _Collector) -> Iterator[tuple[str, str]]:
    path: str | None = None
    body: list[str] = []
    position = 0
    while position < len(lines):
        line = lines[position]
        position += 1
        if opening := _OPEN.match(line):
            if path is not None:
                yield path, _content(path, body)
            path, body = opening["path"], []
        elif path is not None and _CLOSE.match(line):
            yield path, _content(path, body)
            path = None
        elif path is not None:
            body.append(line)
        elif deletion := _DELETE.match(line):
            collector.delete(deletion["path"])
        elif _DISPUTE.match(line):
            position = collector.dispute(lines, position - 1)
        elif _ALMOST_OPEN.match(line):
            collector.problems.append(
                f'line {position} was not understood: a file starts with <file path="…"> alone on its line'
            )
    if path is not None:
        collector.cut(path)


def _fenced_blocks(lines: list[str], collector: _Collector) -> Iterator[tuple[str, str]]:
    above = ""
    number = 0
    position = 0
    while position < len(lines):
        opening = _FENCE.match(lines[position])
        if _DISPUTE.match(lines[position]):
            position = collector.dispute(lines, position)
            continue
        if not opening:
            above = lines[position] if lines[position].strip() else above
            position += 1
            continue
        end = _end_of_block(lines, position, opening["ticks"])
        body = lines[position + 1 : end]
        number += 1
        path = _path_of_block(above, opening["info"], body)
        if end == len(lines):
            collector.complete = False
            collector.problems.append(f"block {number} was not taken: the answer ends in the middle of it")
        elif path is None:
            collector.problems.append(f"block {number} was not taken: no path stands above it or in it")
        else:
            yield path, _joined(body)
        above = ""
        position = end + 1


def _end_of_block(lines: list[str], start: int, ticks: str) -> int:
    """Find the line that closes the block; blocks inside it, as README files have them, are counted."""
    depth = 1
    for position in range(start + 1, len(lines)):
        fence = _FENCE.match(lines[position])
        if not fence or fence["ticks"][0] != ticks[0] or len(fence["ticks"]) < len(ticks):
            continue
        depth += 1 if fence["info"].strip() else -1
        if depth == 0:
            return position
    return len(lines)


def _path_of_block(above: str, info: str, body: list[str]) -> str | None:
    first = next((line for line in body if line.strip()), "")
    for pattern, line in ((_PATH_ON_LINE, above), (_PATH_IN_INFO, info), (_PATH_IN_COMMENT, first)):
        found = pattern.search(line) if len(line) < 400 else None  # noqa: PLR2004 no path line is longer
        if found and _looks_like_path(found["path"]):
            return found["path"]
    return None


def _looks_like_path(text: str) -> bool:
    name = PurePosixPath(text).name
    ending = PurePosixPath(name).suffix[1:]
    return name in _EXTENSIONLESS or (ending.isalnum() and ending[0].isalpha())


def _content(path: str, body: list[str]) -> str:
    """Give a file's text: without the blank lines before it, and without one fence around all of it."""
    body = body[next((i for i, line in enumerate(body) if line.strip()), len(body)) :]
    last = next((i for i in range(len(body) - 1, 0, -1) if body[i].strip()), 0)
    if last and (opening := _FENCE.match(body[0])) and body[last].strip() == opening["ticks"]:
        info = opening["info"].strip().lower()
        if language(path) != "markdown" or info in {"md", "markdown"}:
            body = body[1:last]
    return _joined(body)


def _joined(body: Iterable[str]) -> str:
    text = "\n".join(body).rstrip("\n")
    return text + "\n" if text else ""


def _tidied(path: str) -> str:
    path = path.strip().removeprefix("./")
    # Normalising is quadratic in the length of a run of accents; what is left of a long path is still too long.
    most = 4 * MAX_PATH_CHARS
    return path[: most + 1] if len(path) > most else unicodedata.normalize("NFC", path)


def _shown(path: str) -> str:
    return repr(path if len(path) <= MAX_PATH_CHARS else path[:MAX_PATH_CHARS] + "…")


def _parents(path: str) -> Iterable[PurePosixPath]:
    return list(PurePosixPath(path).parents)[:-1]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
