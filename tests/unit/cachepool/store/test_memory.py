"""Slots of payloads: nothing under a view changes while the view lives, and memory is used again."""

import mmap
import os
import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.cachepool.store.block import ENTRY_OVERHEAD_BYTES
from services.cachepool.store.memory import SLAB_BYTES, PayloadMemory, slot_bytes
from shared.kv.codec import Codec
from shared.kv.frame import Frame, seal, with_payload
from shared.pool.wire import decode_publish, encode_publish
from tests.support.samples import key

SIZES = st.one_of(st.integers(0, 5000), st.sampled_from([49152, 65536, 300_000]))


@pytest.mark.parametrize("num_bytes", [48 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20])
def test_the_usual_entries_waste_nothing(num_bytes: int) -> None:
    assert slot_bytes(num_bytes) == num_bytes


def test_a_slot_is_little_larger_than_what_is_in_it() -> None:
    for num_bytes in [*range(8192, 20_000, 7), *range(10**6, 2 * 10**6, 9973)]:
        assert num_bytes <= slot_bytes(num_bytes) <= num_bytes * 33 / 32 + 1


def test_a_view_is_a_copy_that_cannot_be_written() -> None:
    source = bytearray(os.urandom(1000))
    view = PayloadMemory().keep(memoryview(source))
    before = bytes(source)
    source[:] = bytes(1000)
    assert view == before
    with pytest.raises(TypeError):
        view[0] = 1


def test_memory_of_one_size_serves_another() -> None:
    memory = PayloadMemory()
    for size in (48 << 10, 64 << 10, 1 << 20):
        views = [memory.keep(bytes(size)) for _ in range(2 * SLAB_BYTES // size)]
        while views:
            memory.free(views.pop())
    assert memory.mapped_bytes <= 4 * SLAB_BYTES


def test_a_slot_that_is_freed_while_it_is_read_is_used_again_once_nobody_reads_it() -> None:
    memory = PayloadMemory()
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
        self.memory = PayloadMemory()
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


def test_without_huge_pages_it_works_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert bytes(PayloadMemory().keep(b"abc")) == b"abc"


def test_a_payload_larger_than_a_slab_has_a_slab_of_its_own() -> None:
    slots = PayloadMemory()
    view = slots.keep(bytes(SLAB_BYTES + 1))
    assert len(view) == SLAB_BYTES + 1
    assert slots.mapped_bytes == slot_bytes(SLAB_BYTES + 1)


def test_an_entry_costs_what_it_is_charged() -> None:
    """Objects of Python beside the payload, for entries that came in messages of twenty."""
    memory = PayloadMemory()
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
