"""Entries from a pool into pages: only whole ones land, gates follow the layers, and what does not come is said."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from shared.deadline import Deadline
from shared.engine.fetch import PageFetch
from shared.engine.stage import Arrival, HostStager, Stager
from shared.engine.thread import WorkThread
from shared.engine.transfer import FetchMetrics, PageTransfer
from shared.errors import DeadlineExceeded, PrfaasError, WorkerLost
from shared.ids import BlockKey, Datacenter
from shared.kv.codec import Codec, Fidelity, Payload
from shared.kv.entries import BlockEntries, Source
from shared.kv.frame import Frame, seal
from shared.kv.layout import KvLayout, iter_layers
from shared.lanes.slabs import SLAB_BYTES
from shared.lanes.slots import SlotMemory
from shared.metrics import Metrics
from shared.pool.lanes.lane import Arrived
from shared.pool.memory import MemoryPool
from shared.pool.nodes import Publishing
from tests.support.entries import entry_bytes
from tests.support.tiny import tiny_model
from tests.support.waiting import LIMIT_S, until

NUM_BLOCKS, NUM_LAYERS, ALL = 4, 4, 0b1111
KEYS = [BlockKey(bytes([i + 1]) * 32) for i in range(NUM_BLOCKS)]
UNTOUCHED = b"\xff"
SOURCES = [Source(0, 3, Datacenter("east"), ("east:1",)), Source(2, 4, Datacenter("south"), ("south:1",))]
Entry = tuple[int, int]
"""A block and a layer."""


class ScriptedPool:
    """Answers each fetch with the next of its scripts: messages of frames, and an error that ends it."""

    address = "scripted"

    def __init__(self, *scripts: Iterable[list[Frame] | PrfaasError]) -> None:
        self._scripts = iter(scripts)
        self.asked: list[tuple[list[BlockEntries], list[Source], float]] = []

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
        self.asked.append((list(blocks), list(sources), wait_s))
        for event in next(self._scripts):
            if isinstance(event, PrfaasError):
                raise event
            yield Arrived(event, [])

    def publish(self, deadline: Deadline) -> AbstractAsyncContextManager[Publishing]:
        raise AssertionError("fetching does not publish")


class Bench:
    """Pages for a few blocks, full of bytes that no entry has, and who fetches into them."""

    def __init__(self, copier: WorkThread, stager: Stager) -> None:
        kv = tiny_model("llama", num_pages=NUM_BLOCKS).kv
        reservation = kv.reserve([], NUM_BLOCKS * 64)
        assert reservation is not None
        self.kv, self.layout, self.reservation = kv, kv.layout, reservation
        self._metrics = Metrics()
        self._transfer = PageTransfer(kv, copier, FetchMetrics(self._metrics), stager)
        self.num_woken = 0
        for layer in range(NUM_LAYERS):
            raw = UNTOUCHED * self.layout.entry_bytes(layer)
            blocks = kv.blocks_of(layer)
            HostStager().land([Arrival(raw, blocks, kv.block_number(layer, reservation, b)) for b in range(NUM_BLOCKS)])

    def fetch(self, wanted: Mapping[int, int], at_least: Fidelity = Fidelity.LOSSLESS) -> PageFetch:
        return PageFetch(self._transfer, self.reservation, KEYS, wanted, self._woken, at_least)

    def frame(self, block: int, layer: int, codec: Codec = Codec.RAW) -> Frame:
        shape = self.layout.entry_shape(layer)
        return seal(KEYS[block], layer, bytes([block + 1, layer]) * (shape.num_bytes // 2), codec, shape)

    def landed(self) -> set[Entry]:
        """Return the entries whose pages hold what was sealed; all other pages are as they were."""
        held = {
            (block, layer): entry_bytes(self.kv.block(layer, self.reservation, block))
            for block in range(NUM_BLOCKS)
            for layer in range(NUM_LAYERS)
        }
        new = {entry for entry, raw in held.items() if raw != UNTOUCHED * len(raw)}
        assert all(held[entry] == self.frame(*entry).payload for entry in new)
        return new

    def counted(self) -> tuple[float, float, float]:
        """Return how many entries have landed, were corrupt, and were missing in the end."""
        names = ("fetched", "corrupt", "missing")
        landed, corrupt, missing = (
            self._metrics.registry.get_sample_value(f"prfaas:{name}_entries_total") or 0.0 for name in names
        )
        return landed, corrupt, missing

    @property
    def landing_bytes_per_s(self) -> float:
        return self._transfer.landing.per_s

    async def publish(self, pool: MemoryPool, entries: Iterable[Entry]) -> None:
        entries = list(entries)
        async with pool.publish(soon()) as publication:
            await publication.open(self.layout, [BlockEntries(KEYS[block], 1 << layer) for block, layer in entries])
            await publication.send([self.frame(*entry) for entry in entries])

    def _woken(self) -> None:
        self.num_woken += 1


def soon() -> Deadline:
    return Deadline.after(2 * LIMIT_S)


def of(wanted: Mapping[int, int]) -> set[Entry]:
    return {(block, layer) for block, layers in wanted.items() for layer in iter_layers(layers)}


@asynccontextmanager
async def made(stager: Stager) -> AsyncIterator[Bench]:
    copier = WorkThread("copier")
    try:
        yield Bench(copier, stager)
    finally:
        copier.close()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with made(HostStager()) as bench:
        yield bench


async def test_what_is_wanted_lands_and_nothing_else(bench: Bench) -> None:
    pool, wanted = MemoryPool(), {0: ALL, 1: 0b0100, 3: 0b0011}
    await bench.publish(pool, of(dict.fromkeys(range(NUM_BLOCKS), ALL)))
    fetch = bench.fetch(wanted)
    await fetch.run(pool, [], 0.0, soon())
    assert bench.landed() == of(wanted)
    assert fetch.outstanding == {}
    assert bench.counted() == (7, 0, 0)
    assert bench.landing_bytes_per_s > 0


async def test_a_gate_opens_with_the_last_entry_of_its_layer_and_of_those_below(bench: Bench) -> None:
    pool, fetch = MemoryPool(), bench.fetch({0: ALL, 1: 0b1011})
    running = asyncio.create_task(fetch.run(pool, [], LIMIT_S, soon()))
    opened = []
    for entry in [(0, 1), (0, 0), (1, 1), (1, 0), (0, 2), (1, 3), (0, 3)]:
        num_woken = bench.num_woken
        await bench.publish(pool, [entry])
        await until(lambda before=num_woken: bench.num_woken > before)  # type: ignore[misc]
        opened.append(fetch.num_open_layers())
    assert opened == [0, 0, 0, 2, 3, 3, 4]
    await running


async def test_a_corrupt_entry_is_asked_for_once_more_alone(bench: Bench) -> None:
    """Sources are named by their places among what is asked for: south's blocks 2 and 3 are then 0 and 1."""
    good = [bench.frame(block, layer) for layer in range(2) for block in range(NUM_BLOCKS)]
    again = good[2:3] + good[7:8]
    first = [frame._replace(checksum=1) if frame in again else frame for frame in good]
    pool, fetch = ScriptedPool([first[:3], first[3:]], [again]), bench.fetch(dict.fromkeys(range(NUM_BLOCKS), 0b0011))
    await fetch.run(pool, SOURCES, 5.0, soon())
    assert bench.landed() == of(dict.fromkeys(range(NUM_BLOCKS), 0b0011))
    assert bench.counted() == (8, 2, 0)
    assert pool.asked == [
        ([BlockEntries(key, 0b0011) for key in KEYS], SOURCES, 5.0),
        (
            [BlockEntries(KEYS[2], 0b0001), BlockEntries(KEYS[3], 0b0010)],
            [SOURCES[0]._replace(first=0, end=1), SOURCES[1]._replace(first=0, end=2)],
            0.0,
        ),
    ]


