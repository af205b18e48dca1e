"""Wire messages to the suite's own types and back. What comes from a peer is validated here, once."""

from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby
from typing import cast

from shared.errors import BadRequest, CorruptFrame, Internal
from shared.ids import BlockKey, Datacenter
from shared.kv.codec import Codec, Fidelity
from shared.kv.entries import BlockEntries, Source
from shared.kv.frame import Frame
from shared.kv.hashing import KEY_BYTES
from shared.kv.layout import MAX_LAYERS, Dtype, KvLayout, LayerSpec
from shared.proto import prfaas_pb2 as pb

MAX_BATCH_BYTES = 1024 * 1024
"""Frames are grouped to about this size: loopback gRPC moves 1 MiB messages twice as fast as 64 KiB ones."""


@lru_cache(maxsize=4096)  # requests name thousands of blocks and a handful of masks
def mask_to_bytes(mask: int) -> bytes:
    """Encode a layer bitmask, little-endian, without trailing zeros."""
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


@lru_cache(maxsize=4096)
def mask_from_bytes(data: bytes) -> int:
    """Decode a layer bitmask. Raises `BadRequest` when it names impossible layers."""
    if len(data) > MAX_LAYERS // 8:
        raise BadRequest(f"a layer mask has at most {MAX_LAYERS} bits")
    return int.from_bytes(data, "little")


def masks_from_bytes(data: Iterable[bytes]) -> list[int]:
    """Decode layer bitmasks, as `mask_from_bytes` does one by one. Raises `BadRequest`."""
    encoded = list(data)
    masks = {mask: mask_from_bytes(mask) for mask in set(encoded)}
    return [masks[mask] for mask in encoded]


def lookup_to_message(masks: Iterable[int]) -> pb.LookupReply:
    """Encode the layer bitmasks of looked up blocks as runs of equal ones."""
    runs = [(mask, len(list(run))) for mask, run in groupby(masks)]
    return pb.LookupReply(present=[mask_to_bytes(mask) for mask, _ in runs], num_keys=[count for _, count in runs])


def lookup_from_message(message: pb.LookupReply, num_keys: int) -> list[int]:
    """Return the layer bitmask of each of the `num_keys` blocks that were asked for. Raises `Internal`."""
    if len(message.present) != len(message.num_keys) or sum(message.num_keys) != num_keys:
        raise Internal(f"a pool answered for {sum(message.num_keys)} keys, it was asked for {num_keys}")
    masks: list[int] = []
    for data, count in zip(message.present, message.num_keys, strict=True):
        masks += [mask_from_bytes(data)] * count
    return masks


def key_from_bytes(data: bytes) -> BlockKey:
    """Check the length of a block key."""
    if len(data) != KEY_BYTES:
        raise BadRequest(f"a block key has {KEY_BYTES} bytes, not {len(data)}")
    return BlockKey(data)


def keys_from_bytes(keys: Iterable[bytes]) -> list[BlockKey]:
    """Check the lengths of block keys, as `key_from_bytes` does one by one."""
    checked = list(keys)
    if set(map(len, checked)) - {KEY_BYTES}:
        raise BadRequest(f"a block key has {KEY_BYTES} bytes")
    return cast(list[BlockKey], checked)


@lru_cache(maxsize=64)  # a process meets a few layouts, in every request
def layout_to_message(layout: KvLayout) -> pb.Layout:
    """Return a message that callers share: it is copied into theirs, never changed."""
    layers = [pb.Layer(window=s.window or 0, num_kv_heads=s.num_kv_heads, head_dim=s.head_dim) for s in layout.layers]
    return pb.Layout(layers=layers, dtype=layout.dtype, block_tokens=layout.block_tokens)


def layout_from_message(message: pb.Layout) -> KvLayout:
    """Raises `BadRequest` (from `KvLayout`) when a field is out of range."""
    return _parsed_layout(message.SerializeToString(deterministic=True))


@lru_cache(maxsize=64)  # equal requests get one object, whose hash and groups are computed once
def _parsed_layout(data: bytes) -> KvLayout:
    message = pb.Layout.FromString(data)
    layers = tuple(LayerSpec(m.window or None, m.num_kv_heads, m.head_dim) for m in message.layers)
    return KvLayout(layers, cast(Dtype, message.dtype), message.block_tokens)


def entries_to_messages(blocks: Iterable[BlockEntries]) -> list[pb.BlockEntries]:
    return [pb.BlockEntries(key=block.key, layers=mask_to_bytes(block.layers)) for block in blocks]


def entries_from_messages(messages: Iterable[pb.BlockEntries]) -> list[BlockEntries]:
    blocks = [BlockEntries(BlockKey(m.key), mask_from_bytes(m.layers)) for m in messages]
    keys_from_bytes(key for key, _ in blocks)
    return blocks


def sources_to_messages(sources: Iterable[Source]) -> list[pb.Source]:
    return [pb.Source(first=s.first, end=s.end, dc=s.dc, nodes=s.nodes) for s in sources]


def sources_from_messages(messages: Iterable[pb.Source]) -> list[Source]:
    sources = [Source(m.first, m.end, Datacenter(m.dc), tuple(m.nodes)) for m in messages]
    if any(s.first >= s.end or not s.nodes or not all(s.nodes) for s in sources):
        raise BadRequest("a source needs addresses of nodes and a range of blocks that is not empty")
    return sources


def add_frames(batch: pb.FrameBatch, frames: Iterable[Frame]) -> None:
    """Append frames to a message in place: protobuf copies a message that is put into another by serialising it."""
    for frame in frames:
        batch.frames.add(
            key=frame.key,
            layer=frame.layer,
            codec=cast(pb.Codec.ValueType, int(frame.codec)),
            fidelity=cast(pb.Fidelity.ValueType, int(frame.fidelity)),
            raw_bytes=frame.raw_bytes,
            checksum=frame.checksum,
            payload=frame.payload,
        )


def frame_from_message(message: pb.Frame) -> Frame:
    """Does not verify the checksum (`shared.kv.frame.verify` does). Raises `CorruptFrame` for an unknown codec."""
    try:
        codec, fidelity = Codec(message.codec), Fidelity(message.fidelity)
    except ValueError as error:
        raise CorruptFrame(str(error)) from error
    key = BlockKey(message.key)
    return Frame(key, message.layer, codec, fidelity, message.raw_bytes, message.payload, message.checksum)


def codec_from_message(codec: int, fidelity: Fidelity = Fidelity.LOSSLESS) -> Codec:
    """Return the codec to send with; unspecified means raw.

    Raises `BadRequest`, also for one that loses more than `fidelity` allows.
    """
    try:
        known = Codec(codec or Codec.RAW)
    except ValueError as error:
        raise BadRequest(str(error)) from error
    if not known.spec.fidelity.satisfies(fidelity):
        raise BadRequest(f"codec {known.name} loses more than fidelity {fidelity.name} allows")
    return known


def fidelity_from_message(fidelity: int) -> Fidelity:
    """Return the fidelity that is asked for; unspecified means lossless. Raises `BadRequest`."""
    try:
        return Fidelity(fidelity or Fidelity.LOSSLESS)
    except ValueError as error:
        raise BadRequest(str(error)) from error
