"""Numbers to small integers and back: which share a step, and how large it is. In NumPy, and for bfloat16 in C.

Both ways make the same bytes: sums are taken in one order, token by token for a channel, in 16 lanes for a row.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.kv.codec.floats import Floats, from_floats, to_floats
from shared.kv.codec.native import load_kernels
from shared.kv.layout import EntryShape

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


@dataclass(frozen=True)
class Quantised:
    """K and V as integers, `[2, tokens, channels]`, with the steps' codes and the key channels' offsets."""

    numbers: NDArray[np.int8]
    codes: Bytes  # of the channels, then of each token's heads
    offsets: NDArray[np.int16]  # of the channels, in their steps


def quantise(raw: Bytes, shape: EntryShape, key_share: float, value_share: float) -> Quantised | None:
    """Quantise `[2, tokens, bytes of a token]`, each half contiguous. None when a number is too large or none at all.

    A channel of the keys has a step of `key_share` standard deviations or more, as its largest number needs; a head of
    a token's values has one of `value_share` times its root mean square, or more.
    """
    kernels = load_kernels() if _fits_kernels(shape) else None
    if kernels is None:
        return quantise_in_numpy(raw, shape, key_share, value_share)
    num_tokens, channels = raw.shape[1], shape.num_kv_heads * shape.head_dim
    codes = np.empty(channels + num_tokens * shape.num_kv_heads, np.uint8)
    offsets, numbers = np.empty(channels, np.int16), np.empty((2, num_tokens, channels), np.int8)
    scratch = np.empty(4 * channels, np.float32)
    failed = kernels.prfaas_quantise(
        _at(raw[0]), _at(raw[1]), _at(STEPS), num_tokens, shape.num_kv_heads, shape.head_dim,
        ctypes.c_float(key_share), ctypes.c_float(value_share),
        _at(codes), _at(offsets), _at(numbers), _at(scratch),
    )  # fmt: skip
    return None if failed else Quantised(numbers, codes, offsets)


def restore(
    keys: Bytes, values: Bytes, codes: Bytes, offsets: NDArray[np.int16], shape: EntryShape, out: Bytes
) -> None:
    """Write what the integers stand for to `out`, `[2, tokens, bytes of a token]`, each half contiguous."""
    kernels = load_kernels() if _fits_kernels(shape) else None
    if kernels is None:
        restore_in_numpy(keys, values, codes, offsets, shape, out)
        return
    scratch = np.empty(2 * shape.num_kv_heads * shape.head_dim, np.float32)
    kernels.prfaas_restore(
        _at(keys), _at(values), _at(STEPS), _at(codes), _at(offsets), out.shape[1], shape.num_kv_heads, shape.head_dim,
        _at(out[0]), _at(out[1]), _at(scratch),
    )  # fmt: skip


def quantise_in_numpy(raw: Bytes, shape: EntryShape, key_share: float, value_share: float) -> Quantised | None:
    """`quantise` for any dtype and width."""
    num_tokens = raw.shape[1]
    floats = to_floats(raw.tobytes(), shape.dtype).reshape(2, num_tokens, -1)
    if not np.abs(floats).max() < LIMIT:
        return None
    keys, values = floats[0], floats[1].reshape(-1, shape.head_dim)
    mean = keys.sum(axis=0) / np.float32(num_tokens)
    square = (keys * keys).sum(axis=0) / np.float32(num_tokens) - mean * mean
    reach = np.maximum(keys.max(axis=0) - mean, mean - keys.min(axis=0)) / LARGEST
    least = np.maximum(np.sqrt(np.maximum(square, 0)) * np.float32(key_share), reach)
    key_codes = _codes(np.maximum(least, np.abs(mean) / LARGEST_OFFSET))
    size = np.sqrt(_row_sums(values * values) / np.float32(shape.head_dim))
    value_codes = _codes(np.maximum(size * np.float32(value_share), np.abs(values).max(axis=1) / LARGEST))
    offsets = np.rint(mean / STEPS[key_codes])
    keys *= 1 / STEPS[key_codes]
    keys -= offsets
    values *= 1 / STEPS[value_codes][:, None]
    numbers = np.rint(floats, out=floats).astype(np.int8)
    return Quantised(numbers, np.concatenate((key_codes, value_codes)), offsets.astype(np.int16))


def restore_in_numpy(
    keys: Bytes, values: Bytes, codes: Bytes, offsets: NDArray[np.int16], shape: EntryShape, out: Bytes
) -> None:
    """`restore` for any dtype and width."""
    channels, num_tokens = shape.num_kv_heads * shape.head_dim, out.shape[1]
    floats = np.empty((2, num_tokens, channels), np.float32)
    for target, numbers in zip(floats, (keys, values), strict=True):
        target[:] = numbers.view(np.int8).reshape(num_tokens, channels)
    floats[0] += offsets
    floats[0] *= STEPS[codes[:channels]]
    floats[1].reshape(-1, shape.head_dim)[:] *= STEPS[codes[channels:]][:, None]
    out[:] = np.frombuffer(from_floats(floats, shape.dtype), np.uint8).reshape(out.shape)


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
    return shape.dtype == "bfloat16" and shape.head_dim % _LANES == 0


def _at(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.__array_interface__["data"][0])  # `array.ctypes` takes three times as long
