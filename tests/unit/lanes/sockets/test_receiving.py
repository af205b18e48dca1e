"""From the threads that receive to the streams that consume: room, order, and no slot lost."""

import asyncio

import pytest

from shared.errors import BadRequest, LaneBroken
from shared.lanes.sockets.batch import Received
from shared.lanes.sockets.receiving import LinkInbox
from tests.support.lanes import CountedSlots, sealed
from tests.support.waiting import LIMIT_S


def arrived(slots: CountedSlots, number: int) -> Received:
    """Return a batch of one frame of 100 bytes in a slot."""
    frame = sealed(number, 100)
    (view,) = slots.take_all([100])
    view[:] = frame.payload
    return Received([frame._replace(payload=view)], [], [])


def numbers(received: Received) -> list[int]:
    return [int.from_bytes(frame.key, "big") for frame in received.frames]


async def test_batches_reach_their_streams_in_order() -> None:
    slots = CountedSlots()
    inbox = LinkInbox(slots, 1000)
    with inbox.stream(1) as one, inbox.stream(2) as two:
        for number, stream in ((1, 1), (2, 2), (3, 1)):
            assert inbox.admit(stream, 100)
            inbox.deliver(stream, arrived(slots, number), 100)
        assert inbox.unread_bytes == 300
        async with asyncio.timeout(LIMIT_S):
            received = [await anext(one), await anext(one), await anext(two)]
        assert [numbers(each) for each in received] == [[1], [3], [2]]
        assert inbox.unread_bytes == 0
        for each in received:
            slots.free_all(each.frames)
    assert slots.num_taken == 0


async def test_a_thread_waits_for_room() -> None:
    slots = CountedSlots()
    inbox = LinkInbox(slots, 150)
    with inbox.stream(1) as incoming:
        assert inbox.admit(1, 100)
        inbox.deliver(1, arrived(slots, 1), 100)
        waiting = asyncio.create_task(asyncio.to_thread(inbox.admit, 1, 100))
        assert inbox.unread_bytes == 100
        slots.free_all((await anext(incoming)).frames)
        assert await asyncio.wait_for(waiting, LIMIT_S)
        assert inbox.unread_bytes == 100
        inbox.consumed(100)
        assert inbox.admit(1, 10_000)  # alone, it may be larger
        inbox.consumed(10_000)


async def test_a_stream_that_ends_takes_its_batches_along() -> None:
    slots = CountedSlots()
    inbox = LinkInbox(slots, 150)
    with inbox.stream(1) as incoming:
        assert inbox.admit(1, 100)
        inbox.deliver(1, arrived(slots, 1), 100)
        await asyncio.sleep(0)
        waiting = asyncio.create_task(asyncio.to_thread(inbox.admit, 1, 100))
    assert not await asyncio.wait_for(waiting, LIMIT_S)  # for nobody
    assert not inbox.admit(1, 100)
    assert (slots.num_taken, inbox.unread_bytes) == (0, 0)
    del incoming


async def test_what_comes_while_its_stream_ends_is_freed() -> None:
    slots = CountedSlots()
    inbox = LinkInbox(slots, 1000)
    with inbox.stream(1):
        assert inbox.admit(1, 100)
    inbox.deliver(1, arrived(slots, 1), 100)
    await asyncio.sleep(0)
    assert (slots.num_taken, inbox.unread_bytes) == (0, 0)


async def test_the_end_comes_after_what_has_arrived() -> None:
    slots = CountedSlots()
    inbox = LinkInbox(slots, 150)
    with inbox.stream(1) as incoming:
        assert inbox.admit(1, 100)
        inbox.deliver(1, arrived(slots, 1), 100)
        waiting = asyncio.create_task(asyncio.to_thread(inbox.admit, 1, 100))
        inbox.end("cut")
        slots.free_all((await anext(incoming)).frames)
        for _ in range(2):
            with pytest.raises(LaneBroken, match="cut"):
                await anext(incoming)
        with pytest.raises(LaneBroken):
            await asyncio.wait_for(waiting, LIMIT_S)
    with pytest.raises(LaneBroken), inbox.stream(2):
        pass


async def test_a_waiting_consumer_is_told_of_the_end() -> None:
    inbox = LinkInbox(CountedSlots(), 150)
    with inbox.stream(1) as incoming:
        waiting = asyncio.ensure_future(anext(incoming))
        await asyncio.sleep(0)
        inbox.end("cut")
        with pytest.raises(LaneBroken):
            await asyncio.wait_for(waiting, LIMIT_S)


async def test_a_stream_in_use_is_not_opened_again() -> None:
    inbox = LinkInbox(CountedSlots(), 150)
    with inbox.stream(1), pytest.raises(BadRequest), inbox.stream(1):
        pass
    with inbox.stream(1):
        assert inbox.admit(1, 10)


def test_a_thread_that_outlives_the_loop_frees_what_it_has() -> None:
    slots = CountedSlots()

    async def make() -> LinkInbox:
        inbox = LinkInbox(slots, 1000)
        inbox.stream(1).__enter__()
        return inbox

    inbox = asyncio.run(make())
    assert inbox.admit(1, 100)
    inbox.deliver(1, arrived(slots, 1), 100)
    assert (slots.num_taken, inbox.unread_bytes) == (0, 0)
