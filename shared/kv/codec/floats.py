"""Numbers of the KV dtypes as float32 and back, without torch: NumPy has no bfloat16."""

import numpy as np
from numpy.typing import NDArray

from shared.kv.codec.spec import Payload
from shared.kv.layout import Dtype

Floats = NDArray[np.float32]


def to_floats(raw: Payload, dtype: Dtype) -> Floats:
    """Return a flat float32 array that is the caller's to change. float32 holds all values of the other two exactly."""
    if dtype == "bfloat16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, "<f4" if dtype == "float32" else "<f2").astype(np.float32)


def from_floats(floats: Floats, dtype: Dtype) -> memoryview:
    """Return the bytes of finite, contiguous float32 numbers in `dtype`, rounded to nearest; `floats` is used up."""
    if dtype == "bfloat16":
        words = floats.reshape(-1).view(np.uint32)
        words += 0x8000  # ties away from zero: the numbers come from quantising, which is far coarser
        return words.view("<u2")[1::2].copy().view(np.uint8).data
    if dtype == "float32":
        return floats.reshape(-1).view(np.uint8).data
    limit = np.finfo(np.float16).max
    return np.clip(floats, -limit, limit).reshape(-1).astype("<f2").view(np.uint8).data
