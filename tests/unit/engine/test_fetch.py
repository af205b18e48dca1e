"""Entries from a pool into pages: only whole ones land, gates follow the layers, and what does not come is said."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from shared.deadline import Deadline
from shared.engine.stage import HostStager
from shared.errors import DeadlineExceeded, WorkerLost
from shared.ids import BlockKey
from shared.kv.codec import Codec, Fidelity
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame, seal
from shared.pool.memory import MemoryPool
from tests.support.fetching import (
    ALL,
    KEYS,
    NUM_BLOCKS,
    NUM_LAYERS,
    SOURCES,
    FetchBench,
    ScriptedPool,
    fetch_bench,
    of,
    soon,
)
from tests.support.waiting import LIMIT_S, until


@pytest.fixture
async def bench() -> AsyncIterator[FetchBench]:
    async with fetch_bench(HostStager()) as bench:
        yield bench


async def test_what_is_wanted_lands_and_nothing_else(bench: FetchBench) -> None:
    pool, wanted = MemoryPool(), {0: ALL, 1: 0b0100, 3: 0b0011}
    await bench.publish(pool, of(dict.fromkeys(range(NUM_BLOCKS), ALL)))
    fetch = bench.fetch(wanted)
    await fetch.run(pool, [], 0.0, soon())
    assert bench.landed() == of(wanted)
    assert fetch.outstanding == {}
    assert bench.counted() == (7, 0, 0)
    assert bench.landing_bytes_per_s > 0


async def test_a_gate_opens_with_the_last_entry_of_its_layer_and_of_those_below(bench: FetchBench) -> None:
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


async def test_a_corrupt_entry_is_asked_for_once_more_alone(bench: FetchBench) -> None:
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


async def test_an_entry_that_is_corrupt_twice_is_outstanding_and_its_pages_are_not_written(bench: FetchBench) -> None:
    bad = bench.frame(1, 1)._replace(checksum=1)
    pool, fetch = ScriptedPool([[bench.frame(1, 0), bad]], [[bad]]), bench.fetch({1: 0b0011})
    await fetch.run(pool, [], 0.0, soon())
    assert bench.landed() == {(1, 0)}
    assert fetch.outstanding == {1: 0b0010}
    assert fetch.num_open_layers() == 1
    assert bench.counted() == (1, 2, 1)


def no_entries(bench: FetchBench) -> Iterator[Frame]:
    """Yield frames that pass their checksum and are no entry for the pages of block 0, layer 0, all the same."""
    size = bench.layout.entry_bytes(0)
    yield seal(BlockKey(b"?" * 32), 0, bytes(size), Codec.RAW)  # a key that nobody asked for
    yield seal(KEYS[0], NUM_LAYERS, bytes(size), Codec.RAW)  # a layer that the model has not
    yield seal(KEYS[0], 0, bytes(size - 2), Codec.RAW)  # another size
    yield bench.frame(0, 0, Codec.INT8)  # of a lower fidelity than asked for
    yield bench.frame(0, 1)  # of a layer that was not asked for


async def test_what_is_no_entry_that_was_asked_for_does_not_reach_pages(bench: FetchBench) -> None:
    frames = list(no_entries(bench))
    fetch = bench.fetch({0: 0b0001})
    await fetch.run(ScriptedPool([frames], []), [], 0.0, soon())
    assert bench.landed() == set()
    assert fetch.outstanding == {0: 0b0001}
    assert bench.counted() == (0, len(frames), 1)


async def test_an_entry_that_comes_twice_lands_once(bench: FetchBench) -> None:
    fetch = bench.fetch({0: 0b0011})
    once, other = bench.frame(0, 0), bench.frame(0, 1)
    await fetch.run(ScriptedPool([[once, once], [once, other]]), [], 0.0, soon())
    assert fetch.outstanding == {}
    assert fetch.num_open_layers() == NUM_LAYERS
    assert bench.counted() == (2, 2, 0)


async def test_who_asked_for_a_lower_fidelity_takes_it(bench: FetchBench) -> None:
    fetch = bench.fetch({0: 0b0001}, Fidelity.INT8)
    await fetch.run(ScriptedPool([[bench.frame(0, 0, Codec.INT8)]]), [], 0.0, soon())
    assert fetch.outstanding == {}


async def test_who_stops_waiting_takes_what_is_there_and_gives_up_the_rest(bench: FetchBench) -> None:
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


async def test_who_hurries_from_the_start_still_gets_what_is_there(bench: FetchBench) -> None:
    pool, fetch = MemoryPool(), bench.fetch({0: 0b0011})
    await bench.publish(pool, [(0, 0)])
    fetch.stop_waiting()
    await fetch.run(pool, [], LIMIT_S, soon())
    assert bench.landed() == {(0, 0)}
    assert fetch.outstanding == {0: 0b0010}


async def test_what_is_late_is_outstanding_and_what_had_landed_stays(bench: FetchBench) -> None:
    pool, fetch = MemoryPool(), bench.fetch({0: 0b0001, 1: 0b0011})
    await bench.publish(pool, [(0, 0)])
    async with pool.publish(soon()) as publication:  # a writer that never writes: nobody would give it up
        await publication.open(bench.layout, [BlockEntries(KEYS[1], 0b0011)])
        await fetch.run(pool, SOURCES, LIMIT_S, soon(), patience_s=0.02)
    assert fetch.is_overdue
    assert bench.landed() == {(0, 0)}
    assert fetch.outstanding == {1: 0b0011}
    assert bench.counted() == (1, 0, 2)


async def test_what_comes_in_time_is_not_late(bench: FetchBench) -> None:
    pool, fetch = MemoryPool(), bench.fetch({0: 0b0001})
    await bench.publish(pool, [(0, 0)])
    await fetch.run(pool, [], 0.0, soon(), patience_s=LIMIT_S)
    assert not fetch.is_overdue
    assert fetch.outstanding == {}


async def test_a_pool_that_is_lost_leaves_outstanding_what_it_has_not_sent(bench: FetchBench) -> None:
    pool, fetch = ScriptedPool([[bench.frame(0, 0)], WorkerLost("gone")]), bench.fetch({0: 0b0001, 1: 0b0001})
    await fetch.run(pool, [], LIMIT_S, soon())
    assert bench.landed() == {(0, 0)}
    assert fetch.outstanding == {1: 0b0001}
    assert bench.counted() == (1, 0, 1)
    assert len(pool.asked) == 1


async def test_a_fetch_that_outlasts_its_deadline_raises(bench: FetchBench) -> None:
    with pytest.raises(DeadlineExceeded):
        await bench.fetch({0: ALL}).run(MemoryPool(), [], 4 * LIMIT_S, Deadline.after(0.05))
