"""Block keys as the table has them: 64 bits each. Pure."""

import numpy as np
from numpy.typing import NDArray

from shared.kv.hashing import KEY_BYTES

Words = NDArray[np.uint64]
"""Block keys, cut to 64 bits."""


def words(packed: bytes) -> Words:
    """Cut packed block keys to 64 bits each.

    They are sha256 values, so of n blocks that are asked for, about n * m / 2^64 are taken for one of m stored ones:
    one in 10^9 requests of 2,000 blocks against ten million. It costs that request a wrong plan, never a wrong answer.
    """
    return np.frombuffer(packed, "<u8")[:: KEY_BYTES // 8].copy()
