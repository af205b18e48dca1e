"""The store: grants, budget, eviction order, layer order, deadlines. Manual clock, no event loop."""

import pytest

from services.cachepool.store.block import BLOCK_OVERHEAD_BYTES, ENTRY_OVERHEAD_BYTES
from services.cachepool.store.store import BlockGrant, Store
from services.cachepool.store.subscription import Subscription
from shared.errors import BadRequest, CorruptFrame, Overloaded
from shared.ids import BlockKey
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries
from shared.kv.frame import seal
from shared.kv.layout import KvLayout, LayerSpec
from shared.lanes.slabs import SLAB_BYTES
from shared.lanes.slots import SlotMemory
from tests.support.samples import ALL, BLOCK_BYTES, ENTRY_BYTES, LAYOUT, SamplePool, frame, keys, wanting

A, B, C, D = keys("chain", 4)


@pytest.fixture
def pool() -> SamplePool:
    return SamplePool()


def taken(reader: Subscription, max_bytes: int = 1 << 20) -> list[tuple[int, BlockKey]]:
    return [(f.layer, f.key) for f in reader.take(max_bytes)]


def test_first_writer_wins_and_later_ones_are_told_to_skip(pool: SamplePool) -> None:
    first = pool.store.open_writer()
    second = pool.store.open_writer()
    assert pool.store.grant(first, LAYOUT, [BlockEntries(A, 0b011)]) == [BlockGrant(0b011, 0)]
    pool.store.put(first, frame(A, 0))
    assert pool.store.grant(second, LAYOUT, wanting([A, B])) == [BlockGrant(0b100, 0b001), BlockGrant(0b111, 0)]


def test_a_dead_writers_grants_go_to_the_next(pool: SamplePool) -> None:
    first = pool.writer(A)
    pool.store.put(first, frame(A, 1))
    assert pool.store.abandon(first) == 2
    assert pool.store.abandon(first) == 0, "abandoning twice changes nothing"
    second = pool.store.open_writer()
    assert pool.store.grant(second, LAYOUT, wanting([A])) == [BlockGrant(0b101, 0b010)]
    assert pool.store.stats.num_writers == 1


def test_only_the_grants_holder_may_put(pool: SamplePool) -> None:
    writer = pool.writer(A, layers=0b001)
    other = pool.writer(B)
    for name, bad in ((writer, frame(A, 1)), (other, frame(A, 0)), (writer, frame(C, 0))):
        with pytest.raises(BadRequest, match="not granted"):
            pool.store.put(name, bad)
    pool.store.put(writer, frame(A, 0))
    with pytest.raises(BadRequest, match="not granted"):
        pool.store.put(writer, frame(A, 0))
    assert pool.store.stats.num_entries == 1


def test_kv_of_the_wrong_size_is_refused(pool: SamplePool) -> None:
    writer = pool.writer(A)
    with pytest.raises(CorruptFrame):
        pool.store.put(writer, seal(A, 0, b"x" * (ENTRY_BYTES - 2), Codec.RAW))
    with pytest.raises(CorruptFrame):
        pool.store.put(writer, frame(A, 0)._replace(payload=b"short"))
    assert pool.store.stats.num_entries == 0
    pool.store.put(writer, seal(A, 0, b"x" * ENTRY_BYTES, Codec.LZ4, LAYOUT.entry_shape(0)))


def test_bad_requests_change_nothing(pool: SamplePool) -> None:
    pool.fill(A)
    other = KvLayout((LayerSpec(None, 1, 8),), "float32", block_tokens=4)
    writer = pool.store.open_writer()
    requests: list[tuple[KvLayout, list[BlockEntries]]] = [
        (LAYOUT, wanting([B, C, B])),
        (LAYOUT, [BlockEntries(B, 0b1000)]),
        (other, [BlockEntries(B, 1), BlockEntries(A, 1)]),
    ]
    for layout, blocks in requests:
        with pytest.raises(BadRequest):
            pool.store.grant(writer, layout, blocks)
        with pytest.raises(BadRequest):
            pool.store.subscribe(layout, blocks, 1.0, lambda: None)
    pool.store.check_integrity()
    assert pool.store.stats[:6] == (1, 3, BLOCK_BYTES, 0, 0, 1)
    assert not writer.granted


def test_an_equal_layout_is_the_same_layout(pool: SamplePool) -> None:
    pool.fill(A)
    twin = KvLayout(tuple(LAYOUT.layers), LAYOUT.dtype, LAYOUT.block_tokens)
    assert pool.store.grant(pool.store.open_writer(), twin, wanting([A])) == [BlockGrant(0, ALL)]


