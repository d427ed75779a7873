"""How a provider's error becomes one of ours, and how long it asks us to wait."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptc_worker.llm.errors import (
    ModelError,
    TransientError,
    UnavailableError,
    UnsendableError,
    from_answer,
    from_vendor,
    retry_after,
)


@pytest.mark.parametrize(
    ("status", "error", "cls", "kind"),
    [
        (429, {"type": "rate_limit_error"}, TransientError, "rate_limited"),
        (429, {"code": "insufficient_quota"}, UnavailableError, "quota"),
        (429, {"type": "exceeded_current_quota_error"}, UnavailableError, "quota"),
        (429, {"message": "You exceeded your current quota"}, UnavailableError, "quota"),
        (429, {"message": "Too many tokens, please wait"}, TransientError, "rate_limited"),
        (
            400,
            {"message": "You have reached your specified API usage limits"},
            UnavailableError,
            "quota",
        ),
        (
            400,
            {"details": {"error_code": "enforced_spend_limit_reached"}},
            UnavailableError,
            "quota",
        ),
        (400, {"message": "Your credit balance is too low"}, UnavailableError, "quota"),
        (400, {"code": "context_length_exceeded"}, UnsendableError, "too_long"),
        (400, {"message": "prompt is too long: 9 tokens > 8 maximum"}, UnsendableError, "too_long"),
        (400, {"type": "invalid_request_error"}, UnsendableError, "bad_request"),
        (422, {}, UnsendableError, "bad_request"),
        (413, {"type": "request_too_large"}, UnsendableError, "too_long"),
        (402, {}, UnavailableError, "quota"),
        (401, {}, UnavailableError, "auth"),
        (403, {}, UnavailableError, "auth"),
        (404, {"type": "not_found_error"}, UnavailableError, "unknown_model"),
        (408, {}, TransientError, "timeout"),
        (409, {}, TransientError, "timeout"),
        (500, {}, TransientError, "overloaded"),
        (529, {"type": "overloaded_error"}, TransientError, "overloaded"),
        (200, {"type": "overloaded_error"}, TransientError, "overloaded"),
        (200, {"type": "rate_limit_error"}, TransientError, "rate_limited"),
        (None, {"code": 502}, TransientError, "overloaded"),
        (None, {"code": "429"}, TransientError, "rate_limited"),
        (None, {"code": 402}, UnavailableError, "quota"),
        (None, {"code": 401}, UnavailableError, "auth"),
        (None, {"code": 404}, UnavailableError, "unknown_model"),
        (None, {"code": 400}, UnsendableError, "bad_request"),
        (None, {"code": 1113}, TransientError, "garbled"),
        (None, {}, TransientError, "garbled"),
        (500, {"code": "context_length_exceeded"}, UnsendableError, "too_long"),
    ],
)
def test_a_providers_own_code_counts_before_the_status(
    status: int | None, error: dict[str, object], cls: type[ModelError], kind: str
) -> None:
    """The status alone cannot tell a limit that passes from an account without money."""
    result = from_answer(status, {"error": error}, "")

    assert (type(result), result.kind) == (cls, kind)


@pytest.mark.parametrize("body", [None, "<html>Bad gateway</html>", [], {}, {"error": "boom"}])
def test_a_body_of_any_shape_leaves_the_status_to_decide(body: object) -> None:
    """Proxies answer with pages, lists and nothing at all."""
    result = from_answer(502, body, "Bad gateway")

    assert (type(result), str(result)) == (TransientError, "overloaded: Bad gateway")


def test_an_sdk_that_unwraps_the_error_is_understood() -> None:
    """One SDK hands over what stands under `error`, the other everything."""
    assert from_answer(400, {"code": "context_length_exceeded"}, "").kind == "too_long"


def test_a_message_of_null_is_replaced_by_the_sdks_text() -> None:
    """Not by the word None."""
    result = from_answer(400, {"error": {"message": None}}, "Error code: 400")

    assert str(result) == "bad_request: Error code: 400"


@pytest.mark.parametrize("status", [401, 403])
def test_what_a_provider_says_of_a_refused_key_is_not_repeated(status: int) -> None:
    """It may quote the key."""
    result = from_answer(status, {"error": {"message": "wrong key: test-key"}}, "wrong key: test-key")

    assert "test-key" not in f"{result!r} {result}"


def test_a_long_message_is_cut() -> None:
    """A page of HTML does not fill the logs."""
    assert len(str(from_answer(502, "x", "<p>" * 1000))) < 400


@pytest.mark.parametrize(
    ("status", "wait"), [(429, 7.0), (529, 7.0), (500, 7.0), (408, 7.0), (401, None), (400, None)]
)
def test_only_an_error_worth_a_retry_says_how_long_to_wait(status: int, wait: float | None) -> None:
    """Nobody waits for a key to become valid."""
    assert from_answer(status, {}, "", 7.0).retry_after == wait


@pytest.mark.parametrize(
    ("error", "cls", "kind"),
    [
        (TimeoutError(), TransientError, "timeout"),
        (ConnectionResetError(), TransientError, "connection"),
        (ValueError("Expecting value"), TransientError, "garbled"),
        (AttributeError("no attribute 'delta'"), TransientError, "garbled"),
        (UnicodeEncodeError("ascii", "Bearer \xe9", 7, 8, "bad"), UnavailableError, "auth"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "bad"), UnsendableError, "bad_request"),
    ],
)
def test_what_is_no_answer_is_judged_by_its_exception(
    error: Exception, cls: type[ModelError], kind: str
) -> None:
    """The transport failed, or what came does not follow the protocol."""
    result = from_vendor(error)

    assert (type(result), result.kind) == (cls, kind)


@pytest.mark.parametrize("cls", [ModelError, TransientError, UnavailableError, UnsendableError])
def test_an_error_survives_pickling(cls: type[ModelError]) -> None:
    """With its class, its text and its fields: some vendors' do not."""
    error = cls("rate_limited", "slow down", retry_after=2.5)

    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 our own bytes

    assert (type(copy), str(copy), copy.kind, copy.retry_after) == (
        cls,
        "rate_limited: slow down",
        "rate_limited",
        2.5,
    )


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "1.5"}, 0.0015),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 -0000"}, 0.0),
        ({"retry-after": "Wed Oct 21 07:28:00 2015"}, 0.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Mon, 99 Foo 2026 99:99:99 GMT"}, None),
        ({"retry-after": "1 Jan 99999999999999999999 00:00:00 GMT"}, None),
        ({}, None),
    ],
)
def test_the_wait_is_read_in_seconds(headers: dict[str, str], seconds: float | None) -> None:
    """Milliseconds come first, a date that has passed is no wait, and nonsense is nothing."""
    assert retry_after(headers) == seconds


def test_a_date_to_come_is_a_wait_from_now() -> None:
    """Rounded as HTTP dates are, to the second."""
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)

    assert retry_after({"retry-after": date}) == pytest.approx(3600, abs=60)


@given(st.text())
def test_no_header_is_too_strange_to_read(text: str) -> None:
    """Whatever a proxy writes there, it is a wait or nothing."""
    seconds = retry_after({"retry-after": text, "retry-after-ms": text})

    assert seconds is None or seconds >= 0
