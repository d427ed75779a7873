"""What a terminal may be shown: text of others without what would make it do or hide something, and marks that it has."""

from __future__ import annotations

import re

_LINE_ENDS = re.compile("\r\n?|[\v\f\x85\u2028\u2029]")

# No part of a pattern may begin where another can go on: text of any length takes time in proportion.
_ESCAPES = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, and what moves the cursor
    "|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\\\|\x9c)"  # titles, links, the clipboard
    "|\x1b[ -/]*[0-~]"
)

_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad"
    "\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
"""Control characters, what turns the direction of text, and what takes no room; joiners of letters and emoji stay."""

_SURROGATES = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """Return text without control characters, escape sequences and invisible characters.

    Of these, line feeds and tabs stay; other ends of lines, a lone carriage return too, become line feeds.
    Halves of surrogate pairs, which no terminal can be sent, become U+FFFD.
    """
    plain = _ESCAPES.sub("", _LINE_ENDS.sub("\n", text))
    return _SURROGATES.sub("\ufffd", _UNSEEN.sub("", plain))


def marks(encoding: str) -> tuple[str, str]:
    """Give the marks for what is good and what is not, as far as an encoding has them."""
    return ("✓", "✗") if knows_unicode(encoding) else ("+", "x")


def knows_unicode(encoding: str) -> bool:
    """Tell whether an encoding has more than a few signs."""
    return encoding.lower().startswith("utf")


def one_line(text: str) -> str:
    """Return printable text on one line: ends of lines and tabs become spaces."""
    return printable(text).replace("\n", " ").replace("\t", " ")
