"""Messages come together where their consumer was busy, in order, bounded, with their errors last."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from shared.engine.gather import gathered
from shared.errors import WorkerLost
from shared.kv.entries import BlockEntries
from shared.pool.lanes.lane import Arrived
from tests.support.samples import frame, keys
from tests.support.waiting import LIMIT_S, until

KEYS = keys("a", 20)
ALL = [BlockEntries(key, 0b11) for key in KEYS]  # more than there is
SIZE = len(frame(KEYS[0], 0).payload)


def message(number: int) -> Arrived:
    return Arrived([frame(KEYS[number], 0)], [])


class Source:
    """Sends messages, and remembers how many were asked for."""

    def __init__(self, num_messages: int, error: Exception | None = None) -> None:
        self.num_taken = 0
        self.is_closed = False
        self._num_messages, self._error = num_messages, error

    async def stream(self) -> AsyncGenerator[Arrived, None]:
        try:
            for number in range(self._num_messages):
                self.num_taken += 1
                yield message(number)
            if self._error is not None:
                raise self._error
        finally:
            self.is_closed = True


def keys_of(together: list[Arrived]) -> list[bytes]:
    return [found.key for arrived in together for found in arrived.frames]


async def test_what_came_meanwhile_comes_together() -> None:
    source = Source(5)
    async with aclosing(gathered(source.stream(), 100 * SIZE, ALL)) as arrivals:
        first = await anext(arrivals)
        await until(lambda: source.num_taken == 5)
        rest = [together async for together in arrivals]
    assert keys_of(first) + [found for together in rest for found in keys_of(together)] == KEYS[:5]
    assert len(rest) <= 1, "what waited was not taken together"


async def test_no_more_than_a_bounded_part_is_read_ahead() -> None:
    source = Source(20)
    async with aclosing(gathered(source.stream(), 3 * SIZE, ALL)) as arrivals:
        seen = await anext(arrivals)
        for _ in range(50):
            await asyncio.sleep(0)
        assert source.num_taken <= len(seen) + 3
        seen += [arrived async for together in arrivals for arrived in together]
    assert keys_of(seen) == KEYS


async def test_an_error_comes_after_what_came_before_it() -> None:
    source = Source(3, WorkerLost("gone"))
    seen: list[Arrived] = []

    async def read_all() -> None:
        async with aclosing(gathered(source.stream(), 100 * SIZE, ALL)) as arrivals:
            async for together in arrivals:
                seen.extend(together)

    with pytest.raises(WorkerLost, match="gone"):
        await read_all()
    assert keys_of(seen) == KEYS[:3]


async def test_the_stream_is_its_owners_to_close_when_all_has_come() -> None:
    """What it lent is still the consumer's then."""
    source, wanted = Source(20), [BlockEntries(key, 0b1) for key in KEYS[:7]]
    async with aclosing(source.stream()) as stream:
        together = [arrived async for found in gathered(stream, 100 * SIZE, wanted) for arrived in found]
        assert keys_of(together) == KEYS[:7]
        assert (source.num_taken, source.is_closed) == (7, False)
        async with aclosing(gathered(stream, SIZE, ALL)) as arrivals:
            await anext(arrivals)
        assert not source.is_closed, "nor is it closed by who leaves early"
    assert source.is_closed


async def test_what_is_denied_or_corrupt_is_answered_and_what_comes_twice_or_unasked_is_no_answer() -> None:
    first, second = KEYS[:2]

    async def stream() -> AsyncGenerator[Arrived, None]:
        yield Arrived([frame(first, 2), frame(first, 2), frame(KEYS[7], 0)], [])
        yield Arrived([frame(first, 2)], [BlockEntries(first, 0b101)], [BlockEntries(second, 0b11)])
        yield Arrived([frame(first, 1)], [])
        raise AssertionError("asked for more")

    async with aclosing(stream()) as source:
        wanted = [BlockEntries(first, 0b111), BlockEntries(second, 0b1)]
        assert sum([len(found) async for found in gathered(source, 1, wanted)]) == 3


async def test_a_stream_that_ends_with_its_last_message_ends_this_one() -> None:
    gate, has_ended = asyncio.Event(), asyncio.Event()

    async def stream() -> AsyncGenerator[Arrived, None]:
        yield message(0)
        await gate.wait()
        yield message(1)
        has_ended.set()

    async with asyncio.timeout(LIMIT_S), aclosing(gathered(stream(), 100 * SIZE, ALL)) as arrivals:
        assert keys_of(await anext(arrivals)) == KEYS[:1]
        gate.set()
        await has_ended.wait()
        for _ in range(5):
            await asyncio.sleep(0)  # its end has been heard of while its last message waits
        assert [keys_of(together) async for together in arrivals] == [KEYS[1:2]]
