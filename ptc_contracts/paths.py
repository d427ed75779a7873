"""Which file paths may cross the border: relative, plain, the same on every system."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

MAX_PATH_CHARS = 240
"""Longest accepted path: leaves room for a prefix below the 260 characters that Windows allows."""

MAX_PATH_DEPTH = 12
"""Most segments in an accepted path."""

MAX_SEGMENT_BYTES = 255
"""Longest name of a file or folder that the usual file systems store."""

_WINDOWS_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$"}
    | {f"{port}{n}" for port in ("com", "lpt") for n in "123456789¹²³"}
)
_INVISIBLE = {"Cf", "Zl", "Zp"}


def unsafe_reason(path: str) -> str | None:
    """Say why a relative path must not be used, or None when it is harmless.

    This is the contract's rule for `CodeArtifact.file_path`, which results of every peer must pass: no
    empty path, `..` segment, NUL or control character, drive letter, backslash, nor text that is not UTF-8.
    """
    if not path.strip() or not set(path.split("/")) - {"", "."}:
        return "it is empty"
    if any(unicodedata.category(c) in {"Cc", "Cs"} for c in path):
        return "it holds a control character"
    if "\\" in path:
        return "it holds a backslash"
    if path[1:2] == ":" and path[0].isalpha():
        return "it starts with a drive letter"
    if ".." in path.split("/"):
        return "it holds a '..' segment"
    return None


def untidy_reason(path: str) -> str | None:
    """Say why a *generated* file may not have this path, or None: stricter than `unsafe_reason`.

    Also refused are absolute paths, `~`, empty and `.` segments, invisible characters (zero-width, bidi),
    names Windows reserves or strips, git's own folder (its configuration runs programs), and paths that are
    too long or too deep.
    """
    if reason := unsafe_reason(path):
        return reason
    segments = path.split("/")
    devices = (segment.split(".")[0].strip().casefold() for segment in segments)
    rules = (
        (path.startswith("/"), "it is absolute"),
        (path.startswith("~"), "it starts with '~'"),
        (any(s in {"", "."} for s in segments), "it holds an empty or '.' segment"),
        (any(unicodedata.category(c) in _INVISIBLE for c in path), "it holds an invisible character"),
        (any(c in '<>:"|?*' for c in path), "it holds a character that Windows does not allow"),
        (any(s != s.strip() or s.endswith(".") for s in segments), "a segment ends in a dot or a space"),
        (any(device in _WINDOWS_DEVICES for device in devices), "a segment is a device name on Windows"),
        (any(s.casefold() in {".git", "git~1"} for s in segments), "it lies in git's own folder"),
        (any(len(s.encode()) > MAX_SEGMENT_BYTES for s in segments), "a segment is too long"),
        (len(path) > MAX_PATH_CHARS, f"it is longer than {MAX_PATH_CHARS} characters"),
        (len(segments) > MAX_PATH_DEPTH, f"it is deeper than {MAX_PATH_DEPTH} levels"),
    )
    return next((reason for broken, reason in rules if broken), None)


def clashes_among(paths: Collection[str]) -> list[str]:
    """Name the paths that cannot stand beside the others: one name in two spellings, a file that is a folder too."""
    folders = {str(parent).casefold() for path in paths for parent in PurePosixPath(path).parents}
    seen: set[str] = set()
    clashes = []
    for path in paths:
        name = path.casefold()
        if name in seen or name in folders:
            clashes.append(path)
        seen.add(name)
    return clashes
