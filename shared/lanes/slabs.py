"""A part of memory cut into equal slots, and how to tell that nobody views one of them."""

from functools import lru_cache
from sys import getrefcount

import numpy as np
from numpy.typing import NDArray

SLAB_BYTES = 8 * 1024 * 1024
SLOT_STEPS = 32  # slot sizes between two powers of two: a slot is at most 1/32 larger than what is in it
_LEAST_BYTES = 256

Slot = NDArray[np.uint8]


@lru_cache(maxsize=1024)
def slot_bytes(num_bytes: int) -> int:
    """Return the size of the slot that a payload of `num_bytes` gets: whole pages from 128 KiB on."""
    step = max(_LEAST_BYTES, (1 << max(0, num_bytes - 1).bit_length()) // (2 * SLOT_STEPS))
    return max(_LEAST_BYTES, -(-num_bytes // step) * step)


class Slab:
    """A part of the mapping, cut into slots: arrays over its parts. Nobody but its views refers to a slot in use."""

    __slots__ = ("data", "free", "num_slots", "offset", "slot_bytes")

    def __init__(self, data: Slot, offset: int, size: int) -> None:
        self.data = data
        self.offset = offset
        self.slot_bytes = size
        self.num_slots = len(data) // size
        self.free = [data[index * size : (index + 1) * size] for index in reversed(range(self.num_slots))]

    @property
    def is_unused(self) -> bool:
        return len(self.free) == self.num_slots and not any(is_viewed(self.free, at) for at in range(self.num_slots))


_probe = [object()]
IN_A_LIST_ONLY = getrefcount(_probe[0])


def is_viewed(slots: list[Slot], at: int) -> bool:
    """Return whether anything but the list refers to a slot: each view does."""
    return getrefcount(slots[at]) > IN_A_LIST_ONLY