async def test_an_entry_that_is_corrupt_twice_is_outstanding_and_its_pages_are_not_written(bench: Bench) -> None:
    bad = bench.frame(1, 1)._replace(checksum=1)
    pool, fetch = ScriptedPool([[bench.frame(1, 0), bad]], [[bad]]), bench.fetch({1: 0b0011})
    await fetch.run(pool, [], 0.0, soon())
    assert bench.landed() == {(1, 0)}
    assert fetch.outstanding == {1: 0b0010}
    assert fetch.num_open_layers() == 1
    assert bench.counted() == (1, 2, 1)


def no_entries(bench: Bench) -> Iterator[Frame]:
    """Yield frames that pass their checksum and are no entry for the pages of block 0, layer 0, all the same."""
    size = bench.layout.entry_bytes(0)
    yield seal(BlockKey(b"?" * 32), 0, bytes(size), Codec.RAW)  # a key that nobody asked for
    yield seal(KEYS[0], NUM_LAYERS, bytes(size), Codec.RAW)  # a layer that the model has not
    yield seal(KEYS[0], 0, bytes(size - 2), Codec.RAW)  # another size
    yield bench.frame(0, 0, Codec.INT8)  # of a lower fidelity than asked for
    yield bench.frame(0, 1)  # of a layer that was not asked for


