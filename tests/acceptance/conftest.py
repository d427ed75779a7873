"""Programs as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from support import Enqueue

ROOT = Path(__file__).parents[2]


@pytest.fixture
def user(tmp_path: Path) -> Mapping[str, str]:
    """The environment of a user who has set nothing."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "SSL_CERT_FILE") if name in os.environ}
    return {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(ROOT / ".pytest_cache" / "xdg")}


@pytest.fixture
def enqueue(tmp_path: Path, user: Mapping[str, str]) -> Enqueue:
    """`ptc-enqueue`, started as that user."""

    def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).with_name("ptc-enqueue")), *arguments],
            cwd=tmp_path,
            env={**user, **environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    return run
