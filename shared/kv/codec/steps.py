"""Numbers to small integers and back: which share a step, and how large it is. In NumPy, and for bfloat16 in C.

Both ways make the same bytes: sums are taken in one order, token by token for a channel, in 16 lanes for a row.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.kv.codec.floats import Floats, from_floats, to_floats
from shared.kv.codec.native import load_kernels, readable
from shared.kv.codec.spec import Payload
from shared.kv.layout import EntryShape
from shared.native import address_of

LARGEST = np.float32(126)  # and half a step more, where an offset was rounded
LARGEST_OFFSET = np.float32(32_000)  # of a key channel, in its steps
LIMIT = np.float32(2**24)
"""Numbers from here on have no step."""

_LANES = 16
_PER_OCTAVE, _FIRST_OCTAVE, _NUM_CODES = 4, -40, 256
STEPS = np.array(
    [2.0 ** (code % _PER_OCTAVE / _PER_OCTAVE + code // _PER_OCTAVE + _FIRST_OCTAVE) for code in range(_NUM_CODES)],
    np.float32,
)
"""The step of each code, a quarter of an octave apart: 2^-40 to 2^24."""

Bytes = NDArray[np.uint8]


_STEPS_AT = address_of(STEPS)


class Quantised(NamedTuple):
    """K and V as integers, and what they are steps of."""

    numbers: Bytes  # `[2, tokens, channels]`: 0, -1, 1, -2, 2 ... as 0, 1, 2, 3, 4
    side: Bytes  # the key channels' offsets in their steps, in int16; then codes of the channels and of tokens' heads


def side_bytes(shape: EntryShape, num_tokens: int) -> int:
    """Return the size of `Quantised.side`."""
    keys, values = shape.parts
    return 3 * keys.width + num_tokens * values.num_heads


def quantise(raw: Payload, shape: EntryShape, num_whole: int, key_share: float, value_share: float) -> Quantised | None:
    """Quantise an entry from token `num_whole` on. None when a number is too large or none at all.

    A channel of the keys has a step of `key_share` standard deviations or more, as its largest number needs; a head of
    a token's values has one of `value_share` times its root mean square, or more.
    """
    kernels = load_kernels() if _fits_kernels(shape) else None
    if kernels is None:
        return quantise_in_numpy(raw, shape, num_whole, key_share, value_share)
    num_tokens, (_, num_heads, head_dim) = shape.block_tokens - num_whole, shape.parts[0]
    channels = num_heads * head_dim
    end = side_bytes(shape, num_tokens)
    found = np.empty(end + 2 * num_tokens * channels, np.uint8)
    at = address_of(found)
    failed = kernels.prfaas_quantise(
        readable(raw), _STEPS_AT, shape.block_tokens, num_whole, num_heads, head_dim,
        key_share, value_share, at, at + end,
    )  # fmt: skip
    return None if failed else Quantised(found[end:].reshape(2, num_tokens, channels), found[:end])


def restore(keys: bytes, values: bytes, side: bytes, shape: EntryShape, num_whole: int, out: Bytes) -> None:
    """Write what the integers stand for to the entry `out`, from token `num_whole` on."""
    kernels = load_kernels() if _fits_kernels(shape) else None
    if kernels is None:
        restore_in_numpy(keys, values, side, shape, num_whole, out)
        return
    _, num_heads, head_dim = shape.parts[0]
    kernels.prfaas_restore(
        keys, values, _STEPS_AT, side, shape.block_tokens, num_whole, num_heads, head_dim,
        address_of(out),
    )  # fmt: skip


def quantise_in_numpy(
    raw: Payload, shape: EntryShape, num_whole: int, key_share: float, value_share: float
) -> Quantised | None:
    """`quantise` for any dtype and width."""
    num_tokens, head_dim = shape.block_tokens - num_whole, shape.parts[1].head_dim
    floats = to_floats(raw, shape.dtype).reshape(2, shape.block_tokens, -1)[:, num_whole:]
    if not np.abs(floats).max() < LIMIT:
        return None
    keys, values = floats[0], floats[1].reshape(-1, head_dim)
    mean = keys.sum(axis=0) / np.float32(num_tokens)
    square = (keys * keys).sum(axis=0) / np.float32(num_tokens) - mean * mean
    reach = np.maximum(keys.max(axis=0) - mean, mean - keys.min(axis=0)) / LARGEST
    least = np.maximum(np.sqrt(np.maximum(square, 0)) * np.float32(key_share), reach)
    key_codes = _codes(np.maximum(least, np.abs(mean) / LARGEST_OFFSET))
    size = np.sqrt(_row_sums(values * values) / np.float32(head_dim))
    value_codes = _codes(np.maximum(size * np.float32(value_share), np.abs(values).max(axis=1) / LARGEST))
    offsets = np.rint(mean / STEPS[key_codes])
    keys *= 1 / STEPS[key_codes]
    keys -= offsets
    values *= 1 / STEPS[value_codes][:, None]
    numbers = np.rint(floats, out=floats).astype(np.int16)
    folded = (numbers << 1 ^ numbers >> 15).astype(np.uint8)
    return Quantised(folded, np.concatenate((offsets.astype("<i2").view(np.uint8), key_codes, value_codes)))


def restore_in_numpy(keys: bytes, values: bytes, side: bytes, shape: EntryShape, num_whole: int, out: Bytes) -> None:
    """`restore` for any dtype and width."""
    (_, num_heads, head_dim), num_tokens = shape.parts[0], shape.block_tokens - num_whole
    channels = num_heads * head_dim
    folded = np.frombuffer(keys + values, np.uint8).astype(np.int16)
    floats = (folded >> 1 ^ -(folded & 1)).astype(np.float32).reshape(2, num_tokens, channels)
    offsets, codes = np.frombuffer(side, "<i2", channels), np.frombuffer(side, np.uint8, offset=2 * channels)
    floats[0] += offsets
    floats[0] *= STEPS[codes[:channels]]
    floats[1].reshape(-1, head_dim)[:] *= STEPS[codes[channels:]][:, None]
    restored = np.frombuffer(from_floats(floats, shape.dtype), np.uint8).reshape(2, num_tokens, -1)
    out.reshape(2, shape.block_tokens, -1)[:, num_whole:] = restored


def _row_sums(rows: Floats) -> Floats:
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % _LANES)))
    sums: Floats = padded.reshape(len(rows), -1, _LANES).sum(axis=1)
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0]


def _codes(least: Floats) -> Bytes:
    """Return the code of the smallest step that is not below `least`."""
    return np.asarray(np.searchsorted(STEPS, least)).astype(np.uint8)


def _fits_kernels(shape: EntryShape) -> bool:
    return shape.dtype == "bfloat16" and shape.parts[0].head_dim % _LANES == 0
