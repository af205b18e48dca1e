"""Who writes fetched entries to pages, and for how long they hold pages and payloads."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import Any

import pytest

from shared.deadline import Deadline
from shared.engine.stage import Arrival, HostStager
from shared.kv.codec import Payload
from shared.kv.entries import BlockEntries, Source
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout
from shared.lanes.slabs import SLAB_BYTES
from shared.lanes.slots import SlotMemory
from shared.pool.lanes.lane import Arrived
from tests.support.fetching import (
    FetchBench,
    ScriptedPool,
    fetch_bench,
    soon,
)
from tests.support.waiting import LIMIT_S, until


@pytest.fixture
async def bench() -> AsyncIterator[FetchBench]:
    async with fetch_bench(HostStager()) as bench:
        yield bench


class SlowStager(HostStager):
    """Lets a test stop the copier thread while it writes to pages."""

    def __init__(self) -> None:
        self.is_writing = False
        self.num_begun = 0
        self.let = threading.Event()

    def land_sealed(self, arrivals: Sequence[Arrival], *arguments: Any) -> list[bool]:
        self.num_begun += 1
        self.is_writing = True
        assert self.let.wait(LIMIT_S)
        intact = super().land_sealed(arrivals, *arguments)
        self.is_writing = False
        return intact


async def test_a_fetch_that_is_cancelled_returns_when_its_pages_are_not_written_any_more() -> None:
    stager = SlowStager()
    async with fetch_bench(stager) as bench:
        pool = ScriptedPool([[bench.frame(0, 0)]])
        running = asyncio.create_task(bench.fetch({0: 0b0001}).run(pool, [], 0.0, soon()))
        await until(lambda: stager.is_writing)
        running.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not running.done(), "the caller would release pages that are being written"
        stager.let.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not stager.is_writing


async def test_the_copier_has_the_next_landing_in_hand_and_the_stream_lends_payloads_until_the_last() -> None:
    stager = SlowStager()
    async with fetch_bench(stager) as bench:

        class Lending(ScriptedPool):
            is_open = True

            async def fetch(self, *arguments: Any, **options: Any) -> AsyncGenerator[Arrived, None]:
                try:
                    async for arrived in super().fetch(*arguments, **options):
                        yield arrived
                        await until(lambda: stager.num_begun)
                finally:
                    self.is_open = False

        pool, fetch = Lending([[bench.frame(0, 0)], [bench.frame(0, 1)]]), bench.fetch({0: 0b0011})
        running = asyncio.create_task(fetch.run(pool, [], 0.0, soon()))
        await until(lambda: stager.num_begun == 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert pool.is_open
        stager.let.set()
        await running
        assert (bench.landed(), pool.is_open, stager.num_begun) == ({(0, 0), (0, 1)}, False, 2)


class LendingPool(ScriptedPool):
    """Brings entries in slots, each by itself, and then nothing for ever."""

    def __init__(self, memory: SlotMemory, frames: Iterable[Frame]) -> None:
        super().__init__()
        self._memory = memory
        self._frames = list(frames)

    async def fetch(
        self,
        layout: KvLayout,
        blocks: Sequence[BlockEntries],
        sources: Iterable[Source],
        wait_s: float,
        deadline: Deadline,
        *,
        doubted: bool = False,
    ) -> AsyncGenerator[Arrived, None]:
        for frame in self._frames:
            yield Arrived([frame._replace(payload=self._lent(frame.payload))], [])
            await asyncio.sleep(0)
        await asyncio.Event().wait()

    def _lent(self, payload: Payload) -> memoryview:
        slot = self._memory.take(len(payload))
        slot[:] = payload
        return slot


async def test_what_has_landed_is_held_no_more_while_the_rest_is_waited_for(bench: FetchBench) -> None:
    """Its slots are free for what comes next, on this stream or another."""
    memory = SlotMemory(SLAB_BYTES, shared=False)
    pool = LendingPool(memory, [bench.frame(block, 0) for block in range(3)])
    running = asyncio.create_task(bench.fetch(dict.fromkeys(range(3), 3)).run(pool, [], 1.0, soon()))
    await until(lambda: bench.counted()[0] == 3)
    await until(lambda: memory.num_taken == 0)
    running.cancel()
    await asyncio.wait({running})


async def test_who_is_cancelled_returns_when_its_pages_are_not_written_any_more() -> None:
    """A call that ends may be cancelled more than once."""
    writing, let = threading.Event(), threading.Event()

    class Held(HostStager):
        def land_sealed(self, *arguments: Any) -> list[bool]:
            writing.set()
            assert let.wait(LIMIT_S)
            return super().land_sealed(*arguments)

    async with fetch_bench(Held()) as bench:
        pool = ScriptedPool([[bench.frame(0, 0)]])
        running = asyncio.create_task(bench.fetch({0: 0b0011}).run(pool, [], 1.0, soon()))
        await until(writing.is_set)
        for _ in range(3):
            running.cancel()
            for _ in range(20):
                await asyncio.sleep(0)
            assert not running.done()
        let.set()
        with pytest.raises(asyncio.CancelledError):
            await running
