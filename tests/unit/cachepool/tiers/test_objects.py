"""The form of an object: what goes in comes out, and any damage is noticed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cachepool.tiers.objects import (
    HEAD_BYTES,
    ObjectHeader,
    frame_at,
    header_size,
    key_of_path,
    object_path,
    pack,
    parse,
)
from services.cachepool.tiers.ranges import FIRST_BYTES, LAST_BYTES, ranges
from shared.errors import CorruptFrame
from shared.ids import BlockKey
from shared.kv.codec import Codec
from shared.kv.frame import Frame, seal, verify
from shared.kv.layout import Dtype, KvLayout, LayerSpec, iter_layers
from tests.support.samples import ALL, LAYOUT, frame, key

A, B = key("a"), key("b")

specs = st.builds(LayerSpec, st.none() | st.integers(1, 1 << 20), st.integers(1, 8), st.integers(1, 16))
layouts = st.builds(
    KvLayout,
    st.lists(specs, min_size=1, max_size=12).map(tuple),
    st.sampled_from(["float32", "bfloat16", "float16"]),
    st.integers(1, 4),
)


def written(
    block_key: BlockKey = A, parent: BlockKey | None = B, layers: int = ALL, layout: KvLayout = LAYOUT
) -> tuple[ObjectHeader, bytes]:
    frames = [frame(block_key, layer, layout) for layer in iter_layers(layers)]
    header = pack(block_key, parent, layout, frames)
    return header, header.raw + b"".join(f.payload for f in frames)


def read_all(content: bytes) -> list[Frame]:
    header = parse(content, len(content))
    frames = [
        frame_at(header.key, entry, content[entry.offset : entry.offset + entry.length]) for entry in header.entries
    ]
    for each in frames:
        verify(each)
    return frames


@given(layout=layouts, data=st.data(), parent=st.none() | st.just(B), codec=st.sampled_from([Codec.RAW, Codec.LZ4]))
def test_what_goes_in_comes_out(layout: KvLayout, data: st.DataObject, parent: BlockKey | None, codec: Codec) -> None:
    layers = data.draw(st.integers(1, layout.all_layers))
    frames = [
        seal(A, layer, bytes(layout.entry_bytes(layer)), codec, layout.entry_shape(layer))
        for layer in iter_layers(layers)
    ]
    packed = pack(A, parent, layout, reversed(frames))
    content = packed.raw + b"".join(f.payload for f in frames)
    assert len(content) == packed.total_bytes
    header = parse(content[:HEAD_BYTES], len(content))
    assert header == packed
    assert (header.key, header.parent, header.layout, header.layers) == (A, parent, layout, layers)
    assert read_all(content) == frames


def test_every_truncation_is_noticed() -> None:
    header, content = written()
    for size in range(len(content)):
        with pytest.raises(CorruptFrame):
            parse(content[:size], size)
    with pytest.raises(CorruptFrame, match="its header says"):
        parse(content, header.total_bytes + 1)


def test_every_flipped_bit_is_noticed() -> None:
    _, content = written(layers=0b101)
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptFrame):
            read_all(bytes(damaged))
    assert len(read_all(content)) == 2


@given(st.binary(max_size=300))
def test_garbage_is_none_of_ours(data: bytes) -> None:
    with pytest.raises(CorruptFrame):
        parse(data, len(data))


def test_a_frame_that_is_not_intact_is_never_packed() -> None:
    good = frame(A, 0)
    with pytest.raises(CorruptFrame):
        pack(A, None, LAYOUT, [Frame(A, 0, good.codec, good.fidelity, good.raw_bytes, bytes(64), good.checksum)])


def test_headers_say_how_long_they_are() -> None:
    layout = KvLayout(tuple(LayerSpec(n + 1, 1, 1) for n in range(256)), "bfloat16", 1)
    header, content = written(layers=layout.all_layers, layout=layout)
    assert header_size(content[:HEAD_BYTES]) == len(header.raw) > HEAD_BYTES
    with pytest.raises(CorruptFrame, match="of a header of"):
        parse(content[:HEAD_BYTES], len(content))
    assert parse(content[: len(header.raw)], len(content)) == header


def test_names_are_those_of_blocks() -> None:
    assert key_of_path(object_path(A)) == A
    for name in (
        "",
        "x",
        A.hex(),
        f"00/{A.hex()}",
        object_path(A) + "#1",
        object_path(A).upper(),
        f"a/{object_path(A)}",
    ):
        assert key_of_path(name) is None, name


def big_layout(num_layers: int, dtype: Dtype = "bfloat16") -> KvLayout:
    return KvLayout((LayerSpec(None, 3, 64),) * num_layers, dtype, 64)


def test_ranges_cover_what_is_wanted_once_and_grow() -> None:
    layout = big_layout(64)  # entries of 48 KiB
    header, _ = written(layout=layout, layers=layout.all_layers)
    parts = ranges(header, layout.all_layers)
    assert [entry.layer for part in parts for entry in part.entries] == list(range(64))
    assert [part.stage for part in parts] == list(range(len(parts)))
    assert len(parts[0].entries) == FIRST_BYTES // layout.entry_bytes(0)
    assert all(part.length <= LAST_BYTES for part in parts)
    assert [part.length for part in parts[:-1]] == sorted(part.length for part in parts[:-1])
    assert len(parts) == 6


def test_ranges_leave_out_what_is_not_wanted_or_not_there() -> None:
    header, _ = written(layers=0b101)
    assert [part.layers for part in ranges(header, 0b111)] == [0b101], "stored side by side"
    header, _ = written(layers=0b111)
    assert [part.layers for part in ranges(header, 0b101)] == [0b001, 0b100]
    assert ranges(header, 0) == []
    huge = KvLayout((LayerSpec(None, 64, 256),) * 2, "float32", 64)
    header, _ = written(layers=0b11, layout=huge)
    assert [part.layers for part in ranges(header, 0b11)] == [0b01, 0b10], "an entry is never split"
