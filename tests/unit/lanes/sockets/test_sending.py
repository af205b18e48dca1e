"""The queue of a link's batches: who is served first, and how it ends."""

import asyncio
import threading

import pytest

from shared.errors import LaneBroken
from shared.lanes.sockets.sending import OutgoingBatch, SendQueue
from tests.support.waiting import LIMIT_S


def batch(layer: int = 0, *, is_background: bool = False) -> OutgoingBatch:
    return OutgoingBatch([b"some"], is_background=is_background, layer=layer)


async def test_the_most_urgent_is_first() -> None:
    queue = SendQueue()
    late_background, background = batch(2, is_background=True), batch(0, is_background=True)
    high, low, second_low = batch(9), batch(1), batch(1)
    for each in (late_background, background, high, low, second_low):
        queue.put(each)
    assert len(queue) == 5
    assert [queue.get() for _ in range(5)] == [low, second_low, high, background, late_background]


async def test_what_is_withdrawn_is_not_served() -> None:
    queue = SendQueue()
    batches = [batch(layer) for layer in (3, 1, 2, 0)]
    for each in batches:
        queue.put(each)
    queue.withdraw(batches[3])
    queue.withdraw(batches[0])
    queue.withdraw(batches[0])
    assert [queue.get(), queue.get()] == [batches[1], batches[2]]
    assert not len(queue)


async def test_a_thread_that_waits_gets_what_comes_or_the_end() -> None:
    queue, first = SendQueue(), batch()
    waiting = asyncio.create_task(asyncio.to_thread(lambda: (queue.get(), queue.get())))
    queue.put(first)
    await until_served(queue)
    queue.end("enough")
    queue.end("a second time")
    assert await asyncio.wait_for(waiting, LIMIT_S) == (first, None)
    with pytest.raises(LaneBroken, match="enough"):
        queue.put(batch())


async def until_served(queue: SendQueue) -> None:
    async with asyncio.timeout(LIMIT_S):
        while len(queue):  # noqa: ASYNC110 - a thread serves it
            await asyncio.sleep(0)


async def test_the_end_fails_whoever_waits() -> None:
    queue, waiting = SendQueue(), batch()
    queue.put(waiting)
    queue.end("gone")
    assert queue.get() is None
    with pytest.raises(LaneBroken, match="gone"):
        await asyncio.wait_for(waiting.done, LIMIT_S)


async def test_a_sender_that_was_cancelled_is_not_told() -> None:
    sent = batch()
    sent.done.cancel()
    sent.finish()
    assert sent.parts == ()
    await asyncio.sleep(0)
    assert sent.done.cancelled()


def test_a_thread_outlives_its_loop() -> None:
    async def make() -> OutgoingBatch:
        return batch()

    left = asyncio.run(make())
    thread = threading.Thread(target=left.finish)  # an error in it would fail the test
    thread.start()
    thread.join(LIMIT_S)
    assert left.parts == ()
