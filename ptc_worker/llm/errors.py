"""The ways a model call fails, grouped by what to do next, and how each vendor's fault becomes one of ours.

ModelError
├── TransientError     ask the same provider again, after `retry_after` if it says so
├── UnavailableError   this provider will not answer: ask the fallback
│   └── NotAskedError  nor was it asked, for a reason of our own
└── UnsendableError    no provider will take this request: stop

Vendor exceptions never travel further: one of them pickles its request, API key included, and another does
not unpickle at all.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

T = TypeVar("T")

OFF_PROTOCOL = (ValueError, AttributeError, TypeError)
"""What reading a malformed answer raises: the SDKs do not validate, so a wrong shape shows when it is used."""

_MAX_MESSAGE = 300

_QUOTA_CODES = {
    "insufficient_quota",
    "exceeded_current_quota_error",
    "billing_error",
    "enforced_spend_limit_reached",
}
_OVERLOAD_CODES = {
    "overloaded_error",
    "engine_overloaded_error",
    "api_error",
    "server_error",
    "timeout_error",
}
_QUOTA_TEXT = re.compile(r"usage limits?|credit balance|quota", re.IGNORECASE)
_HTTP_CODE = re.compile(r"[45]\d\d")
_TOO_LONG_TEXT = re.compile(
    r"prompt is too long|context length|maximum context|too many tokens", re.IGNORECASE
)


class ModelError(Exception):
    """A model call that brought no usable answer."""

    def __init__(self, kind: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(kind, message[:_MAX_MESSAGE])
        self.kind = kind
        """A stable name: `rate_limited`, `overloaded`, `auth`, `quota`, `refused`, `empty` …"""
        self.retry_after = retry_after
        """Seconds the provider asks us to wait; None when it does not say."""

    def __str__(self) -> str:
        return ": ".join(self.args)


class TransientError(ModelError):
    """The same request may well succeed in a moment."""


class UnavailableError(ModelError):
    """This provider will not answer this request; another one may."""


class NotAskedError(UnavailableError):
    """Nothing was sent: `limited`, `resting` after failures, or above the `budget`; `retry_after` tells if waiting helps."""


class UnsendableError(ModelError):
    """The request itself is at fault."""


async def in_our_terms(answer: Awaitable[T], *vendors: type[Exception]) -> T:
    """Await a vendor's answer; what its SDK and its transport raise becomes one of our errors.

    Raises:
        ModelError: holding no trace of the vendor's exception, not even as its context.
    """
    foreign: tuple[type[Exception], ...] = (*vendors, *OFF_PROTOCOL)
    try:
        return await answer
    except ModelError:
        raise
    except foreign as error:
        failure = from_vendor(error)
    raise failure from None  # out here, where the vendor's exception is no longer its context


def from_vendor(error: Exception) -> ModelError:
    """Turn what an SDK or its transport raised into one of our errors, without keeping hold of it."""
    body = getattr(error, "body", None)
    status = getattr(error, "status_code", None)
    if status is not None or body is not None:
        headers = getattr(getattr(error, "response", None), "headers", {})
        return from_answer(status, body, str(error), retry_after(headers))
    if isinstance(error, UnicodeEncodeError):
        # Its repr holds the text that could not be encoded: the header with the key, or the prompt.
        if error.encoding == "ascii":
            return UnavailableError("auth", "the key holds characters that cannot be sent")
        return UnsendableError("bad_request", "the prompt holds characters that cannot be sent")
    if isinstance(error, OFF_PROTOCOL):
        return TransientError("garbled", f"the answer does not follow the protocol ({type(error).__name__})")
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return TransientError("timeout", "the provider stopped answering")
    return TransientError("connection", f"the connection failed ({type(error).__name__})")


def from_answer(status: int | None, body: object, text: str, wait: float | None = None) -> ModelError:
    """Classify an error that the provider sent: by its own code first, then by the HTTP status."""
    codes, message = _codes(body), _message(body) or text
    status = next((int(code) for code in codes if _HTTP_CODE.fullmatch(code)), status)
    return _by_code(codes, status, message, wait) or _by_status(status, message, wait)


def _by_code(codes: set[str], status: int | None, message: str, wait: float | None) -> ModelError | None:
    if codes & _QUOTA_CODES or status == 402 or (status in {400, 429} and _QUOTA_TEXT.search(message)):  # noqa: PLR2004 HTTP
        return UnavailableError("quota", message)
    if "context_length_exceeded" in codes or status == 413:  # noqa: PLR2004 HTTP
        return UnsendableError("too_long", message)
    if "rate_limit_error" in codes or status == 429:  # noqa: PLR2004 HTTP
        return TransientError("rate_limited", message, retry_after=wait)
    if _TOO_LONG_TEXT.search(message):  # after the limits of rate: "too many tokens, please wait"
        return UnsendableError("too_long", message)
    if codes & _OVERLOAD_CODES:
        return TransientError("overloaded", message, retry_after=wait)
    return None


def _by_status(status: int | None, message: str, wait: float | None) -> ModelError:
    match status:
        case 401 | 403:
            # Not their message: it may quote the key.
            return UnavailableError("auth", f"HTTP {status}: the key is not accepted")
        case 404:
            return UnavailableError("unknown_model", message)
        case 408 | 409:
            return TransientError("timeout", message, retry_after=wait)
        case int() if status >= 500:  # noqa: PLR2004 HTTP
            return TransientError("overloaded", message, retry_after=wait)
        case int() if status >= 400:  # noqa: PLR2004 HTTP
            return UnsendableError("bad_request", message)
    return TransientError("garbled", message)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Read how long the provider asks us to wait, in seconds: milliseconds, seconds or a date."""
    if (milliseconds := headers.get("retry-after-ms", "")).replace(".", "", 1).isdecimal():
        return float(milliseconds) / 1000
    text = headers.get("retry-after", "")
    if text.replace(".", "", 1).isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:  # the old form of an HTTP date names no zone and means UTC
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _error(body: object) -> dict[str, Any]:
    if isinstance(body, dict):
        inner = body.get("error")
        return inner if isinstance(inner, dict) else body
    return {}


def _codes(body: object) -> set[str]:
    error = _error(body)
    details = error.get("details")
    named = [
        error.get("type"),
        error.get("code"),
        details.get("error_code") if isinstance(details, dict) else None,
    ]
    return {str(code) for code in named if code is not None}


def _message(body: object) -> str:
    return str(_error(body).get("message") or "")
