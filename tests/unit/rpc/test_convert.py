"""Messages to types and back, and what is refused on the way in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadRequest, CorruptFrame, Internal
from shared.ids import BlockKey, Datacenter
from shared.kv.codec import Codec, EntryShape, Fidelity
from shared.kv.entries import BlockEntries, Source
from shared.kv.frame import open_frame, seal
from shared.kv.layout import KvLayout, LayerSpec
from shared.proto import prfaas_pb2 as pb
from shared.rpc.convert import (
    add_frames,
    codec_from_message,
    entries_from_messages,
    entries_to_messages,
    fidelity_from_message,
    frame_from_message,
    layout_from_message,
    layout_to_message,
    lookup_from_message,
    lookup_to_message,
    mask_from_bytes,
    mask_to_bytes,
    masks_from_bytes,
    sources_from_messages,
    sources_to_messages,
)

KEY = BlockKey(bytes(range(32)))


@given(st.integers(0, (1 << 512) - 1))
def test_masks_survive(mask: int) -> None:
    assert mask_from_bytes(mask_to_bytes(mask)) == mask
    assert masks_from_bytes([mask_to_bytes(mask), b"\x01", mask_to_bytes(mask)]) == [mask, 1, mask]


@given(st.lists(st.sampled_from([0, 1, (1 << 30) - 1])))
def test_an_answer_to_a_lookup_survives(masks: list[int]) -> None:
    message = lookup_to_message(masks)
    assert lookup_from_message(message, len(masks)) == masks
    assert len(message.present) <= len(masks)


@pytest.mark.parametrize("runs", [[2], [2, 1], [1 << 31, 1 << 31], [1]])
def test_an_answer_that_is_not_for_all_keys_is_refused(runs: list[int]) -> None:
    with pytest.raises(Internal):
        lookup_from_message(pb.LookupReply(present=[b"\1", b""], num_keys=runs), 4)


def test_the_rest_survives() -> None:
    layout = KvLayout((LayerSpec(None, 3, 64), LayerSpec(512, 1, 256)), "bfloat16", 32)
    assert layout_from_message(layout_to_message(layout)).hash == layout.hash
    blocks = [BlockEntries(KEY, 0b101), BlockEntries(BlockKey(bytes(32)), 0)]
    assert entries_from_messages(entries_to_messages(blocks)) == blocks
    sources = [Source(0, 3, Datacenter("east"), ("a:1",)), Source(3, 9, Datacenter("west"), ("b:2", "c:3"))]
    assert sources_from_messages(sources_to_messages(sources)) == sources
    batch = pb.FrameBatch()
    shape = EntryShape.of_kv(1, 1, 1, "bfloat16")
    add_frames(batch, [seal(KEY, 1, bytes(4), codec, shape) for codec in Codec])
    opened = [open_frame(frame_from_message(m), shape, Fidelity.INT4) for m in batch.frames]
    assert opened == [bytes(4)] * len(Codec)
    assert codec_from_message(0) is Codec.RAW
    assert codec_from_message(Codec.INT8, Fidelity.INT4) is Codec.INT8
    assert fidelity_from_message(0) is Fidelity.LOSSLESS


@pytest.mark.parametrize(
    "convert",
    [
        lambda: mask_from_bytes(bytes(65)),
        lambda: entries_from_messages([pb.BlockEntries(key=b"short")]),
        lambda: sources_from_messages([pb.Source(first=3, end=3, nodes=["a:1"])]),
        lambda: sources_from_messages([pb.Source(first=0, end=3)]),
        lambda: sources_from_messages([pb.Source(first=0, end=3, nodes=["a:1", ""])]),
        lambda: layout_from_message(pb.Layout()),
        lambda: codec_from_message(99),
        lambda: codec_from_message(Codec.INT8),
        lambda: codec_from_message(Codec.INT4, Fidelity.INT8),
        lambda: fidelity_from_message(99),
    ],
)
def test_what_a_peer_may_not_send(convert) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadRequest):
        convert()


def test_a_frame_of_an_unknown_codec_is_corrupt() -> None:
    with pytest.raises(CorruptFrame):
        frame_from_message(pb.Frame(key=KEY, codec=pb.CODEC_RAW, raw_bytes=1))  # no fidelity
