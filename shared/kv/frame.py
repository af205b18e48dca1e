"""The unit that is stored, sent and checked: one block's KV in one layer, sealed by its source."""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from shared.errors import CorruptFrame
from shared.ids import BlockKey
from shared.kv.codec import Codec, EntryShape, Fidelity, Payload, decode, encode
from shared.kv.hashing import KEY_BYTES
from shared.kv.layout import MAX_LAYERS
from shared.kv.payloads import digest, digests

MAX_RAW_BYTES = 64 * 1024 * 1024
_HEADER = struct.Struct("<32sHBBI")  # key, layer, codec, fidelity, raw_bytes
_RAW, _LOSSLESS = Codec.RAW, Fidelity.LOSSLESS  # to look a member up in its Enum takes longer than the rest


class Frame(NamedTuple):
    """A sealed (key, layer) entry. A tuple because streams make very many of them: where they do, by `tuple.__new__`,
    which is quicker than the class's own.

    The checksum covers the header and the payload as it travels, so that every hop can check without decoding,
    and a frame that arrives under another key or layer does not pass either.
    """

    key: BlockKey
    layer: int
    codec: Codec
    fidelity: Fidelity
    raw_bytes: int
    payload: Payload  # a view where the frame came in a message that nobody keeps
    checksum: int  # XXH3-64 of the payload, seeded with that of the header


def seal(
    key: BlockKey, layer: int, raw: Payload, codec: Codec, shape: EntryShape | None = None, num_whole: int = 0
) -> Frame:
    """Encode `raw` and seal it. For the engine that computed the KV: later hops pass frames on as they are.

    The codec decides the fidelity. `shape` and `num_whole` are those of `shared.kv.codec.encode`.
    """
    payload = encode(raw, codec, shape, num_whole)
    fidelity, num_bytes = codec.spec.fidelity, len(raw)
    return Frame(
        key, layer, codec, fidelity, num_bytes, payload, _digest(key, layer, codec, fidelity, num_bytes, payload)
    )


def seal_all(
    keys: Sequence[BlockKey], layer: int, payloads: Sequence[Payload], checksums: Sequence[int] | None = None
) -> list[Frame]:
    """Seal entries of one layer in the codec `RAW`, as `seal` does. `payloads` are parallel to `keys`.

    `checksums` are known where the payloads were digested as they were copied: with headers of `raw_headers`.
    """
    pack, new = _HEADER.pack, tuple.__new__
    if checksums is None:
        headers = [pack(key, layer, _RAW, _LOSSLESS, len(raw)) for key, raw in zip(keys, payloads, strict=True)]
        checksums = digests(headers, payloads)
    return [
        new(Frame, (key, layer, _RAW, _LOSSLESS, len(payload), payload, checksum))
        for key, payload, checksum in zip(keys, payloads, checksums, strict=True)
    ]


def raw_headers(keys: Sequence[BlockKey], layer: int, num_bytes: int) -> list[bytes]:
    """Return what the checksums of a layer's entries in the codec `RAW` cover besides their `num_bytes` each."""
    return [_HEADER.pack(key, layer, _RAW, _LOSSLESS, num_bytes) for key in keys]


def headers_of(frames: Sequence[Frame]) -> list[bytes]:
    """Return what frames' checksums cover besides their payloads. No number in the headers is impossible."""
    pack = _HEADER.pack
    return [pack(key, layer, codec, fidelity, num_bytes) for key, layer, codec, fidelity, num_bytes, _, _ in frames]


def with_payload(frame: Frame, payload: Payload) -> Frame:
    """Return the same frame with another copy of its payload: `_replace`, but quicker."""
    key, layer, codec, fidelity, raw_bytes, _, checksum = frame
    return tuple.__new__(Frame, (key, layer, codec, fidelity, raw_bytes, payload, checksum))


def verify(frame: Frame) -> None:
    """Raise `CorruptFrame` unless header and payload are what the source sealed."""
    key, layer, codec, fidelity, raw_bytes, payload, checksum = frame
    if not _is_possible(frame):
        raise CorruptFrame(f"impossible frame header: layer {layer}, {raw_bytes} bytes")
    if _digest(key, layer, codec, fidelity, raw_bytes, payload) != checksum:
        raise CorruptFrame(f"checksum of block {key.hex()[:12]} layer {layer} does not match")


def is_intact(frame: Frame) -> bool:
    """Return whether `verify` lets a frame pass: for who goes on with the others."""
    try:
        verify(frame)
    except CorruptFrame:
        return False
    return True


def verify_all(frames: Sequence[Frame]) -> list[bool]:
    """Return of each frame whether `verify` lets it pass. The interpreter's lock is let go of once for all."""
    if not all(map(_is_possible, frames)):
        return [is_intact(frame) for frame in frames]
    found = digests(headers_of(frames), [frame.payload for frame in frames])
    return [checksum == frame.checksum for checksum, frame in zip(found, frames, strict=True)]


def open_frame(frame: Frame, shape: EntryShape | None = None, at_least: Fidelity = Fidelity.LOSSLESS) -> Payload:
    """Verify and decode: the only way from one frame to bytes that a model may read.

    Raises `CorruptFrame` when the frame is not what its source sealed, is not an entry of `shape`, or is of a lower
    fidelity than asked for: the key of a lossy entry is another one, so that its holder has mixed them up.
    """
    verify(frame)
    if frame.codec.spec.fidelity is not frame.fidelity or not frame.fidelity.satisfies(at_least):
        raise CorruptFrame(f"{frame.codec.name} of {frame.fidelity.name} where {at_least.name} was asked for")
    raw = decode(frame.payload, frame.codec, shape)
    if len(raw) != frame.raw_bytes:
        raise CorruptFrame(f"payload decodes to {len(raw)} bytes, its header says {frame.raw_bytes}")
    return raw


def _is_possible(frame: Frame) -> bool:
    key, layer, _, _, raw_bytes, _, _ = frame
    return len(key) == KEY_BYTES and 0 <= layer < MAX_LAYERS and 0 < raw_bytes <= MAX_RAW_BYTES


def _digest(key: BlockKey, layer: int, codec: Codec, fidelity: Fidelity, raw_bytes: int, payload: Payload) -> int:
    return digest(_HEADER.pack(key, layer, codec, fidelity, raw_bytes), payload)
