"""Read-through: an entry is read once for all, the first layers of all blocks first, and no reader gets an error."""

import asyncio

import pytest

from services.cachepool.store.subscription import Subscription
from services.cachepool.tiers.breaker import MAX_FAILURES
from services.cachepool.tiers.objects import object_path
from services.cachepool.tiers.ranges import FIRST_BYTES
from services.cachepool.tiers.reader import REST_S
from shared.kv.codec import Codec
from shared.kv.frame import seal
from shared.kv.layout import KvLayout, LayerSpec
from tests.support.samples import ALL, BLOCK_BYTES, frame, key
from tests.support.tiers import SampleTier
from tests.support.waiting import until

A, B = key("a"), key("b")
MANY_BYTES = 1 << 30

LARGE = KvLayout((LayerSpec(None, 1, FIRST_BYTES // 16),) * 3, "bfloat16", block_tokens=4)
"""One entry fills the first range of its block; the second range has the other two."""


def orphaned(reader: Subscription) -> list[tuple[int, int]]:
    """(block index, layers) of what a reader wants and nobody brings."""
    return list(reader.without_writer())


async def test_what_a_reader_lacks_comes_from_its_object() -> None:
    tier = SampleTier()
    tier.add(A)
    sourced = tier.sourced(A)
    tier.reads.start(sourced)
    assert orphaned(sourced.reader) == [], "a read is a writer from the start"
    await until(lambda: sourced.reader.num_left == 3 and sourced.reader.has_ready)
    await until(lambda: tier.store.stats.num_writers == 0)
    assert sourced.reader.take(MANY_BYTES) == [frame(A, layer) for layer in range(3)]


async def test_two_readers_cost_one_read() -> None:
    tier = SampleTier()
    tier.add(A)
    first, second = tier.sourced(A), tier.sourced(A)
    tier.reads.start(first)
    tier.reads.start(second)
    await until(lambda: tier.store.stats.num_writers == 0)
    assert tier.client.calls["get_range"] == 1
    assert len(first.reader.take(MANY_BYTES)) == len(second.reader.take(MANY_BYTES)) == 3


async def test_only_what_is_absent_is_read() -> None:
    tier = SampleTier()
    tier.add(A)
    writer = tier.pool.writer(A, layers=0b001)
    tier.store.put(writer, frame(A, 0))
    tier.reads.start(tier.sourced(A))
    await until(lambda: tier.count("object_entries_read_total") == 2)


async def test_the_first_layers_of_all_blocks_are_read_before_the_others() -> None:
    tier = SampleTier(num_blocks=MANY_BYTES / BLOCK_BYTES, layout=LARGE, max_reads=1)
    tier.add(A, B, layout=LARGE)
    tier.reads.start(tier.sourced(A, B))
    await until(lambda: tier.store.stats.num_writers == 0)
    a, b = object_path(A), object_path(B)
    assert tier.client.read_paths == [a, b, a, b]


async def test_an_entry_is_tried_once_for_a_reader() -> None:
    tier = SampleTier()
    tier.add(A)
    tier.client.error = "down"
    sourced = tier.sourced(A)
    tier.reads.start(sourced)
    await until(lambda: tier.store.stats.num_writers == 0)
    assert orphaned(sourced.reader) == [(0, ALL)], "somebody else may bring it"
    tier.client.error = ""
    tier.clock.advance(REST_S)
    tier.reads.start(sourced)
    assert tier.store.stats.num_writers == 0
    tier.reads.start(another := tier.sourced(A))
    await until(lambda: another.reader.has_ready)


async def test_an_object_that_cannot_be_read_rests() -> None:
    tier = SampleTier()
    tier.add(A)
    tier.client.error = "down"
    tier.reads.start(tier.sourced(A))
    await until(lambda: tier.store.stats.num_writers == 0)
    assert tier.index.readable(A) == 0
    tier.clock.advance(REST_S)
    assert tier.index.readable(A) == ALL


async def test_a_store_that_fails_again_and_again_is_not_asked() -> None:
    tier = SampleTier()
    tier.add(A)
    for _ in range(MAX_FAILURES):
        tier.breaker.failed()
    sourced = tier.sourced(A)
    tier.reads.start(sourced)
    assert orphaned(sourced.reader) == [(0, ALL)]
    assert tier.client.calls == {}


async def test_reads_that_take_too_long_are_given_up() -> None:
    tier = SampleTier(read_limit_s=0.01)
    tier.add(A)
    tier.client.delay_s = 60.0
    sourced = tier.sourced(A)
    tier.reads.start(sourced)
    await until(lambda: tier.store.stats.num_writers == 0)
    assert orphaned(sourced.reader) == [(0, ALL)]
    assert tier.index.readable(A) == 0, "nothing of it is tried again soon"


async def test_reads_end_with_the_last_reader_that_waits_for_them() -> None:
    tier = SampleTier()
    tier.add(A)
    tier.client.delay_s = 60.0
    first, second = tier.sourced(A), tier.sourced(A)
    tier.reads.start(first)
    await asyncio.sleep(0)
    tier.store.close(first.reader)
    tier.reads.cancel_unwanted()
    assert tier.store.stats.num_writers == 1
    tier.store.close(second.reader)
    tier.reads.cancel_unwanted()
    assert tier.store.stats.num_writers == 0, "at once: somebody else may write these entries"
    await tier.reads.close()


async def test_closing_ends_every_read() -> None:
    tier = SampleTier()
    tier.add(A, B)
    tier.client.delay_s = 60.0
    tier.reads.start(tier.sourced(A))
    tier.reads.start(tier.sourced(B))
    await asyncio.sleep(0)
    await tier.reads.close()
    assert tier.store.stats.num_writers == 0


async def test_memory_that_is_full_of_held_blocks_leaves_entries_without_a_writer() -> None:
    tier = SampleTier(num_blocks=1)
    tier.pool.fill(B)
    holding = tier.pool.reader(B)
    tier.add(A)
    sourced = tier.sourced(A)
    tier.reads.start(sourced)
    await until(lambda: tier.store.stats.num_writers == 0)
    assert tier.count("object_entries_refused_total") == 3
    assert orphaned(sourced.reader) == [(0, ALL)]
    tier.store.close(holding)


async def test_an_intact_entry_that_is_no_kv_of_its_layout_is_not_stored() -> None:
    tier = SampleTier()
    header = tier.put(A, [seal(A, 0, bytes(16), Codec.RAW), frame(A, 1)])
    await tier.recovery.check(A)
    sourced = tier.sourced(A)
    tier.reads.start(sourced)
    await until(lambda: tier.store.stats.num_writers == 0)
    assert tier.store.lookup(A) == header.layers & ~1
    assert orphaned(sourced.reader) == [(0, ALL & ~0b010)]
    assert tier.count("object_corrupt_entries_total") == 1


async def test_the_speed_of_reads_is_that_of_the_time_in_which_there_were_some() -> None:
    tier = SampleTier()
    tier.add(A, B)
    assert tier.reader.bytes_per_s == 0.0
    for block in (A, B):
        tier.client.delay_s = 0.02
        tier.reads.start(tier.sourced(block))
        await asyncio.sleep(0.005)
        tier.clock.advance(0.5)
        await until(lambda: tier.store.stats.num_writers == 0)
        tier.clock.advance(60.0)  # nobody reads
    read_bytes = tier.count("object_read_bytes_total")
    assert read_bytes > 0
    assert tier.reader.bytes_per_s == pytest.approx(read_bytes / 1.0, rel=0.1)
