"""How long a provider is waited for, and how often it is asked."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from ptc_worker.llm.errors import NotAskedError, TransientError, UnavailableError, UnsendableError
from ptc_worker.llm.limits import HOLD_SECONDS
from ptc_worker.llm.patience import (
    COME_BACK_SECONDS,
    LONGEST_WAIT,
    Patience,
    unless_silent,
    worth_coming_back,
)
from ptc_worker.llm.protocol import Reply, Tally

if TYPE_CHECKING:
    from ptc_worker.llm.errors import ModelError

OVERLOADED = TransientError("overloaded", "x")
REPLY = Reply(text="x")


def patience(seconds: float = 600, *, last: bool = False) -> Patience:
    """Make the patience of a run with so many seconds left."""
    return Patience(time.monotonic() + seconds, last)


@pytest.mark.parametrize(
    "error", [UnavailableError("auth", "x"), UnsendableError("too_long", "x"), NotAskedError("limited", "x")]
)
def test_what_cannot_change_in_a_moment_is_not_asked_again(error: ModelError) -> None:
    """Nor is what we did not ask."""
    assert patience().wait_after(error) is False


def test_waits_grow_and_differ() -> None:
    """From half a second to eight, and up to another half by chance."""
    one, other = patience(), patience()
    waits = [[p.wait_after(OVERLOADED) for _ in range(8)] for p in (one, other)]

    assert waits[0] != waits[1]
    assert [0.5 <= wait <= 1.0 for wait in (waits[0][0], waits[1][0])] == [True, True]
    assert all(8.0 <= wait <= 8.5 for wait in (waits[0][7], waits[1][7]))


def test_nobody_sleeps_past_the_deadline() -> None:
    """The fallback has the time that is left."""
    assert patience(0.4).wait_after(OVERLOADED) is False


@pytest.mark.parametrize("last", [False, True])
def test_a_wait_that_a_provider_asks_for_is_kept(last: bool) -> None:
    """To the letter."""
    assert patience(last=last).wait_after(TransientError("rate_limited", "x", retry_after=2.5)) == 2.5


def test_a_wait_of_nothing_is_a_retry() -> None:
    """At once."""
    wait = patience().wait_after(TransientError("rate_limited", "x", retry_after=0.0))

    assert (wait, wait is not False) == (0.0, True)


@pytest.mark.parametrize(
    ("seconds", "left", "last"),
    [(LONGEST_WAIT + 1, 600, False), (20, 15, False), (HOLD_SECONDS + 1, 600, True)],
)
def test_a_wait_that_is_too_long_is_not_waited(seconds: float, left: float, last: bool) -> None:
    """In general, before the deadline, or in a worker's slot where nobody else can be asked."""
    error = TransientError("rate_limited", "x", retry_after=seconds)

    assert patience(left, last=last).wait_after(error) is False


@pytest.mark.parametrize("kind", ["timeout", "empty"])
def test_what_takes_long_or_costs_much_is_tried_twice_at_most(kind: str) -> None:
    """Another kind of failure in between makes no difference."""
    asked = patience()
    first = asked.wait_after(TransientError(kind, "x"))
    asked.wait_after(OVERLOADED)

    assert first is not False
    assert asked.wait_after(TransientError(kind, "x")) is False


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (NotAskedError("resting", "x", retry_after=30), 30),
        (TransientError("rate_limited", "x", retry_after=0.05), HOLD_SECONDS),
        (OVERLOADED, COME_BACK_SECONDS),
        (TransientError("empty", "x"), None),
        (UnavailableError("auth", "x"), None),
        (UnsendableError("too_long", "x"), None),
    ],
)
def test_a_run_comes_back_for_what_may_pass(error: ModelError, seconds: float | None) -> None:
    """When the provider says, or in a few seconds; not for what would be paid again and again, or never pass."""
    assert worth_coming_back(error) == seconds


@pytest.mark.parametrize(("left", "silence"), [(900, 120), (90, 30), (12, 10)])
def test_silence_is_granted_by_the_time_that_is_left(left: float, silence: float) -> None:
    """A third of it, between ten seconds and two minutes; the fallback gets the rest."""
    assert patience(left).silence == pytest.approx(silence, abs=0.5)


def test_the_last_provider_may_be_silent_until_the_deadline() -> None:
    """There is nobody else to give the time to."""
    assert patience(last=True).silence is None


def test_a_silent_stream_is_a_timeout() -> None:
    """Keep-alives are no sound."""
    with pytest.raises(TransientError, match="timeout: nothing came for 0 s"):
        asyncio.run(unless_silent(asyncio.sleep(3600, REPLY), Tally(model="m"), 0.01))


@pytest.mark.parametrize("sound", ["write", "think"])
def test_text_and_thoughts_end_a_silence(sound: str) -> None:
    """However long the whole answer takes: here a pause each time reaches half of what is granted."""
    tally = Tally(model="m")

    async def speak() -> Reply:
        for _ in range(6):
            await asyncio.sleep(0.25)
            getattr(tally, sound)("x")
        return REPLY

    assert asyncio.run(unless_silent(speak(), tally, 0.5)) is REPLY


def test_the_deadline_is_not_mistaken_for_silence() -> None:
    """Whoever set it is told."""

    async def ask() -> None:
        async with asyncio.timeout(0.01):
            await unless_silent(asyncio.sleep(3600, REPLY), Tally(model="m"), 3600)

    with pytest.raises(TimeoutError):
        asyncio.run(ask())
