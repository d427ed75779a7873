"""A kind of sandbox that cannot be had here says which setting is to be seen to, and costs nobody else anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support import PATIENCE_SECONDS

from ptc_worker.busy import BusyError
from ptc_worker.sandbox import prepare_sandboxes
from ptc_worker.sandbox.protocol import NOBODYS, IsolationRefusedError, SandboxError
from ptc_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from pathlib import Path

NOBODY_THERE = "http://127.0.0.1:9"
KEY = "no-key-of-anybodys"


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"ptc_sandbox": "daytona"}, "DAYTONA_API_KEY"),
        ({"ptc_sandbox": "e2b"}, "E2B_API_KEY"),
        ({"ptc_sandbox": "docker", "docker_host": "unix:///nowhere/docker.sock"}, "DOCKER_HOST"),
    ],
    ids=["daytona", "e2b", "docker"],
)
def test_a_kind_without_a_key_or_an_engine_names_its_setting(
    tmp_path: Path, chosen: dict[str, Any], named: str
) -> None:
    """And the one that chooses another kind."""
    with pytest.raises(IsolationRefusedError) as refused:
        prepare_sandboxes(WorkerSettings(ptc_cache_dir=tmp_path, **chosen), NOBODYS)

    assert named in str(refused.value)
    assert "PTC_SANDBOX" in str(refused.value)


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"daytona_api_key": KEY, "daytona_api_url": NOBODY_THERE}, "DAYTONA_API_URL"),
        ({"ptc_sandbox": "e2b", "e2b_api_key": KEY, "e2b_api_url": NOBODY_THERE}, "E2B_API_URL"),
    ],
    ids=["daytona", "e2b"],
)
def test_a_wrong_address_is_named(tmp_path: Path, chosen: dict[str, Any], named: str) -> None:
    """With what went wrong there."""
    settings = WorkerSettings(ptc_cache_dir=tmp_path, ptc_sandbox_start_timeout=4, **chosen)
    with pytest.raises((SandboxError, BusyError)) as failed:
        prepare_sandboxes(settings, NOBODYS)

    told = str(failed.value)
    assert f"{NOBODY_THERE} ({named})" in told
    assert re.search("onnect|timed out", told)
    assert KEY not in told


def test_a_kind_whose_package_is_not_installed_says_how_to_install_it() -> None:
    """Its extra is named, and the setting that chooses another kind."""
    script = (
        "import sys; sys.modules |= dict.fromkeys(['daytona', 'docker', 'e2b'])\n"
        "from ptc_worker.sandbox import prepare_sandboxes\n"
        "from ptc_worker.sandbox.protocol import NOBODYS, IsolationRefusedError\n"
        "from ptc_worker.settings import WorkerSettings\n"
        "for kind in ('daytona', 'docker', 'e2b'):\n"
        "    try: prepare_sandboxes(WorkerSettings(ptc_sandbox=kind), NOBODYS)\n"
        "    except IsolationRefusedError as error: print(error)"
    )

    for kind, told in zip(("daytona", "docker", "e2b"), _said(script).splitlines(), strict=True):
        assert f"pip install 'ptc-worker[{kind}]'" in told
        assert "PTC_SANDBOX" in told


def test_a_worker_with_local_sandboxes_loads_no_vendors_sdk(tmp_path: Path) -> None:
    """They take seconds and memory, and need not be installed."""
    script = (
        "import sys, ptc_worker.app, ptc_worker.tasks, roma_bridge.cli\n"
        "from ptc_worker.sandbox import prepare_sandboxes\n"
        "from ptc_worker.sandbox.protocol import NOBODYS\n"
        "from ptc_worker.settings import WorkerSettings\n"
        "prepare_sandboxes(WorkerSettings(), NOBODYS)\n"
        "print([name for name in ('daytona', 'docker', 'e2b') if name in sys.modules])"
    )

    assert _said(script, PTC_SANDBOX="local", PTC_CACHE_DIR=str(tmp_path)).endswith("[]")


def _said(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    return done.stdout.strip()
