"""What Daytona's errors mean for a run: that it waits, that the same is asked again, or that the sandbox is of no use."""

from __future__ import annotations

import random
import re
import time
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ptc_worker.busy import BusyError
from ptc_worker.sandbox.protocol import IsolationRefusedError, SandboxError, UnsureError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daytona import DaytonaError

_QUOTA_SECONDS = 15.0
"""After which an account that is full is asked again, give or take a third."""

_QUOTA = re.compile(r"\btotal\b.*\blimit exceeded|quota", re.IGNORECASE)
_NETWORK = re.compile(r"network", re.IGNORECASE)
_REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.FORBIDDEN})
_UNWILLING = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN})


class MissingError(SandboxError):
    """What was asked for is not there."""


class NotNowError(UnsureError):
    """The sandbox is between two states."""


_MEANINGS: dict[int | None, type[SandboxError]] = {
    None: UnsureError,  # a connection that broke, an answer that came cut
    HTTPStatus.NOT_FOUND: MissingError,
    HTTPStatus.GONE: MissingError,
    HTTPStatus.CONFLICT: NotNowError,
    **dict.fromkeys(_REFUSED, IsolationRefusedError),
    HTTPStatus.REQUEST_TIMEOUT: UnsureError,
    HTTPStatus.INTERNAL_SERVER_ERROR: UnsureError,
    HTTPStatus.BAD_GATEWAY: UnsureError,
    HTTPStatus.SERVICE_UNAVAILABLE: UnsureError,
    HTTPStatus.GATEWAY_TIMEOUT: UnsureError,
}
"""What an answer's status means; another one, that the sandbox is of no use."""


def told(error: DaytonaError, key: str) -> str:
    """Say what an error says, without the account's key."""
    return f"Daytona: {str(error).replace(key, '[DAYTONA_API_KEY]')}"


def meaning(error: DaytonaError, key: str) -> Exception:
    """Tell what an error means."""
    said, status = told(error, key), _status(error)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return UnsureError(said, after=_patience(error.headers))
    if status in _UNWILLING and _QUOTA.search(said):
        return no_room(said)
    if status in _REFUSED:
        said += "; see that DAYTONA_API_KEY is a key that may make sandboxes"
    return _MEANINGS.get(status, SandboxError)(said)


def is_of_the_network(error: DaytonaError) -> bool:
    """Tell whether it is about how a sandbox was to be kept from networks."""
    return _status(error) in _UNWILLING and _NETWORK.search(str(error)) is not None


def no_room(why: str) -> BusyError:
    """Say that it is full, or silent, and after how long to try again."""
    return BusyError(_a_while(), why)


def _status(error: DaytonaError) -> int | None:
    """Tell the status that an answer had; file transfers of the SDK have it in what caused their error only."""
    status = error.status_code or getattr(error.__cause__, "status", None)
    return status if isinstance(status, int) else None


def _patience(headers: Mapping[str, Any]) -> float:
    """Read after how many seconds they want to be asked again: each of their limits has a header of its own."""
    values = [value for name, value in headers.items() if name.lower().startswith("retry-after")]
    waits = [wait for value in values if (wait := _seconds(str(value))) is not None]
    return max([1.0, *waits]) if waits else _a_while()


def _seconds(text: str) -> float | None:
    """Read seconds, or the date until which they last."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(text).timestamp() - time.time()
    except ValueError:
        return None


def _a_while() -> float:
    """Spread what would otherwise come back all at once."""
    return _QUOTA_SECONDS * random.uniform(2 / 3, 4 / 3)  # noqa: S311 no secret
