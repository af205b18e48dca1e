"""Lossy classes: numbers as small integers, in steps of their channel (keys) or of their token and head (values).

Which numbers share a step follows KIVI (arXiv 2402.02750) and KVQuant (2401.18079). As in CacheGen (2310.07240) the
integers are entropy-coded: a step then costs what its precision is worth, and need not fill four or eight bits. Keys
are taken relative to their channel's mean in the block, which for some channels is many times their spread.

Payload: version, kind, counts; the tokens that are kept whole; then, compressed, steps and offsets, the keys' integers,
the values' integers. An entry that has no such form (infinities, ranges beyond all steps) is kept whole, as the
lossless codec has it.
"""

import struct
from typing import NamedTuple

import numpy as np

from shared.errors import CorruptFrame
from shared.kv.codec import planes
from shared.kv.codec.entropy import expand, squeeze
from shared.kv.codec.names import Codec, Payload
from shared.kv.codec.steps import quantise, restore
from shared.kv.layout import EntryShape

_VERSION = 1
_QUANTISED, _WHOLE = 0, 1
_HEADER = struct.Struct("<BBHII")  # version, kind, tokens kept whole, bytes of the compressed steps, of the keys


class Shares(NamedTuple):
    """How coarse a class is: the step as a share of what a channel or a head holds."""

    keys: float  # of the channel's standard deviation in this block
    values: float  # of the root mean square of a token in a head


SHARES = {Codec.INT8: Shares(0.04, 0.04), Codec.INT4: Shares(0.24, 0.54)}


def encode(raw: Payload, codec: Codec, shape: EntryShape, num_whole: int) -> bytes:
    """Return one entry as integers, its first `num_whole` tokens as they are."""
    words = np.frombuffer(raw, np.uint8).reshape(2, shape.block_tokens, -1)
    shares = SHARES[codec]
    found = None
    if num_whole < shape.block_tokens:
        found = quantise(words[:, num_whole:], shape, shares.keys, shares.values)
    if found is None:
        return _HEADER.pack(_VERSION, _WHOLE, 0, 0, 0) + planes.encode(raw, Codec.ZSTD, shape)
    steps = squeeze(b"".join((found.codes.data, found.offsets.astype("<i2").data)))
    parts = squeeze(found.numbers[0].data), squeeze(found.numbers[1].data)  # each with the Huffman codes that fit it
    header = _HEADER.pack(_VERSION, _QUANTISED, num_whole, len(steps), len(parts[0]))
    return b"".join((header, words[:, :num_whole].tobytes(), steps, *parts))


def decode(payload: Payload, shape: EntryShape) -> Payload:
    """Undo `encode`. Raises `CorruptFrame`."""
    if len(payload) < _HEADER.size:
        raise CorruptFrame("a payload without a header")
    version, kind, num_whole, step_bytes, key_bytes = _HEADER.unpack_from(payload)
    body = memoryview(payload)[_HEADER.size :]
    if version != _VERSION or kind not in (_QUANTISED, _WHOLE) or num_whole >= shape.block_tokens:
        raise CorruptFrame(f"a payload of version {version} and kind {kind} is not this entry's")
    if kind == _WHOLE:
        return planes.decode(body, Codec.ZSTD, shape)
    words = np.empty((2, shape.block_tokens, shape.num_bytes // (2 * shape.block_tokens)), np.uint8)
    first = words[:, :num_whole].nbytes
    ends = first, first + step_bytes, first + step_bytes + key_bytes
    if len(body) < ends[2]:
        raise CorruptFrame("a payload that ends early")
    channels, num_tokens = shape.num_kv_heads * shape.head_dim, shape.block_tokens - num_whole
    num_codes, num_keys = channels + num_tokens * shape.num_kv_heads, num_tokens * channels
    side = np.frombuffer(expand(body[first : ends[1]], num_codes + 2 * channels), np.uint8)
    keys = np.frombuffer(expand(body[ends[1] : ends[2]], num_keys), np.uint8)
    values = np.frombuffer(expand(body[ends[2] :], num_keys), np.uint8)
    words[:, :num_whole] = np.frombuffer(body[:first], np.uint8).reshape(2, num_whole, words.shape[2])
    offsets = np.frombuffer(side[num_codes:].tobytes(), "<i2").astype(np.int16)
    restore(keys, values, side[:num_codes], offsets, shape, words[:, num_whole:])
    return words.reshape(-1).data
