"""What commands hold is counted, also where the guard is not root and files are hidden from it."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ptc_worker.sandbox.inside.agent import Spec
from ptc_worker.sandbox.inside.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534


@contextmanager
def without_rights() -> Iterator[Path]:
    """Be a user for whom modes count, with a folder."""
    rooted = os.geteuid() == 0
    if rooted:
        os.seteuid(NOBODY)
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        if rooted:
            os.seteuid(0)
        for hidden in folder.iterdir():
            hidden.chmod(0o700)
        shutil.rmtree(folder)


@pytest.mark.parametrize(("mode", "complaint"), [(0o755, ""), (0o300, "disk"), (0o000, "disk")])
def test_a_folder_that_hides_what_it_holds_counts_as_a_full_disk(mode: int, complaint: str) -> None:
    """A command may make one without the call that changes modes, which is forbidden to it."""
    with without_rights() as folder:
        spec = Spec(0, str(folder), memory=2**34, disk=2**20, processes=10_000, namespaces=False)
        guard = Guard(spec)
        (folder / "made").mkdir(mode)

        assert guard.complaint() == complaint