def test_the_budget_counts_every_byte(pool: SamplePool) -> None:
    writer = pool.writer(A)
    pool.store.put(writer, frame(A, 0))
    assert pool.store.used_bytes == BLOCK_OVERHEAD_BYTES + ENTRY_OVERHEAD_BYTES + ENTRY_BYTES
    compressed = seal(A, 1, bytes(ENTRY_BYTES), Codec.LZ4, LAYOUT.entry_shape(1))
    pool.store.put(writer, compressed)
    expected = BLOCK_OVERHEAD_BYTES + 2 * ENTRY_OVERHEAD_BYTES + ENTRY_BYTES + len(compressed.payload)
    assert pool.store.used_bytes == expected
    pool.store.check_integrity()


def test_what_is_stored_is_a_copy(pool: SamplePool) -> None:
    sealed = frame(A, 0)
    message = bytearray(sealed.payload)
    pool.store.put(pool.writer(A), sealed._replace(payload=memoryview(message)))
    message[:] = bytes(len(message))
    assert pool.reader(A, layers=1).take(1) == [sealed]


# Delivery


def test_ready_entries_leave_lowest_layer_first(pool: SamplePool) -> None:
    pool.fill(B, A)
    reader = pool.reader(A, B)
    assert taken(reader) == [(0, A), (0, B), (1, A), (1, B), (2, A), (2, B)]
    assert reader.done


def test_entries_are_delivered_while_their_block_is_being_written(pool: SamplePool) -> None:
    writer = pool.writer(A, B)
    reader = pool.reader(A, B)
    assert taken(reader) == []
    pool.store.put(writer, frame(B, 2))
    pool.store.put(writer, frame(A, 0))
    assert taken(reader) == [(0, A), (2, B)]
    pool.store.put(writer, frame(B, 0))
    assert taken(reader) == [(0, B)]
    assert not reader.done


def test_a_reader_gets_only_the_layers_it_wants(pool: SamplePool) -> None:
    pool.fill(A)
    reader = pool.reader(A, layers=0b010)
    assert taken(reader) == [(1, A)]
    assert reader.done


def test_take_stops_at_its_limit_but_gives_at_least_one(pool: SamplePool) -> None:
    pool.fill(A, B)
    reader = pool.reader(A, B)
    assert len(taken(reader, 1)) == 1
    assert len(taken(reader, 2 * ENTRY_BYTES)) == 2
    assert len(taken(reader, 1 << 20)) == 3


def test_two_readers_share_one_copy(pool: SamplePool) -> None:
    writer = pool.writer(A)
    readers = [pool.reader(A, layers=1) for _ in range(2)]
    pool.store.put(writer, frame(A, 0))
    first, second = (reader.take(1 << 20) for reader in readers)
    assert first[0] is second[0]


# Waiting for a writer


def test_an_entry_without_writer_is_missing_after_the_wait(pool: SamplePool) -> None:
    pool.fill(A)
    reader = pool.reader(A, B, wait_s=2.0)
    assert reader.next_deadline() == pool.clock.now + 2.0
    pool.clock.advance(1.9)
    assert reader.take_missing(pool.clock()) == []
    pool.clock.advance(0.1)
    assert reader.take_missing(pool.clock()) == [BlockEntries(B, ALL)]
    assert not reader.done
    assert len(taken(reader)) == 3
    assert reader.done


def test_no_wait_means_missing_at_once(pool: SamplePool) -> None:
    reader = pool.reader(A, wait_s=0.0)
    assert reader.take_missing(pool.clock()) == [BlockEntries(A, ALL)]
    assert reader.done


def test_a_writer_stops_the_deadline_and_its_death_starts_it_again(pool: SamplePool) -> None:
    reader = pool.reader(A, wait_s=1.0)
    pool.clock.advance(0.9)
    writer = pool.writer(A)
    assert reader.next_deadline() is None
    pool.clock.advance(10.0)
    assert reader.take_missing(pool.clock()) == []
    pool.store.put(writer, frame(A, 0))
    pool.store.abandon(writer)
    assert reader.next_deadline() == pool.clock.now + 1.0
    assert list(reader.without_writer()) == [(0, 0b110)]
    pool.clock.advance(1.0)
    assert reader.take_missing(pool.clock()) == [BlockEntries(A, 0b110)]
    assert taken(reader) == [(0, A)]


def test_patience_may_count_from_an_earlier_moment(pool: SamplePool) -> None:
    writer = pool.writer(A)
    reader = pool.reader(A, wait_s=1.0)
    started = pool.clock.now
    pool.clock.advance(1.5)
    pool.store.release(writer, BlockEntries(A, 0b001), started)
    assert reader.take_missing(pool.clock()) == [BlockEntries(A, 0b001)]
    pool.store.abandon(writer)
    assert reader.next_deadline() == pool.clock.now + 1.0


