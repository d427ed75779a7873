"""Writes a result's files below one directory, and never anywhere else."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from ptc_contracts import PTCError

if TYPE_CHECKING:
    from pathlib import Path

    from ptc_contracts import PTCArtifactResult


class UnwritableError(PTCError):
    """A file cannot be written; the message names it and says why."""


def write_files(result: PTCArtifactResult, directory: Path, *, overwrite: bool = False) -> list[Path]:
    """Write every file of a result below a directory; return their paths.

    A file that exists with other content is kept unless `overwrite` is set. Nothing is followed out of the
    directory, and a write that fails leaves no half file.

    Raises:
        UnwritableError: a file cannot be written, or may not be.
    """
    root = directory.resolve()
    written = []
    contents = {
        artifact.file_path: artifact.content for artifact in result.artifacts
    }  # of two, the last counts
    for path, content in contents.items():
        target = root / path
        try:
            existing = next(folder for folder in target.parents if folder.exists())
            if existing.is_relative_to(root) and not existing.resolve().is_relative_to(root):
                raise UnwritableError(f"{target} was not written: its folder leads out of {root}")
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(target, content.encode(), overwrite=overwrite)
        except OSError as error:
            raise UnwritableError(f"{target} was not written: {error.strerror or error}") from error
        written.append(target)
    return written


def _write(target: Path, content: bytes, *, overwrite: bool) -> None:
    if target.is_symlink() or target.exists():
        same = not target.is_symlink() and target.is_file() and target.read_bytes() == content
        if same:
            return
        if not overwrite:
            raise UnwritableError(f"{target} exists already: use --force to replace it, or another --output")
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".ptc-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)  # noqa: PTH101 a source file is for everybody to read
        os.replace(name, target)  # noqa: PTH105 atomic, and replaces a link instead of following it
    except BaseException:
        os.unlink(name)  # noqa: PTH108
        raise
