"""The unit that is stored, sent and checked: one block's KV in one layer, sealed by its source."""

import struct
from dataclasses import dataclass, replace

import xxhash

from shared.errors import CorruptFrame
from shared.ids import BlockKey
from shared.kv.codec import Codec, Fidelity, Payload, decode, encode
from shared.kv.hashing import KEY_BYTES
from shared.kv.layout import MAX_LAYERS

MAX_RAW_BYTES = 64 * 1024 * 1024
_HEADER = struct.Struct("<32sHBBI")  # key, layer, codec, fidelity, raw_bytes


@dataclass(frozen=True, slots=True)
class Frame:
    """A sealed (key, layer) entry.

    The checksum covers the header and the payload as it travels, so that every hop can check without decoding,
    and a frame that arrives under another key or layer does not pass either.
    """

    key: BlockKey
    layer: int
    codec: Codec
    fidelity: Fidelity
    raw_bytes: int
    payload: Payload  # a view where the frame came in a message that nobody keeps
    checksum: int  # XXH3-64


def seal(key: BlockKey, layer: int, raw: Payload, codec: Codec) -> Frame:
    """Encode `raw` and seal it. For the engine that computed the KV: later hops pass frames on as they are."""
    payload = encode(raw, codec)
    frame = Frame(key, layer, codec, Fidelity.LOSSLESS, len(raw), payload, 0)
    return replace(frame, checksum=_checksum(frame))


def verify(frame: Frame) -> None:
    """Raise `CorruptFrame` unless header and payload are what the source sealed."""
    if len(frame.key) != KEY_BYTES or not 0 <= frame.layer < MAX_LAYERS or not 0 < frame.raw_bytes <= MAX_RAW_BYTES:
        raise CorruptFrame(f"impossible frame header: layer {frame.layer}, {frame.raw_bytes} bytes")
    if _checksum(frame) != frame.checksum:
        raise CorruptFrame(f"checksum of block {frame.key.hex()[:12]} layer {frame.layer} does not match")


def open_frame(frame: Frame) -> Payload:
    """Verify and decode: the only way from a frame to bytes that a model may read."""
    verify(frame)
    return decode(frame.payload, frame.codec, frame.raw_bytes)


def _checksum(frame: Frame) -> int:
    header = _HEADER.pack(frame.key, frame.layer, frame.codec, frame.fidelity, frame.raw_bytes)
    digest = xxhash.xxh3_64(header)
    digest.update(frame.payload)
    return digest.intdigest()
