"""The unit that is stored, sent and checked: one block's KV in one layer, sealed by its source."""

import struct
from dataclasses import dataclass

import xxhash

from shared.errors import CorruptFrame
from shared.ids import BlockKey
from shared.kv.codec import FIDELITY_OF, Codec, EntryShape, Fidelity, Payload, decode, encode
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


def seal(
    key: BlockKey, layer: int, raw: Payload, codec: Codec, shape: EntryShape | None = None, num_whole: int = 0
) -> Frame:
    """Encode `raw` and seal it. For the engine that computed the KV: later hops pass frames on as they are.

    The codec decides the fidelity. `shape` and `num_whole` are those of `shared.kv.codec.encode`.
    """
    payload = encode(raw, codec, shape, num_whole)
    fidelity, num_bytes = FIDELITY_OF[codec], len(raw)
    return Frame(
        key, layer, codec, fidelity, num_bytes, payload, _digest(key, layer, codec, fidelity, num_bytes, payload)
    )


def verify(frame: Frame) -> None:
    """Raise `CorruptFrame` unless header and payload are what the source sealed."""
    if len(frame.key) != KEY_BYTES or not 0 <= frame.layer < MAX_LAYERS or not 0 < frame.raw_bytes <= MAX_RAW_BYTES:
        raise CorruptFrame(f"impossible frame header: layer {frame.layer}, {frame.raw_bytes} bytes")
    if _checksum(frame) != frame.checksum:
        raise CorruptFrame(f"checksum of block {frame.key.hex()[:12]} layer {frame.layer} does not match")


def open_frame(frame: Frame, shape: EntryShape | None = None, at_least: Fidelity = Fidelity.LOSSLESS) -> Payload:
    """Verify and decode: the only way from a frame to bytes that a model may read.

    Raises `CorruptFrame` when the frame is not what its source sealed, is not an entry of `shape`, or is of a lower
    fidelity than asked for: the key of a lossy entry is another one, so that its holder has mixed them up.
    """
    verify(frame)
    if FIDELITY_OF[frame.codec] is not frame.fidelity or not frame.fidelity.satisfies(at_least):
        raise CorruptFrame(f"{frame.codec.name} of {frame.fidelity.name} where {at_least.name} was asked for")
    raw = decode(frame.payload, frame.codec, shape)
    if len(raw) != frame.raw_bytes:
        raise CorruptFrame(f"payload decodes to {len(raw)} bytes, its header says {frame.raw_bytes}")
    return raw


def _checksum(frame: Frame) -> int:
    return _digest(frame.key, frame.layer, frame.codec, frame.fidelity, frame.raw_bytes, frame.payload)


def _digest(key: BlockKey, layer: int, codec: Codec, fidelity: Fidelity, raw_bytes: int, payload: Payload) -> int:
    digest = xxhash.xxh3_64(_HEADER.pack(key, layer, codec, fidelity, raw_bytes))
    digest.update(payload)
    return digest.intdigest()
