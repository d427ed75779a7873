"""Refuses what callers give by mistake, before anything is asked of a server."""

from __future__ import annotations

from math import isnan

from ptc_contracts import ConfigurationError, RunNotFoundError


def require_timeout(seconds: float | None) -> None:
    """Refuse a time to wait that would never be over.

    Raises:
        ConfigurationError: it is neither a number of seconds nor None.
    """
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if seconds is not None and (not number or isnan(seconds)):
        raise ConfigurationError(f"timeout={seconds!r} is not a number of seconds")


def require_run_id(run_id: str) -> None:
    """Refuse what is no text, such as the id of a run that there is none of.

    Raises:
        RunNotFoundError: it is none.
    """
    if not isinstance(run_id, str):
        raise RunNotFoundError(f"{run_id!r} is not the id of a run")
