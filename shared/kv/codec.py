"""How an entry's bytes travel: `raw`, or `lz4` over byte planes. Both are lossless."""

from enum import IntEnum

import lz4.block

from shared.errors import CorruptFrame

Payload = bytes | memoryview


class Codec(IntEnum):
    """The numbers are those of the wire enum `prfaas.v1.Codec`."""

    RAW = 1
    LZ4 = 2


class Fidelity(IntEnum):
    """What decoding gives back. A lossy entry never poses as a lossless one (`prfaas.v1.Fidelity`)."""

    LOSSLESS = 1


_PLANES = 2  # bfloat16 and float32 halves: sign and exponent bytes repeat, mantissa bytes do not


def encode(raw: Payload, codec: Codec) -> Payload:
    """Return `raw` in the codec's form. Runs off the event loop: LZ4 takes about 1 ms per MiB."""
    if codec is Codec.RAW:
        return raw
    compressed: bytes = lz4.block.compress(_to_planes(bytes(raw)), store_size=False)
    return compressed


def decode(payload: Payload, codec: Codec, raw_bytes: int) -> Payload:
    """Undo `encode`. Raises `CorruptFrame` when the payload does not decode to exactly `raw_bytes` bytes."""
    if codec is Codec.RAW:
        raw: Payload = payload
    else:
        try:
            raw = _from_planes(lz4.block.decompress(payload, uncompressed_size=raw_bytes))
        except (lz4.block.LZ4BlockError, ValueError, OverflowError) as error:
            raise CorruptFrame(f"payload does not decode as {codec.name.lower()}: {error}") from error
    if len(raw) != raw_bytes:
        raise CorruptFrame(f"payload decodes to {len(raw)} bytes, its header says {raw_bytes}")
    return raw


def _to_planes(raw: bytes) -> bytes:
    """Group the even and the odd bytes, so that LZ4 finds the repeats in one of the planes."""
    return b"".join(raw[plane::_PLANES] for plane in range(_PLANES))


def _from_planes(planes: bytes) -> bytes:
    half = (len(planes) + 1) // _PLANES
    raw = bytearray(len(planes))
    raw[0::_PLANES] = planes[:half]
    raw[1::_PLANES] = planes[half:]
    return bytes(raw)
