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
from numpy.typing import NDArray

from shared.errors import CorruptFrame
from shared.kv.codec import planes
from shared.kv.codec.entropy import expand, squeeze
from shared.kv.codec.floats import Floats, from_floats, to_floats
from shared.kv.codec.names import Codec, Payload
from shared.kv.layout import EntryShape

_VERSION = 1
_QUANTISED, _WHOLE = 0, 1
_HEADER = struct.Struct("<BBHII")  # version, kind, tokens kept whole, bytes of the compressed sides and keys
_LARGEST = 127
_LARGEST_OFFSET = 32_000  # of a key channel, in its steps

_PER_OCTAVE, _FIRST_OCTAVE, _NUM_CODES = 4, -40, 256
_STEPS = np.array(
    [2.0 ** (code % _PER_OCTAVE / _PER_OCTAVE + code // _PER_OCTAVE + _FIRST_OCTAVE) for code in range(_NUM_CODES)],
    np.float32,
)
"""The step of each code, a quarter of an octave apart: 2^-40 to 2^24."""


class Steps(NamedTuple):
    """How coarse a class is."""

    keys: float  # times the standard deviation of the channel in this block
    values: float  # times the root mean square of the token in this head


STEPS = {Codec.INT8: Steps(0.04, 0.04), Codec.INT4: Steps(0.36, 0.36)}


def encode(raw: Payload, codec: Codec, shape: EntryShape, num_whole: int) -> bytes:
    """Return one entry as integers, its first `num_whole` tokens as they are."""
    floats = to_floats(raw, shape.dtype).reshape(2, shape.block_tokens, -1)[:, num_whole:]
    if not _has_finite_squares(floats):
        return _kept_whole(raw, shape)
    keys, values = floats[0], floats[1].reshape(-1, shape.head_dim)
    steps = STEPS[codec]
    mean = keys.mean(axis=0)
    square = np.einsum("tc,tc->c", keys, keys) / len(keys) - mean * mean
    key_codes = _codes(
        np.sqrt(np.maximum(square, 0)) * steps.keys,
        np.maximum(keys.max(axis=0) - mean, mean - keys.min(axis=0)) / _LARGEST,
        np.abs(mean) / _LARGEST_OFFSET,
    )
    value_codes = _codes(
        np.sqrt(np.einsum("rd,rd->r", values, values) / shape.head_dim) * steps.values,
        np.maximum(values.max(axis=1), -values.min(axis=1)) / _LARGEST,
    )
    if key_codes is None or value_codes is None:
        return _kept_whole(raw, shape)
    key_steps = _STEPS[key_codes]
    offsets = np.rint(mean / key_steps)
    keys *= 1 / key_steps
    keys -= offsets
    values *= 1 / _STEPS[value_codes][:, None]
    numbers = np.rint(floats, out=floats).astype(np.int8)
    words = np.frombuffer(raw, np.uint8).reshape(2, shape.block_tokens, -1)
    side = squeeze(b"".join((key_codes.data, value_codes.data, offsets.astype("<i2").data)))
    parts = squeeze(numbers[0].data), squeeze(numbers[1].data)  # each with the Huffman codes that fit it
    header = _HEADER.pack(_VERSION, _QUANTISED, num_whole, len(side), len(parts[0]))
    return b"".join((header, words[:, :num_whole].tobytes(), side, *parts))


def decode(payload: Payload, shape: EntryShape) -> Payload:
    """Undo `encode`. Raises `CorruptFrame`."""
    if len(payload) < _HEADER.size:
        raise CorruptFrame("a payload without a header")
    version, kind, num_whole, side_bytes, key_bytes = _HEADER.unpack_from(payload)
    body = memoryview(payload)[_HEADER.size :]
    if version != _VERSION or kind not in (_QUANTISED, _WHOLE) or num_whole >= shape.block_tokens:
        raise CorruptFrame(f"a payload of version {version} and kind {kind} is not this entry's")
    if kind == _WHOLE:
        return planes.decode(body, Codec.ZSTD, shape)
    token_bytes = shape.num_bytes // (2 * shape.block_tokens)
    first = 2 * num_whole * token_bytes
    ends = first, first + side_bytes, first + side_bytes + key_bytes
    if len(body) < ends[2]:
        raise CorruptFrame("a payload that ends early")
    parts = body[ends[1] : ends[2]], body[ends[2] :]
    floats = _numbers(parts, body[first : ends[1]], shape, num_whole)
    rest = from_floats(floats, shape.dtype)
    if num_whole == 0:
        return rest
    words = np.empty((2, shape.block_tokens, token_bytes), np.uint8)
    words[:, :num_whole] = np.frombuffer(body[:first], np.uint8).reshape(2, num_whole, -1)
    words[:, num_whole:] = np.frombuffer(rest, np.uint8).reshape(2, -1, token_bytes)
    return words.reshape(-1).data


def _numbers(parts: tuple[Payload, Payload], packed_side: Payload, shape: EntryShape, num_whole: int) -> Floats:
    """Return `[2, tokens, channels]` for the tokens that were not kept whole."""
    num_tokens, num_channels = shape.block_tokens - num_whole, shape.num_kv_heads * shape.head_dim
    num_rows = num_tokens * shape.num_kv_heads
    side = np.frombuffer(expand(packed_side, 3 * num_channels + num_rows), np.uint8)
    key_codes, value_codes = side[:num_channels], side[num_channels : num_channels + num_rows]
    offsets = side[num_channels + num_rows :].view("<i2")
    floats = np.empty((2, num_tokens, num_channels), np.float32)
    for target, part in zip(floats, parts, strict=True):
        target[:] = np.frombuffer(expand(part, num_tokens * num_channels), np.int8).reshape(target.shape)
    floats[0] += offsets
    floats[0] *= _STEPS[key_codes]
    floats[1].reshape(-1, shape.head_dim)[:] *= _STEPS[value_codes][:, None]
    return floats


def _codes(*least: Floats) -> NDArray[np.uint8] | None:
    """Return the code of the smallest step that is none of `least` smaller; None where there is none."""
    codes = np.asarray(np.searchsorted(_STEPS, np.maximum.reduce(least)))
    return codes.astype(np.uint8) if codes.max() < _NUM_CODES else None


def _kept_whole(raw: Payload, shape: EntryShape) -> bytes:
    return _HEADER.pack(_VERSION, _WHOLE, 0, 0, 0) + planes.encode(raw, Codec.ZSTD, shape)


def _has_finite_squares(floats: Floats) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        return floats.size > 0 and bool(np.isfinite(np.einsum("ptc,ptc->", floats, floats)))
