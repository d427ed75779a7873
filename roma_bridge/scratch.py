"""Folders for the time of one command; each command removes those of others that were killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "ptc-local-"
_ALIVE = "alive"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder that others may pass through, for sandboxes under users of their own lie in it."""
    _sweep()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        folder = Path(name)
        folder.chmod(0o711)
        with (folder / "new").open("w") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX)
            (folder / "new").rename(folder / _ALIVE)  # whoever sweeps finds it locked, or not at all
            yield folder


def _sweep() -> None:
    """Remove what nobody holds any more: the kernel lets go of the lock of whoever was killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            facts = folder.lstat()
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
                continue
            with (folder / _ALIVE).open() as alive:
                fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # it is held, or gone by now
            continue
