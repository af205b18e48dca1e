"""Entries of one message in the store: one pass, told once, refused one by one."""

from collections.abc import Sequence

import pytest

from services.cachepool.store.block import BLOCK_OVERHEAD_BYTES, ENTRY_OVERHEAD_BYTES
from services.cachepool.store.store import Store
from services.cachepool.store.subscription import Subscription
from shared.errors import BadRequest, CorruptFrame, Overloaded
from shared.ids import BlockKey
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout, LayerSpec
from shared.lanes.slabs import SLAB_BYTES
from shared.lanes.slots import SlotMemory
from tests.support.samples import ALL, BLOCK_BYTES, ENTRY_BYTES, FULL, SamplePool, frame, keys, wanting

A, B, C, D = keys("chain", 4)


@pytest.fixture
def pool() -> SamplePool:
    return SamplePool()


def taken(reader: Subscription, max_bytes: int = 1 << 20) -> list[tuple[int, BlockKey]]:
    return [(f.layer, f.key) for f in reader.take(max_bytes)]


def batch_of(*entries: tuple[BlockKey, int]) -> list[Frame]:
    return [frame(key, layer) for key, layer in entries]


def test_a_batch_ends_at_the_first_frame_that_is_wrong(pool: SamplePool) -> None:
    writer = pool.writer(A, B)
    frames = batch_of((A, 0), (B, 0), (A, 0), (B, 1))
    result = pool.store.put_all(writer, frames)
    assert (result.num_stored, result.num_bytes, result.refused) == (2, 2 * ENTRY_BYTES, [])
    assert isinstance(result.error, BadRequest), "an entry was taken twice"
    frames[2] = frame(A, 1)._replace(payload=b"short")
    result = pool.store.put_all(writer, frames[2:])
    assert (result.num_done, type(result.error)) == (0, CorruptFrame)
    result = pool.store.put_all(writer, [])
    assert (result.num_done, result.error) == (0, None)
    assert [pool.store.lookup(key) for key in (A, B)] == [0b001, 0b001]
    assert list(writer.granted.values()) == [0b110, 0b110], "the other grants stay"
    pool.store.check_integrity()


def test_readers_are_told_once_of_a_layer_of_a_batch() -> None:
    pool, names = SamplePool(num_blocks=200), keys("long", 200)
    writer = pool.writer(*names)
    readers = [pool.reader(*names), pool.reader(*reversed(names[50:]), layers=0b010)]
    told = pool.num_notified
    pool.store.put_all(writer, [frame(key, 1) for key in names])
    assert pool.num_notified == told + 2
    assert taken(readers[0]) == [(1, key) for key in names]
    assert taken(readers[1], 3 * ENTRY_BYTES) == [(1, key) for key in names[:-4:-1]]
    assert taken(readers[1]) == [(1, key) for key in names[-4:49:-1]]
    assert readers[1].done
    assert pool.groups == [(key, 0b10) for key in names]


def test_readers_that_want_nothing_of_a_batch_are_not_told(pool: SamplePool) -> None:
    writer = pool.writer(A, B)
    reader = pool.reader(A, B, layers=0b001)
    told = pool.num_notified
    pool.store.put_all(writer, batch_of((A, 1), (B, 1), (A, 2)))
    assert pool.num_notified == told
    assert not reader.has_ready


def test_a_batch_evicts_for_all_of_its_entries_and_no_more() -> None:
    pool = SamplePool(4, FULL)
    pool.fill(*keys("old", 1))
    pool.fill(*keys("older chain", 3))
    writer = pool.writer(A, B)
    assert pool.store.put_all(writer, [frame(key, layer, FULL) for layer in range(3) for key in (A, B)]).num_stored == 6
    assert pool.store.stats.num_evicted == 2
    assert pool.held(A, B, *keys("older chain", 3)) == [True, True, True, True, False]
    pool.store.check_integrity()


