"""What goes wrong at the loopback Daytona, in the words in which it is ordered; and how Daytona says no."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from aiohttp import web

OPERATIONS = (
    *("create", "list", "get", "delete", "stop", "labels", "toolbox"),
    *("snapshot.create", "snapshot.list", "snapshot.get", "snapshot.logs", "snapshot.delete"),
    *("workdir", "upload", "download", "exec"),
    *("session.create", "session.delete", "session.exec", "session.poll", "session.logs"),
)
"""What can be asked of the server."""

_API, _DAEMON, _PROXY = "DAYTONA_API", "DAYTONA_DAEMON", "DAYTONA_PROXY"

ANSWERS: dict[str, tuple[int, str, str, str]] = {
    "bad-request": (400, "Bad request", "", _API),
    "quota": (400, "Total CPU limit exceeded. Maximum allowed: 10.", "", _API),
    "no-network-settings": (
        400,
        "Network access settings cannot be overridden at the sandbox level for this organization's tier",
        "",
        _API,
    ),
    "unauthorized": (401, "Invalid credentials", "", _API),
    "forbidden": (403, "Access denied", "", _API),
    "not-found": (404, "Not found", "", _API),
    "timeout": (408, "command execution timeout", "PROCESS_EXECUTION_TIMEOUT", _DAEMON),
    "conflict": (409, "Sandbox state change in progress", "", _API),
    "rate-limit": (429, "Rate limit exceeded", "", _API),
    "server-error": (500, "Internal server error", "", _API),
    "bad-gateway": (502, "Bad gateway", "", _PROXY),
    "unavailable": (503, "Service unavailable", "", _PROXY),
    "gateway-timeout": (504, "Gateway timeout", "", _PROXY),
}
"""Faults that are an answer: status, message, code, source."""

SPOILED = {
    "reset": "the connection is reset",
    "slow": "the answer comes after `seconds`",
    "hang": "no answer comes",
}
"""Faults of the line."""

TWISTED = {
    "error-state": "create, snapshot.create: what is made ends up in an error",
    "lie": "delete: answered as done, and the sandbox lives on",
    "stale": "list: those that were deleted are listed as started",
    "unseen": "list: those younger than `seconds` are not listed",
    "mute": "session.exec: the command runs, its exit code never arrives",
    "cut": "download: the connection ends in the middle",
    "unclosed": "download: the answer ends before its closing boundary",
    "vanish": "the sandbox that is asked for is gone",
}
"""Faults within what is done."""

CONDITIONAL = {
    "no-network-block": "no-network-settings",
    "refused-while-creating": "conflict",
}
"""Faults that wait for a `create` with `networkBlockAll`, for a `delete` of what is being made: their answers."""


@dataclass(kw_only=True)
class Fault:
    """One order: where, how, and how often."""

    where: str
    """An operation, or a pattern such as `session.*` or `*`."""
    how: str
    """A key of one of the tables above."""
    times: int | None = 1
    """How often; None for always."""
    after: int = 0
    """How many requests pass before the first."""
    done: bool = False
    """Whether what was asked for is done all the same, and only its answer suffers."""
    seconds: float = 1.0
    """What `slow`, `unseen` and the `Retry-After` of a rate limit need."""
    chance: float = 1.0
    """The share of requests that it strikes."""

    def __post_init__(self) -> None:
        if self.how not in {*ANSWERS, *SPOILED, *TWISTED, *CONDITIONAL}:
            raise ValueError(f"no such fault: {self.how}")
        if not any(self.strikes_at(operation) for operation in OPERATIONS):
            raise ValueError(f"no such operation: {self.where}")

    def strikes_at(self, operation: str) -> bool:
        """Tell whether it is meant for this operation."""
        return fnmatchcase(operation, self.where)


@dataclass
class Faults:
    """The orders that are left; the first that fits strikes."""

    orders: list[Fault] = field(default_factory=list)
    seed: int = 0

    def __post_init__(self) -> None:
        self.orders = [
            replace(fault) for fault in self.orders
        ]  # they are counted down, and may be ordered again
        self._random = random.Random(self.seed)  # noqa: S311 a seed gives the same storm again

    def order(self, *faults: Fault) -> None:
        """Take more."""
        self.orders.extend(replace(fault) for fault in faults)

    def strike(self, operation: str, fits: frozenset[str]) -> Fault | None:
        """Take the fault that strikes a request, if one does; of the conditional ones only those that fit it."""
        for fault in self.orders:
            waits = fault.how in CONDITIONAL and fault.how not in fits
            if not waits and fault.strikes_at(operation) and self._is_due(fault):
                return fault
        return None

    def _is_due(self, fault: Fault) -> bool:
        if fault.times == 0 or self._random.random() >= fault.chance:
            return False
        if fault.after:
            fault.after -= 1
            return False
        if fault.times is not None:
            fault.times -= 1
        return True


class Refusal(Exception):  # noqa: N818 an answer, and no error of this program
    """A request is refused, in the words of the API."""

    def __init__(self, status: int, message: str, *, code: str = "", source: str = _API) -> None:
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {"statusCode": status, "message": message, "source": source}
        if code:
            self.body["code"] = code

    @classmethod
    def of(cls, how: str) -> Refusal:
        """Make the one that a fault names."""
        status, message, code, source = ANSWERS[how]
        return cls(status, message, code=code, source=source)

    def response(self, request: web.Request, headers: dict[str, str] | None = None) -> web.Response:
        """Put it into an answer, with the key of who asked in it: nobody may hand on what comes from outside."""
        told = f"{self.body['message']} (asked with {request.headers.get('Authorization')})"
        return web.json_response({**self.body, "message": told}, status=self.status, headers=headers)


FAULT: web.RequestKey[Fault | None] = web.RequestKey("fault")
"""What goes wrong with a request."""


def rate_limit_headers(operation: str, seconds: float) -> dict[str, str]:
    """Say when to come back, in headers that end with the name of the limit, as Daytona does."""
    kind = {"create": "sandbox-create", "delete": "sandbox-lifecycle", "stop": "sandbox-lifecycle"}
    limit, wait = kind.get(operation, "authenticated"), str(math.ceil(seconds))
    return {
        f"Retry-After-{limit}": wait,
        f"X-RateLimit-Limit-{limit}": "300",
        f"X-RateLimit-Remaining-{limit}": "0",
        f"X-RateLimit-Reset-{limit}": wait,
    }


def is_struck(request: web.Request, how: str) -> bool:
    """Tell whether this is what goes wrong with a request."""
    fault = request[FAULT]
    return fault is not None and fault.how == how
