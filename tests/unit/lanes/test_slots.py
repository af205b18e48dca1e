"""Slots of payloads: nothing under a view changes while the view lives, and memory is used again."""

import gc
import os
import threading
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.cachepool.store.block import ENTRY_OVERHEAD_BYTES
from shared.errors import Overloaded, SettingsError
from shared.kv.codec import Codec
from shared.kv.frame import Frame, seal, with_payload
from shared.lanes.mapping import MemoryRange
from shared.lanes.slabs import SLAB_BYTES, slot_bytes
from shared.lanes.slots import FIRST_PLACE, SlotMemory, limit_for
from shared.pool.wire import decode_publish, encode_publish
from tests.support.samples import key

SIZES = st.one_of(st.integers(0, 5000), st.sampled_from([49152, 65536, 300_000]))


def memory_of(num_slabs: int = 64, *, shared: bool = False) -> SlotMemory:
    return SlotMemory(num_slabs * SLAB_BYTES, shared=shared)


@pytest.fixture(params=[False, True], ids=["own", "shared"])
def memory(request: pytest.FixtureRequest) -> Iterator[SlotMemory]:
    memory = memory_of(shared=request.param)
    yield memory
    memory.close()


@pytest.mark.parametrize("num_bytes", [48 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20])
def test_the_usual_entries_waste_nothing(num_bytes: int) -> None:
    assert slot_bytes(num_bytes) == num_bytes


def test_a_slot_is_little_larger_than_what_is_in_it() -> None:
    for num_bytes in [*range(8192, 20_000, 7), *range(10**6, 2 * 10**6, 9973)]:
        assert num_bytes <= slot_bytes(num_bytes) <= num_bytes * 33 / 32 + 1


def test_a_view_is_a_copy_that_cannot_be_written() -> None:
    source = bytearray(os.urandom(1000))
    view = memory_of().keep(memoryview(source))
    before = bytes(source)
    source[:] = bytes(1000)
    assert view == before
    with pytest.raises(TypeError):
        view[0] = 1