def test_what_was_reported_missing_never_comes(pool: SamplePool) -> None:
    reader = pool.reader(A, wait_s=0.0)
    reader.take_missing(pool.clock())
    pool.fill(A)
    assert taken(reader) == []
    assert reader.done


def test_a_next_writer_takes_over_the_waiters(pool: SamplePool) -> None:
    first = pool.writer(A)
    reader = pool.reader(A, wait_s=1.0)
    pool.store.put(first, frame(A, 0))
    pool.store.abandon(first)
    pool.clock.advance(0.5)
    second = pool.writer(A)
    pool.clock.advance(5.0)
    for layer in (1, 2):
        pool.store.put(second, frame(A, layer))
    assert reader.take_missing(pool.clock()) == []
    assert taken(reader) == [(0, A), (1, A), (2, A)]
    assert reader.done


def test_a_writer_is_awaited_while_a_reader_wants_what_it_has_to_fill(pool: SamplePool) -> None:
    writer = pool.writer(A, B)
    assert not pool.store.is_awaited(writer)
    reader = pool.reader(A, layers=1)
    assert pool.store.is_awaited(writer)
    pool.store.put(writer, frame(A, 0))
    assert not pool.store.is_awaited(writer)
    pool.store.close(reader)


# Room


def test_a_refused_entry_gives_its_grant_back_and_its_readers_wait_for_another() -> None:
    pool = SamplePool(num_blocks=1)
    pool.fill(A)
    holder = pool.reader(A)
    writer = pool.writer(B, layers=0b001)
    waiting = pool.reader(B, layers=0b001, wait_s=1.0)
    with pytest.raises(Overloaded):
        pool.store.put(writer, frame(B, 0))
    assert not writer.granted
    assert waiting.next_deadline() == pool.clock.now + 1.0
    pool.store.close(holder)
    second = pool.writer(B, layers=0b001)
    pool.store.put(second, frame(B, 0))
    assert taken(waiting) == [(0, B)]
    assert pool.held(A) == [False]


def test_an_entry_beyond_the_whole_budget_evicts_nothing() -> None:
    pool = SamplePool(num_blocks=1)
    pool.fill(A)
    large = KvLayout((LayerSpec(None, 1, 4096),), "float32", block_tokens=4)
    writer = pool.store.open_writer()
    pool.store.grant(writer, large, [BlockEntries(B, 1)])
    with pytest.raises(Overloaded, match="exceeds"):
        pool.store.put(writer, frame(B, 0, large))
    assert pool.held(A) == [True]


def test_blocks_go_when_slots_of_a_size_run_out_before_the_budget() -> None:
    pool = SamplePool()
    memory = SlotMemory(SLAB_BYTES, shared=False)
    memory.touch_ahead(SLAB_BYTES)
    pool.store = Store(100 * BLOCK_BYTES, pool.clock, memory=memory)
    pool.fill(A, B)  # their slots are of one size, and so are all of the only slab
    large = KvLayout((LayerSpec(None, 1, 1024),), "float32", block_tokens=4)
    reader = pool.reader(B)
    writer = pool.store.open_writer()
    pool.store.grant(writer, large, [BlockEntries(C, 1)])
    with pytest.raises(Overloaded, match="held"):
        pool.store.put(writer, frame(C, 0, large))
    pool.store.check_integrity()
    pool.store.close(reader)
    pool.store.grant(writer, large, [BlockEntries(C, 1)])
    pool.store.put(writer, frame(C, 0, large))
    assert pool.store.lookup(C) == 1
    assert pool.held(A, B) == [False, False]
    pool.store.check_integrity()


def test_nothing_remains_of_blocks_that_never_got_an_entry(pool: SamplePool) -> None:
    names = keys("absent", 3000)  # longer than the interpreter's stack: settling must not recurse
    reader = pool.store.subscribe(LAYOUT, wanting(names), 1.0, lambda: None)
    writer = pool.writer(*names)
    pool.store.close(reader)
    pool.store.close(reader)
    pool.store.abandon(writer)
    pool.store.check_integrity()
    assert pool.store.stats[:6] == (0, 0, 0, 0, 0, 0)
    assert not list(pool.store._shelf)


def test_leases_are_counted_once_for_each_reader(pool: SamplePool) -> None:
    readers = [pool.reader(A, B), pool.reader(A)]
    assert pool.store.stats.num_leases == 3
    for reader in readers:
        pool.store.close(reader)
    assert pool.store.stats.num_leases == 0
    assert pool.store.stats.num_readers == 0


def test_whole_groups_are_reported_as_they_complete(pool: SamplePool) -> None:
    writer = pool.writer(A)
    for layer in (0, 1, 2):
        pool.store.put(writer, frame(A, layer))
    assert pool.groups == [(A, 0b10), (A, 0b11)]
