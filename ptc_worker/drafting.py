"""From the answers of one iteration to one draft: what is asked next, and what they hold together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ptc_contracts.bill import Request
from ptc_worker.parsing import ParsedAnswer

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_CONTINUATIONS = 2
"""Requests for what a cut answer lacks: a project that needs more does not fit a model's answers."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One answer, read."""

    request: Request
    """What was asked."""
    text: str
    parsed: ParsedAnswer
    truncated: bool
    """Whether the provider says that it was cut."""
    follow_up: Request | None = None
    """What has to be asked next; None if this iteration has all it can get."""


def read(
    earlier: Sequence[Reading], request: Request, text: str, parsed: ParsedAnswer, *, truncated: bool
) -> Reading:
    """Read an answer in the light of the earlier ones of its iteration."""
    cut = truncated or not parsed.complete
    asked = [reading.request for reading in earlier] + [request]
    found = any(r.files or r.deleted for r in [*(reading.parsed for reading in earlier), parsed])
    follow_up = None
    if cut and asked.count(Request.CONTINUATION) < MAX_CONTINUATIONS:
        follow_up = Request.CONTINUATION
    elif not found and Request.FORMAT_REPAIR not in asked:
        follow_up = Request.FORMAT_REPAIR
    return Reading(request=request, text=text, parsed=parsed, truncated=truncated, follow_up=follow_up)


def next_request(readings: Sequence[Reading]) -> Request | None:
    """Tell what to ask: a draft first, then what the last answer calls for."""
    return readings[-1].follow_up if readings else Request.DRAFT


def joined(readings: Sequence[Reading]) -> ParsedAnswer:
    """Put the answers of an iteration together; a file that was given again counts as it was given last.

    A file that is a folder in another answer is left out, as it is within one.
    """
    files = {file.file_path.casefold(): file for reading in readings for file in reading.parsed.files}
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents}
    files = {path: file for path, file in files.items() if path not in folders}
    parsed = [reading.parsed for reading in readings]
    return ParsedAnswer(
        files=list(files.values()),
        deleted=list(dict.fromkeys(path for one in parsed for path in one.deleted)),
        disputes=list(dict.fromkeys(note for one in parsed for note in one.disputes)),
        problems=list(dict.fromkeys(problem for one in parsed for problem in one.problems)),
        complete=not readings or not (readings[-1].truncated or not parsed[-1].complete),
    )