def test_what_does_not_fit_of_a_batch_is_refused_and_the_rest_goes_on() -> None:
    pool = SamplePool(num_blocks=2)
    pool.fill(A)
    holder = pool.reader(A)
    settled: list[BlockKey] = []
    pool.store.listen(on_settled=settled.append)
    writer = pool.writer(B, C)
    waiting = pool.reader(C, wait_s=1.0)
    result = pool.store.put_all(writer, batch_of(*((key, layer) for layer in range(3) for key in (B, C))))
    # What is left of the budget after two records of blocks holds no entry of C beside B's.
    num_fit = (BLOCK_BYTES - BLOCK_OVERHEAD_BYTES) // (ENTRY_BYTES + ENTRY_OVERHEAD_BYTES)
    assert (result.num_stored, len(result.refused), result.error) == (num_fit, 6 - num_fit, None)
    assert all("held" in str(error) for error in result.refused)
    assert not writer.granted
    assert (pool.store.lookup(B), pool.store.lookup(C)) == (ALL, 0)
    assert settled == [B]
    assert waiting.next_deadline() == pool.clock.now + 1.0
    pool.store.close(holder)
    pool.store.close(waiting)
    pool.store.check_integrity()


def test_entries_that_find_no_slot_are_refused_alone() -> None:
    pool = SamplePool()
    memory = SlotMemory(SLAB_BYTES, shared=False)
    pool.store = Store(1 << 40, pool.clock, memory=memory)
    large = KvLayout((LayerSpec(None, 1, SLAB_BYTES // 48),), "float32", block_tokens=1)
    names = keys("large", 100)
    writer = pool.store.open_writer()
    pool.store.grant(writer, large, wanting(names, 1))
    result = pool.store.put_all(writer, [frame(key, 0, large) for key in names])
    assert 0 < result.num_stored < 100
    assert result.num_done == 100
    assert result.num_bytes == result.num_stored * large.entry_bytes(0)
    assert pool.store.stats.num_entries == result.num_stored
    pool.store.check_integrity()


def test_slots_of_another_size_are_made_of_what_is_least_worth() -> None:
    """A memory that is all cut into slots of one size: who writes beside the store finds none of another."""
    pool = SamplePool()
    memory = SlotMemory(SLAB_BYTES, shared=False)
    pool.store = Store(1 << 40, pool.clock, memory=memory)
    small = KvLayout((LayerSpec(None, 1, SLAB_BYTES // 64),), "float32", block_tokens=1)
    names, told = keys("small", 8), list[Sequence[int]]()
    writer = pool.store.open_writer()
    pool.store.grant(writer, small, wanting(names, 1))
    assert not pool.store.put_all(writer, [frame(key, 0, small) for key in names]).refused
    pool.store.abandon(writer)
    memory.on_lack(told.append)
    sizes = [SLAB_BYTES // 2] * 2
    with pytest.raises(Overloaded):
        memory.take_all(sizes)
    assert told == [sizes]
    assert pool.store.make_slots(sizes)
    assert len(memory.take_all(sizes)) == 2
    assert pool.store.stats.num_entries < len(names)
    assert not pool.store.make_slots([SLAB_BYTES] * 2), "there is not so much memory"
    assert told == [sizes], "who makes slots is not asked for them"
    pool.store.check_integrity()


def test_many_slots_are_looked_for_seldom_and_little_more_goes_than_has_to(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, num_asked, num_looks = SamplePool(), 64, 0
    memory = SlotMemory(SLAB_BYTES, shared=False)
    pool.store = Store(1 << 40, pool.clock, memory=memory)
    layout = KvLayout((LayerSpec(None, 1, SLAB_BYTES // 1024),), "float32", block_tokens=1)
    size = layout.entry_bytes(0)
    names = keys("small", SLAB_BYTES // size)
    writer = pool.store.open_writer()
    pool.store.grant(writer, layout, wanting(names, 1))
    assert not pool.store.put_all(writer, [frame(key, 0, layout) for key in names]).refused
    pool.store.abandon(writer)
    has_room = memory.has_room

    def counted(sizes: Sequence[int]) -> bool:
        nonlocal num_looks
        num_looks += 1
        return has_room(sizes)

    monkeypatch.setattr(memory, "has_room", counted)
    assert not pool.store.make_slots([size] * (2 * len(names)))
    assert pool.store.stats.num_entries == len(names), "nothing goes for what can never be had"
    assert pool.store.make_slots([size] * num_asked)
    assert num_asked <= len(names) - pool.store.stats.num_entries <= num_asked * 5 // 4 + 1
    assert num_looks < num_asked // 2
    pool.store.check_integrity()
