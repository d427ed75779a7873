"""A vendor without room is left alone, however many runs wait for it."""

from __future__ import annotations

import asyncio
import math

import pytest

from ptc_worker.busy import BusyError
from ptc_worker.sandbox.room import Room


class Vendor:
    """Has no room for so many requests, and then it has."""

    def __init__(self, *refusals: float) -> None:
        self.refusals = list(refusals)
        self.asked = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def make(self) -> None:
        """Make a machine, or refuse."""
        self.asked += 1
        await self.answers.wait()
        if self.refusals:
            raise BusyError(self.refusals.pop(0), "the account is full")


async def refused(room: Room, vendor: Vendor) -> BusyError:
    """Ask for a machine in vain."""
    with pytest.raises(BusyError) as caught:
        await room.taken(vendor.make)
    return caught.value


def test_who_comes_before_the_time_is_sent_away_without_a_request() -> None:
    """The first one is told for how long, and why; that holds for all others of the process."""

    async def story() -> None:
        room, vendor = Room(), Vendor(200)
        first, second = await refused(room, vendor), await refused(room, vendor)

        assert vendor.asked == 1
        assert str(first) == str(second) == "no sandbox can be had: the account is full"
        assert first.seconds >= 200
        assert second.seconds > 100

    asyncio.run(story())


@pytest.mark.parametrize("wanted", [86_400, math.inf])
def test_a_vendor_is_not_believed_that_it_wants_to_be_left_alone_for_hours(wanted: float) -> None:
    """A clock may be wrong, or a date; and each of its runs would wait until its deadline."""

    async def story() -> None:
        refusal = await refused(Room(), Vendor(wanted))

        assert 300 <= refusal.seconds < 400

    asyncio.run(story())


def test_when_the_time_is_over_one_asks_for_all() -> None:
    """The others wait for what it is told; when there is room again, everybody may ask."""

    async def story() -> None:
        room, vendor = Room(), Vendor(0)
        await refused(room, vendor)
        vendor.answers.clear()
        asking = asyncio.create_task(room.taken(vendor.make))
        await asyncio.sleep(0)
        await refused(room, vendor)
        asked_meanwhile = vendor.asked
        vendor.answers.set()
        await asking
        await asyncio.gather(*(room.taken(vendor.make) for _ in range(3)))

        assert (asked_meanwhile, vendor.asked) == (2, 5)

    asyncio.run(story())


def test_several_that_are_refused_at_once_are_one_refusal() -> None:
    """The pause grows by how often there was no room, not by how many runs wanted it."""

    async def story() -> None:
        room, vendor = Room(), Vendor(*[10.0] * 5)
        vendor.answers.clear()
        crowd = [asyncio.create_task(room.taken(vendor.make)) for _ in range(5)]
        await asyncio.sleep(0)
        vendor.answers.set()
        outcomes = await asyncio.gather(*crowd, return_exceptions=True)

        assert vendor.asked == 5
        assert all(isinstance(each, BusyError) and each.seconds <= 13 for each in outcomes)

    asyncio.run(story())
