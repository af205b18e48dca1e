"""Fan-in of fetches: lowest layer first among what is here, bounded, and over when it is closed."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from shared.errors import DeadlineExceeded
from shared.ids import BlockKey
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries
from shared.kv.frame import seal
from shared.pool.lanes.lane import Arrived
from shared.pool.merge import MAX_AHEAD, merged
from tests.support.waiting import until

KEY = BlockKey(bytes(32))


def of_layer(layer: int) -> Arrived:
    return Arrived([seal(KEY, layer, b"abcd", Codec.RAW)], [])


class Stream:
    """A fetch that sends these layers and then waits, ends or fails."""

    def __init__(self, layers: list[int], end: asyncio.Event | Exception | None = None) -> None:
        self.layers, self.end = layers, end
        self.num_taken = 0
        self.closed = False

    async def run(self) -> AsyncGenerator[Arrived, None]:
        try:
            for layer in self.layers:
                self.num_taken += 1
                yield of_layer(layer)
            if isinstance(self.end, Exception):
                raise self.end
            if self.end is not None:
                await self.end.wait()
        finally:
            self.closed = True


async def test_the_lowest_layer_that_is_here_goes_first() -> None:
    late = asyncio.Event()

    async def starts_late() -> AsyncGenerator[Arrived, None]:
        await late.wait()
        yield Arrived([], [BlockEntries(KEY, 1)])
        yield of_layer(0)

    fast, slow = Stream([0, 1, 2, 3]), Stream([1, 1, 4])
    seen = []
    async with aclosing(merged([fast.run(), slow.run(), starts_late()])) as arrivals:
        async for arrived in arrivals:
            seen.append(arrived.frames[0].layer if arrived.frames else -1)
            if len(seen) == 4:
                late.set()
                await asyncio.sleep(0)
    assert seen[0] == 0
    assert sorted(seen) == [-1, 0, 0, 1, 1, 1, 2, 3, 4]
    assert seen.index(-1) < seen.index(4)
    assert fast.closed
    assert slow.closed


async def test_a_reader_that_is_slow_slows_every_stream_and_closing_ends_them() -> None:
    streams = [Stream(list(range(20)), asyncio.Event()) for _ in range(3)]
    async with aclosing(merged([stream.run() for stream in streams])) as arrivals:
        assert (await anext(arrivals)).frames[0].layer == 0
        await until(lambda: sum(stream.num_taken for stream in streams) == 3 * (MAX_AHEAD + 1) + 1)
    assert all(stream.closed for stream in streams)


async def test_one_late_stream_holds_nobody_up_and_an_error_ends_all() -> None:
    never, failing = Stream([], asyncio.Event()), Stream([0, 1], DeadlineExceeded("too late"))
    arrivals = merged([never.run(), failing.run()])
    assert [(await anext(arrivals)).frames[0].layer for _ in range(2)] == [0, 1]
    with pytest.raises(DeadlineExceeded):
        await anext(arrivals)
    assert never.closed
    assert [arrived async for arrived in merged([])] == []
