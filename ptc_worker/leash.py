"""Becomes a command that the kernel kills once the thread that started it is gone; a program of its own, stdlib only.

Started as `python -I -S leash.py <process id of the parent> <command> …`. See prctl(2), PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent and become the command."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == int(parent):  # otherwise it died before the leash held
        os.execv(command[0], command)  # noqa: S606 to run it is the purpose


if __name__ == "__main__":
    main()
