"""Slots of payloads: nothing under a view changes while the view lives, and memory is used again."""

import mmap
import os
import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.cachepool.block import ENTRY_OVERHEAD_BYTES
from services.cachepool.integrity import check
from services.cachepool.memory import SLAB_BYTES, PayloadMemory, slot_bytes
from shared.kv.codec import Codec
from shared.kv.frame import Frame, seal
from shared.rpc.wire import decode_publish, encode_publish
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
    slots = PayloadMemory()
    for size in (48 << 10, 64 << 10, 1 << 20):
        views = [slots.keep(bytes(size)) for _ in range(2 * SLAB_BYTES // size)]
        assert len(views) == 2 * SLAB_BYTES // size
        views.clear()
    assert slots.mapped_bytes <= 4 * SLAB_BYTES


class KeptPayloads(RuleBasedStateMachine):
    """Any order of keeping and dropping, views of views included."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = PayloadMemory()
        self.kept: list[tuple[memoryview, bytes]] = []
        self.most = 0

    @rule(size=SIZES, count=st.integers(1, 20))
    def keep(self, size: int, count: int) -> None:
        for _ in range(count):
            payload = os.urandom(min(size, 64)) * (size // 64 + 1)
            self.kept.append((self.memory.keep(payload[:size]), payload[:size]))

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if self.kept:
            first = data.draw(st.integers(0, len(self.kept) - 1))
            del self.kept[first : first + data.draw(st.integers(1, 30))]

    @rule()
    def narrow(self) -> None:
        """A part of a view holds its slot as the whole does."""
        self.kept = [(view[len(view) // 3 :], payload[len(view) // 3 :]) for view, payload in self.kept]

    @invariant()
    def nothing_has_changed(self) -> None:
        assert all(view == payload for view, payload in self.kept)

    @invariant()
    def all_of_it_is_mapped_once(self) -> None:
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
            kept += check(frames, memory.keep).intact
            del frames
        num_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    slabs = 2 * SLAB_BYTES // 49152 * 16  # lists of slots
    assert 0.75 * ENTRY_OVERHEAD_BYTES <= (num_bytes - slabs) / len(kept) <= ENTRY_OVERHEAD_BYTES
