"""Lossless: exponents apart from signs and mantissas, which are noise. Only the exponents are worth compressing.

A bfloat16 number is rotated left by a bit, so that its exponent is its upper byte. LZ4 finds strings in the exponents,
and few repeat; the Huffman codes of Zstandard find what there is. Payload: version, length of the compressed plane,
that plane, all other bytes as they are.
"""

import struct
from collections.abc import Callable
from typing import Any

import lz4.block
import numpy as np
from numpy.typing import NDArray

from shared.errors import CorruptFrame
from shared.kv.codec.entropy import expand, squeeze
from shared.kv.codec.spec import CodecCost, CodecSpec, Fidelity, Payload
from shared.kv.layout import ITEM_BYTES, EntryShape

Words = NDArray[np.unsignedinteger[Any]]
_VERSION = 1
_HEADER = struct.Struct("<BI")  # version, bytes of the compressed plane
_WORDS: dict[int, np.dtype[np.unsignedinteger[Any]]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}


Pack = Callable[[bytes], bytes]
Unpack = Callable[[Payload, int], bytes]


def encode(raw: Payload, shape: EntryShape, pack: Pack) -> bytes:
    """Return one entry with its exponents packed."""
    item_bytes = ITEM_BYTES[shape.dtype]
    words = np.frombuffer(raw, _WORDS[item_bytes])
    rotated = _rotated(words, 1).view(np.uint8).reshape(-1, item_bytes)
    exponents = rotated[:, -1].tobytes()
    packed = pack(exponents)
    return b"".join((_HEADER.pack(_VERSION, len(packed)), packed, rotated[:, :-1].tobytes()))


def decode(payload: Payload, shape: EntryShape, unpack: Unpack) -> memoryview:
    """Undo `encode`. Raises `CorruptFrame`."""
    item_bytes = ITEM_BYTES[shape.dtype]
    num_items = shape.num_bytes // item_bytes
    if len(payload) < _HEADER.size:
        raise CorruptFrame("a payload without a header")
    version, length = _HEADER.unpack_from(payload)
    end = _HEADER.size + length
    if version != _VERSION or len(payload) - end != num_items * (item_bytes - 1):
        raise CorruptFrame(f"a payload of version {version} and {len(payload)} bytes is not this entry's")
    packed = memoryview(payload)[_HEADER.size : end]
    exponents = unpack(packed, num_items)
    rotated = np.empty((num_items, item_bytes), np.uint8)
    rotated[:, -1] = np.frombuffer(exponents, np.uint8)
    rotated[:, :-1] = np.frombuffer(payload, np.uint8, offset=end).reshape(num_items, -1)
    words = rotated.reshape(-1).view(_WORDS[item_bytes])
    return _rotated(words, 8 * item_bytes - 1).view(np.uint8).data


def _rotated(words: Words, left: int) -> Words:
    bits = 8 * words.itemsize
    rotated: Words = np.left_shift(words, left)
    return np.bitwise_or(rotated, np.right_shift(words, bits - left), out=rotated)


def _lz4(data: bytes) -> bytes:
    packed: bytes = lz4.block.compress(data, store_size=False)
    return packed


def _unlz4(packed: Payload, num_bytes: int) -> bytes:
    try:
        data: bytes = lz4.block.decompress(packed, uncompressed_size=num_bytes)
    except (lz4.block.LZ4BlockError, ValueError, OverflowError) as error:
        raise CorruptFrame(f"a compressed part cannot be read: {error}") from error
    if len(data) != num_bytes:
        raise CorruptFrame(f"a compressed part holds {len(data)} bytes, not {num_bytes}")
    return data


LZ4 = CodecSpec(
    Fidelity.LOSSLESS,
    lambda raw, shape, _num_whole: encode(raw, shape, _lz4),
    lambda payload, shape: decode(payload, shape, _unlz4),
    None,  # gains less than Zstandard at the same speed
)
ZSTD = CodecSpec(
    Fidelity.LOSSLESS,
    lambda raw, shape, _num_whole: encode(raw, shape, squeeze),
    lambda payload, shape: decode(payload, shape, expand),
    CodecCost(1.4, 400e6, 600e6),
)
