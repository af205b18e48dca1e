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
from shared.kv.codec.spec import CodecCost, CodecSpec, Fidelity, Payload
from shared.kv.codec.steps import quantise, restore, side_bytes
from shared.kv.layout import EntryShape

_VERSION = 2
_QUANTISED, _WHOLE = 0, 1
_HEADER = struct.Struct("<BBHII")  # version, kind, tokens kept whole, bytes of compressed steps and offsets, of keys


class StepShares(NamedTuple):
    """How coarse a class is: the step as a share of what a channel or a head holds."""

    keys: float  # of the channel's standard deviation in this block
    values: float  # of the root mean square of a token in a head


INT8_SHARES, INT4_SHARES = StepShares(0.04, 0.04), StepShares(0.24, 0.54)


def encode(raw: Payload, shape: EntryShape, num_whole: int, shares: StepShares) -> bytes:
    """Return one entry as integers, its first `num_whole` tokens as they are."""
    found = None
    if num_whole < shape.block_tokens and shape.is_kv:
        found = quantise(raw, shape, num_whole, *shares)
    if found is None:
        return _HEADER.pack(_VERSION, _WHOLE, 0, 0, 0) + planes.encode(raw, shape, squeeze)
    side = squeeze(found.side.data)
    keys, values = squeeze(found.numbers[0].data), squeeze(found.numbers[1].data)  # each has codes that fit it
    header = _HEADER.pack(_VERSION, _QUANTISED, num_whole, len(side), len(keys))
    return b"".join((header, *(raw[part] for part in shape.slices(num_whole)), side, keys, values))


def decode(payload: Payload, shape: EntryShape) -> Payload:
    """Undo `encode`. Raises `CorruptFrame`."""
    if len(payload) < _HEADER.size:
        raise CorruptFrame("a payload without a header")
    version, kind, num_whole, side_size, key_size = _HEADER.unpack_from(payload)
    body = memoryview(payload)[_HEADER.size :]
    if version != _VERSION or kind not in (_QUANTISED, _WHOLE) or num_whole >= shape.block_tokens:
        raise CorruptFrame(f"a payload of version {version} and kind {kind} is not this entry's")
    if kind == _WHOLE:
        return planes.decode(body, shape, expand)
    if not shape.is_kv:
        raise CorruptFrame("integers of K and V where the entry has other parts")
    parts, first = shape.slices(num_whole), shape.tokens_bytes(num_whole)
    ends = first, first + side_size, first + side_size + key_size
    if len(body) < ends[2]:
        raise CorruptFrame("a payload that ends early")
    num_tokens = shape.block_tokens - num_whole
    num_keys = num_tokens * shape.parts[0].width
    side = expand(body[first : ends[1]], side_bytes(shape, num_tokens))
    keys, values = expand(body[ends[1] : ends[2]], num_keys), expand(body[ends[2] :], num_keys)
    out = np.empty(shape.num_bytes, np.uint8)
    out.data[parts[0]], out.data[parts[1]] = body[: first // 2], body[first // 2 : first]
    restore(keys, values, side, shape, num_whole, out)
    return out.data


INT8 = CodecSpec(
    Fidelity.INT8,
    lambda raw, shape, num_whole: encode(raw, shape, num_whole, INT8_SHARES),
    decode,
    CodecCost(2.2, 300e6, 600e6),
)
INT4 = CodecSpec(
    Fidelity.INT4,
    lambda raw, shape, num_whole: encode(raw, shape, num_whole, INT4_SHARES),
    decode,
    CodecCost(4.3, 400e6, 600e6),
)