def test_memory_of_one_size_serves_another(memory: SlotMemory) -> None:
    for size in (48 << 10, 64 << 10, 1 << 20):
        views = [memory.keep(bytes(size)) for _ in range(2 * SLAB_BYTES // size)]
        while views:
            memory.free(views.pop())
    assert memory.mapped_bytes <= 4 * SLAB_BYTES


def test_a_slot_that_is_freed_while_it_is_read_is_used_again_once_nobody_reads_it(memory: SlotMemory) -> None:
    size = SLAB_BYTES // 2
    reader = memory.keep(bytes(size))[10:20]
    memory.free(reader)
    others = [memory.keep(b"x" * size) for _ in range(3)]
    assert reader == bytes(10)
    assert memory.mapped_bytes == 2 * SLAB_BYTES
    del reader
    memory.keep(b"y" * size)
    assert memory.mapped_bytes == 2 * SLAB_BYTES
    assert all(view == b"x" * size for view in others)


class KeptPayloads(RuleBasedStateMachine):
    """Any order of keeping, freeing and reading on, in parts too."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = memory_of()
        self.kept: list[tuple[memoryview, bytes]] = []
        self.read_on: list[tuple[memoryview, bytes]] = []

    @rule(size=SIZES, count=st.integers(1, 20))
    def keep(self, size: int, count: int) -> None:
        for _ in range(count):
            payload = (os.urandom(min(size, 64)) * (size // 64 + 1))[:size]
            self.kept.append((self.memory.keep(payload), payload))

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        first = data.draw(st.integers(0, len(self.kept)))
        last = first + data.draw(st.integers(0, 30))
        freed, self.kept = self.kept[first:last], self.kept[:first] + self.kept[last:]
        for number, (view, payload) in enumerate(freed):
            self.memory.free(view)
            if number % 3 == 0:  # a part of a view holds its slot as the whole does
                self.read_on.append((view[len(view) // 3 :], payload[len(view) // 3 :]))

    @rule()
    def stop_reading(self) -> None:
        self.read_on = self.read_on[1::2]

    @invariant()
    def nothing_has_changed(self) -> None:
        assert all(view == payload for view, payload in self.kept + self.read_on)

    @invariant()
    def all_of_it_is_counted_and_mapped_once(self) -> None:
        assert self.memory.num_kept == len(self.kept)
        assert self.memory.mapped_bytes >= sum(len(payload) for _, payload in self.kept)


TestKeptPayloads = KeptPayloads.TestCase
TestKeptPayloads.settings = settings(max_examples=15, stateful_step_count=15)


def test_a_payload_larger_than_a_slab_has_a_slab_of_its_own() -> None:
    slots = memory_of()
    view = slots.keep(bytes(SLAB_BYTES + 1))
    assert len(view) == SLAB_BYTES + 1
    assert slots.mapped_bytes == slot_bytes(SLAB_BYTES + 1)


@pytest.mark.parametrize("num_bytes", [49152, 300_000, 3 << 20, 5 << 20])
def test_slabs_waste_little_beside_what_is_in_them(num_bytes: int) -> None:
    memory = memory_of()
    kept = [memory.keep(bytes(num_bytes)) for _ in range(3 * (SLAB_BYTES // num_bytes))]
    assert memory.mapped_bytes <= 1.05 * num_bytes * len(kept) + SLAB_BYTES // 4, "one slab is used in part"


def test_slots_taken_in_a_row_are_adjacent_and_none_is_at_the_start(memory: SlotMemory) -> None:
    views = memory.take_all([49152] * 100)
    places = memory.places(views)
    assert places == [FIRST_PLACE + 49152 * index for index in range(100)]
    assert FIRST_PLACE > 0
    assert [memory.place(view) for view in views] == places


def test_a_part_of_a_view_has_a_place_of_its_own(memory: SlotMemory) -> None:
    view = memory.keep(bytes(1000))
    assert memory.place(view[100:200]) == memory.place(view) + 100


def test_what_was_written_into_a_slot_is_kept_where_it_lies(memory: SlotMemory) -> None:
    slot = memory.take(1000)
    slot[:] = b"x" * 1000
    kept = memory.keep(slot)
    assert (kept.readonly, memory.place(kept), memory.num_kept, memory.num_taken) == (True, memory.place(slot), 1, 0)
    slot[0] = ord("y")  # the writer may: whoever reads verifies
    assert kept[0] == ord("y")
    again = memory.keep(slot)
    assert memory.place(again) != memory.place(kept), "a slot was kept twice"
    for view in (kept, again):
        memory.free(view)
    assert memory.num_kept == 0


def test_a_copy_is_kept_while_others_take_slots(memory: SlotMemory) -> None:
    """What is copied lies in nobody's slot, also when the first slot is taken in the meantime."""
    taken: list[memoryview] = []

    def grown() -> None:
        memory.unwatch(grown)
        taken.append(memory.take(1000))

    memory.watch(grown)
    assert memory.keep(memoryview(b"x" * 1000)) == b"x" * 1000
    assert (memory.num_kept, memory.num_taken) == (1, 1)


def test_what_is_much_smaller_than_its_slot_moves_to_one_of_its_size(memory: SlotMemory) -> None:
    slot = memory.take(65536)
    kept = memory.keep(slot[:1000])
    assert (memory.num_kept, memory.num_taken) == (1, 0)
    del slot
    assert memory.place(memory.take(65536)) != memory.place(kept)
    slot = memory.take(65536)
    assert memory.place(memory.keep(slot[:65530])) == memory.place(slot), "the same size of slot"


def test_a_slot_that_was_taken_in_vain_is_used_again(memory: SlotMemory) -> None:
    slot = memory.take(49152)
    place = memory.place(slot)
    assert (memory.num_taken, memory.num_kept) == (1, 0)
    memory.free(slot)
    assert (memory.num_taken, memory.num_kept) == (0, 0)
    del slot
    assert memory.place(memory.take(49152)) == place


def test_there_is_an_end_to_memory_and_what_was_taken_halfway_comes_back() -> None:
    memory = memory_of(2)
    held = memory.take_all([SLAB_BYTES // 2] * 3)
    with pytest.raises(Overloaded):
        memory.take_all([SLAB_BYTES // 2] * 2)
    with pytest.raises(Overloaded):
        memory.keep(bytes(SLAB_BYTES))
    assert memory.num_taken == 3
    held += memory.take_all([SLAB_BYTES // 2])
    assert memory.mapped_bytes == 2 * SLAB_BYTES


def test_a_slot_that_is_read_on_counts_until_it_is_not() -> None:
    memory = memory_of(1)
    reader = memory.keep(bytes(SLAB_BYTES))[:5]
    memory.free(reader)
    for size in (SLAB_BYTES, 1000):
        with pytest.raises(Overloaded):
            memory.take(size)
    del reader
    assert len(memory.take(1000)) == 1000


def test_small_slots_leave_room_for_large_ones_once_they_are_free() -> None:
    memory = memory_of(4)
    small = [memory.keep(bytes(size)) for size in (100, 10_000, 49152) for _ in range(20)]
    while small:
        memory.free(small.pop())
    assert len(memory.take(4 * SLAB_BYTES)) == 4 * SLAB_BYTES


def test_memory_is_touched_ahead_and_no_further() -> None:
    memory = memory_of(8)
    told: list[int] = []
    memory.watch(lambda: told.append(memory.touched_bytes))
    memory.touch_ahead(3 * SLAB_BYTES)
    assert memory.mapped_bytes == 3 * SLAB_BYTES
    assert told == [FIRST_PLACE + count * SLAB_BYTES // 4 for count in range(1, 13)]
    memory.take(SLAB_BYTES)
    assert memory.mapped_bytes == 3 * SLAB_BYTES
    memory.touch_ahead(3 * SLAB_BYTES)
    assert memory.mapped_bytes == 4 * SLAB_BYTES
    memory.touch_ahead(1 << 40)
    assert memory.mapped_bytes == 8 * SLAB_BYTES == memory.size_bytes - FIRST_PLACE


def test_what_the_system_refuses_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_of(8)
    memory.touch_ahead(SLAB_BYTES)
    first = memory.take(SLAB_BYTES // 2)

    def refuse(_self: MemoryRange, _offset: int, _num_bytes: int) -> None:
        raise Overloaded("no memory")

    monkeypatch.setattr(MemoryRange, "touch", refuse)
    second = memory.take(SLAB_BYTES // 2)
    with pytest.raises(Overloaded, match="no memory"):
        memory.take(1000)
    with pytest.raises(Overloaded, match="no memory"):
        memory.touch_ahead(SLAB_BYTES)
    memory.free(first)
    del first
    assert memory.take(SLAB_BYTES // 2)
    assert len(second) == SLAB_BYTES // 2


def test_threads_share_a_memory() -> None:
    memory = memory_of(16)
    wrong: list[int] = []
    gate = threading.Barrier(4)

    def work(number: int) -> None:
        gate.wait(10)
        mark = bytes([number])
        for turn in range(300):
            views = memory.take_all([[1000, 49152, 300_000][turn % 3]] * 4)
            for view in views:
                view[:4] = mark * 4
            kept = [memory.keep(view) for view in views[:3]]
            del view
            memory.free(views.pop())
            if any(view[:4] != mark * 4 for view in kept):
                wrong.append(number)
            while kept:
                memory.free(kept.pop())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert (memory.num_kept, memory.num_taken) == (0, 0)


def test_what_the_collector_ends_meanwhile_may_free(memory: SlotMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    def never_ends(view: memoryview) -> Iterator[None]:
        try:
            yield
        finally:
            memory.free(view)

    class Cycle:
        def __init__(self) -> None:
            self.itself = self
            self.work = never_ends(memory.keep(b"x" * 1000))
            next(self.work)

    pop = memory._pop

    def collect_and_pop(size: int) -> object:
        gc.collect()
        return pop(size)

    monkeypatch.setattr(memory, "_pop", collect_and_pop)
    taken: list[memoryview] = []
    gc.freeze()  # what other tests have imported takes the collector a second each time
    try:
        for _ in range(5):
            Cycle()
            taken += memory.take_all([1000])
    finally:
        gc.unfreeze()
    assert (memory.num_kept, memory.num_taken) == (0, 5)
    assert len(set(memory.places(taken))) == 5


def test_the_limit_of_a_budget_has_room_for_what_is_in_flight() -> None:
    budget = 1 << 30
    assert limit_for(budget) > budget * 33 / 32 + budget / 5
    assert limit_for(budget, in_flight_bytes=0) < limit_for(budget)


def test_what_cannot_be_mapped_is_a_matter_of_settings() -> None:
    with pytest.raises(SettingsError, match="cannot be mapped"):
        SlotMemory(1 << 62, shared=False)
    with pytest.raises(SettingsError, match="cannot be mapped"):
        SlotMemory(1 << 62, shared=True)


def test_an_entry_costs_what_it_is_charged() -> None:
    """Objects of Python beside the payload, for entries that came in messages of twenty."""
    memory = memory_of()
    memory.touch_ahead(2 * SLAB_BYTES)
    messages = [
        encode_publish([seal(key(f"{number} {place}"), 3, bytes(49152), Codec.RAW) for place in range(20)])
        for number in range(10)
    ]
    kept: list[Frame] = []
    tracemalloc.start()
    try:
        for message in messages:
            frames = decode_publish(message)
            assert isinstance(frames, list)
            kept += [with_payload(frame, memory.keep(frame.payload)) for frame in frames]
            del frames
        num_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    slabs = 2 * SLAB_BYTES // 49152 * 16  # lists of slots
    assert 0.75 * ENTRY_OVERHEAD_BYTES <= (num_bytes - slabs) / len(kept) <= ENTRY_OVERHEAD_BYTES


def test_many_are_kept_and_freed_as_one_by_one() -> None:
    memory = SlotMemory(2 * SLAB_BYTES, shared=False)
    in_place, too_large = memory.take(1000), memory.take(4000)
    in_place[:], too_large[:900] = b"a" * 1000, b"b" * 900
    kept = memory.keep_all([in_place, too_large[:900], b"c" * 1000, bytes(2 * SLAB_BYTES), b"d"])
    assert [None if view is None else bytes(view) for view in kept] == [
        b"a" * 1000,
        b"b" * 900,
        b"c" * 1000,
        None,  # there is no slot for it
        b"d",
    ]
    assert kept[0] is not None
    assert kept[0].obj is in_place.obj, "it lies where it was written"
    assert memory.num_taken == 0
    assert memory.num_kept == 4
    memory.free_all([view for view in kept if view is not None])
    assert memory.num_kept == 0
    memory.free_all([])
