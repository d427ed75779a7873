"""What one process of a sandbox may have, whatever all of them may have together."""

from __future__ import annotations

import os

FILE_BYTES = 64 * 2**20
"""What one file may grow to."""

ADDRESS_SPACE = 4
"""Address space of one process, as a multiple of the sandbox's memory: much of it is never used."""

PROCESSES = 128
"""Processes and threads of one sandbox."""

DESCRIPTORS = 512


def limits(memory: int, disk: int, seconds: float, *, processes: bool) -> dict[str, int]:
    """Name the limits of a command; `processes` says whether the kernel counts the sandbox's processes alone."""
    return {
        "RLIMIT_AS": ADDRESS_SPACE * memory,
        "RLIMIT_FSIZE": min(FILE_BYTES, disk),
        "RLIMIT_NOFILE": DESCRIPTORS,
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": (round(seconds) + 1) * (os.cpu_count() or 1),  # threads add up
        **({"RLIMIT_NPROC": PROCESSES} if processes else {}),
    }
