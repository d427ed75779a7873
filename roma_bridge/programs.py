"""Where the worker's own commands begin: its package cannot be loaded without its extras, and this one can."""

from __future__ import annotations

import sys
from importlib import import_module


def replay() -> int:
    """Be `ptc-replay`."""
    return _main("ptc_worker.llm.replay.server", "ptc-replay", "worker,local")


def daytona_snapshot() -> int:
    """Be `ptc-daytona-snapshot`."""
    return _main("ptc_worker.sandbox.snapshots", "ptc-daytona-snapshot", "worker,daytona")


def _main(module: str, program: str, extras: str) -> int:
    """Run a command; its exit code is 2 where a package of the worker's is not installed."""
    try:
        main = import_module(module).main
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{program}: there is no package {error.name}: pip install 'ptc-worker[{extras}]'\n")
        return 2
    return int(main() or 0)
