"""The wire form of a batch: there and back, and no damaged header passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadRequest, CorruptFrame
from shared.kv.frame import Frame
from shared.lanes.records import RECORD_BYTES
from shared.lanes.sockets.batch import (
    HEADER_BYTES,
    MAX_BATCH_BYTES,
    MAX_ENTRIES,
    entries_of,
    frames_of,
    pack_batch,
    unpack_announced,
    unpack_header,
)
from tests.support.lanes import sealed

SIZES = st.lists(st.integers(1, 5000), min_size=1, max_size=20)


def frames(sizes: list[int]) -> list[Frame]:
    return [sealed(number, size, layer=number % 7) for number, size in enumerate(sizes, 1)]


@given(SIZES, st.integers(0, 2**64 - 1))
def test_what_was_packed_is_unpacked(sizes: list[int], stream: int) -> None:
    batch = frames(sizes)
    head, *payloads = pack_batch(stream, batch)
    header = unpack_header(head[:HEADER_BYTES])
    assert header[:3] == (stream, len(batch), sum(sizes))
    assert len(head) == HEADER_BYTES + len(batch) * RECORD_BYTES
    records = unpack_announced(header, head[HEADER_BYTES:])
    assert frames_of(records, payloads) == batch


@given(SIZES, st.data())
def test_no_changed_byte_of_header_and_records_passes(sizes: list[int], data: st.DataObject) -> None:
    head = bytearray(pack_batch(1, frames(sizes))[0])
    at = data.draw(st.integers(0, len(head) - 1))
    head[at] ^= data.draw(st.integers(1, 255))
    damaged = bytes(head)
    with pytest.raises(CorruptFrame):
        unpack_announced(unpack_header(damaged[:HEADER_BYTES]), damaged[HEADER_BYTES:])


def test_too_few_records_do_not_pass() -> None:
    head = pack_batch(1, frames([10, 20]))[0]
    with pytest.raises(CorruptFrame):
        unpack_announced(unpack_header(head[:HEADER_BYTES]), head[HEADER_BYTES:-RECORD_BYTES])


def test_what_is_no_batch_is_not_packed() -> None:
    one = sealed(1, 8)
    for no_batch in ([], [one] * (MAX_ENTRIES + 1), [one, one._replace(payload=b"")]):
        with pytest.raises(BadRequest):
            pack_batch(1, no_batch)
    quarter = one._replace(payload=bytes(MAX_BATCH_BYTES // 4))
    assert len(pack_batch(1, [quarter] * 4)) == 5
    with pytest.raises(BadRequest):
        pack_batch(1, [quarter] * 4 + [one])


def test_entries_are_named_by_block() -> None:
    named = entries_of([sealed(1, 8, layer=0), sealed(2, 8, layer=1), sealed(1, 8, layer=3)])
    assert named == [(sealed(1, 8).key, 0b1001), (sealed(2, 8).key, 0b10)]