async def test_what_is_no_entry_that_was_asked_for_does_not_reach_pages(bench: Bench) -> None:
    frames = list(no_entries(bench))
    fetch = bench.fetch({0: 0b0001})
    await fetch.run(ScriptedPool([frames], []), [], 0.0, soon())
    assert bench.landed() == set()
    assert fetch.outstanding == {0: 0b0001}
    assert bench.counted() == (0, len(frames), 1)


async def test_an_entry_that_comes_twice_lands_once(bench: Bench) -> None:
    fetch = bench.fetch({0: 0b0011})
    once, other = bench.frame(0, 0), bench.frame(0, 1)
    await fetch.run(ScriptedPool([[once, once], [once, other]]), [], 0.0, soon())
    assert fetch.outstanding == {}
    assert fetch.num_open_layers() == NUM_LAYERS
    assert bench.counted() == (2, 2, 0)


async def test_who_asked_for_a_lower_fidelity_takes_it(bench: Bench) -> None:
    fetch = bench.fetch({0: 0b0001}, Fidelity.INT8)
    await fetch.run(ScriptedPool([[bench.frame(0, 0, Codec.INT8)]]), [], 0.0, soon())
    assert fetch.outstanding == {}


async def test_who_stops_waiting_takes_what_is_there_and_gives_up_the_rest(bench: Bench) -> None:
    """Its writer is still at it: only who hurries does without."""
    pool, fetch = MemoryPool(), bench.fetch({0: 0b0011})
    async with pool.publish(soon()) as publication:
        await publication.open(bench.layout, [BlockEntries(KEYS[0], 0b0001)])
        running = asyncio.create_task(fetch.run(pool, [], 4 * LIMIT_S, soon()))
        await publication.send([bench.frame(0, 0)])
        await until(lambda: bench.num_woken)
        assert not running.done()
        fetch.stop_waiting()
        await running
    assert bench.landed() == {(0, 0)}
    assert fetch.outstanding == {0: 0b0010}
    assert bench.counted() == (1, 0, 1)


async def test_who_hurries_from_the_start_still_gets_what_is_there(bench: Bench) -> None:
    pool, fetch = MemoryPool(), bench.fetch({0: 0b0011})
    await bench.publish(pool, [(0, 0)])
    fetch.stop_waiting()
    await fetch.run(pool, [], LIMIT_S, soon())
    assert bench.landed() == {(0, 0)}
    assert fetch.outstanding == {0: 0b0010}


async def test_what_is_late_is_outstanding_and_what_had_landed_stays(bench: Bench) -> None:
    pool, fetch = MemoryPool(), bench.fetch({0: 0b0001, 1: 0b0011})
    await bench.publish(pool, [(0, 0)])
    async with pool.publish(soon()) as publication:  # a writer that never writes: nobody would give it up
        await publication.open(bench.layout, [BlockEntries(KEYS[1], 0b0011)])
        await fetch.run(pool, SOURCES, LIMIT_S, soon(), patience_s=0.02)
    assert fetch.is_overdue
    assert bench.landed() == {(0, 0)}
    assert fetch.outstanding == {1: 0b0011}
    assert bench.counted() == (1, 0, 2)


async def test_what_comes_in_time_is_not_late(bench: Bench) -> None:
    pool, fetch = MemoryPool(), bench.fetch({0: 0b0001})
    await bench.publish(pool, [(0, 0)])
    await fetch.run(pool, [], 0.0, soon(), patience_s=LIMIT_S)
    assert not fetch.is_overdue
    assert fetch.outstanding == {}


async def test_a_pool_that_is_lost_leaves_outstanding_what_it_has_not_sent(bench: Bench) -> None:
    pool, fetch = ScriptedPool([[bench.frame(0, 0)], WorkerLost("gone")]), bench.fetch({0: 0b0001, 1: 0b0001})
    await fetch.run(pool, [], LIMIT_S, soon())
    assert bench.landed() == {(0, 0)}
    assert fetch.outstanding == {1: 0b0001}
    assert bench.counted() == (1, 0, 1)
    assert len(pool.asked) == 1


async def test_a_fetch_that_outlasts_its_deadline_raises(bench: Bench) -> None:
    with pytest.raises(DeadlineExceeded):
        await bench.fetch({0: ALL}).run(MemoryPool(), [], 4 * LIMIT_S, Deadline.after(0.05))


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
    async with made(stager) as bench:
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
    async with made(stager) as bench:

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


async def test_what_has_landed_is_held_no_more_while_the_rest_is_waited_for(bench: Bench) -> None:
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

    async with made(Held()) as bench:
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
