"""Tells which queues no worker serves, and how to start one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptc_contracts.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from roma_bridge.client import PTC


def missing_workers(ptc: PTC, stages: Iterable[Stage] = Stage) -> str:
    """Word which of some stages' queues nobody serves; empty if all are served, or if that cannot be learnt."""
    try:
        missing = {stage.value for stage in stages} - ptc.served()
    except Exception:  # noqa: BLE001 kombu raises anything while it loses a connection, and this is only a hint
        return ""
    if not missing:
        return ""
    queues, start = sorted(missing), "start one with: celery -A ptc_worker worker"
    if missing == {stage.value for stage in Stage}:
        return f"no worker answers; {start}"
    return f"no worker serves queue {' and '.join(queues)}; {start} -Q {','.join(queues)}"
