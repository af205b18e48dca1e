"""Memory of stored payloads: slabs of equal slots, apart from the heap in which messages come and go.

On the heap, payloads that stay would lie between the buffers of messages that pass: gRPC grows such a buffer piece by
piece, and each time it meets a neighbour it moves, into fresh pages. That costs ten times the CPU of the transfer.
"""

import mmap
from functools import lru_cache
from sys import getrefcount

import numpy as np
from numpy.typing import NDArray

from shared.kv.codec import Payload

SLAB_BYTES = 8 * 1024 * 1024
_STEPS = 32  # slot sizes between two powers of two: a slot is at most 1/32 larger than what is in it
_LEAST_BYTES = 256


@lru_cache(maxsize=1024)
def slot_bytes(num_bytes: int) -> int:
    """Return the size of the slot that a payload of `num_bytes` gets."""
    step = max(_LEAST_BYTES, (1 << max(0, num_bytes - 1).bit_length()) // (2 * _STEPS))
    return max(_LEAST_BYTES, -(-num_bytes // step) * step)


class _Slab:
    """One mapping, cut into slots: arrays over its parts. Nobody but its views refers to a slot in use."""

    __slots__ = ("data", "free", "num_slots", "slot_bytes")

    def __init__(self, data: NDArray[np.uint8], size: int) -> None:
        self.data = data
        self.slot_bytes = size
        self.num_slots = len(data) // size
        self.free = [data[index * size : (index + 1) * size] for index in reversed(range(self.num_slots))]

    @property
    def is_unused(self) -> bool:
        return len(self.free) == self.num_slots and not any(_is_viewed(self.free, at) for at in range(self.num_slots))


_probe = [object()]
_IN_A_LIST_ONLY = getrefcount(_probe[0])


def _is_viewed(slots: list[NDArray[np.uint8]], at: int) -> bool:
    """Return whether anything but the list refers to a slot: each view does."""
    return getrefcount(slots[at]) > _IN_A_LIST_ONLY


class PayloadMemory:
    """Owns the slabs; belongs to one thread, but views may be dropped in any.

    Always: bytes under a view do not change while any view of that slot, or of a part of it, is alive, whether it was
    freed or not. Memory that was touched once is used again, for slots of any size: what is mapped is at most what was
    needed at some time.
    """

    def __init__(self) -> None:
        self.mapped_bytes = 0
        self._slabs: dict[int, _Slab] = {}  # by the id of its `data`, which is the base of its slots
        self._roomy: dict[int, list[_Slab]] = {}  # slot size -> slabs with a free slot
        self._viewed: list[NDArray[np.uint8]] = []  # freed while somebody read them

    @property
    def num_kept(self) -> int:
        """Payloads that were kept and not freed."""
        return sum(slab.num_slots - len(slab.free) for slab in self._slabs.values()) - len(self._viewed)

    def keep(self, payload: Payload) -> memoryview:
        """Copy a payload into a slot and return a read-only view of it, which goes to `free` in the end."""
        num_bytes = len(payload)
        size = slot_bytes(num_bytes)
        roomy = self._roomy.get(size)
        while True:
            slab = roomy[-1] if roomy else self._new_slab(size)
            is_viewed = _is_viewed(slab.free, -1)
            slot = slab.free.pop()
            if not slab.free:
                self._roomy[size].pop()
            if not is_viewed:
                break
            self._viewed.append(slot)
        view = slot.data if num_bytes == size else slot.data[:num_bytes]
        view[:] = payload
        return view.toreadonly()

    def free(self, view: Payload) -> None:
        """Take a slot back: it is used again when its last view has gone."""
        assert isinstance(view, memoryview), "not a payload that was kept"
        self._give_back(view.obj)  # type: ignore[arg-type]

    def _give_back(self, slot: NDArray[np.uint8]) -> None:
        slab = self._slabs[id(slot.base)]
        slab.free.append(slot)
        if len(slab.free) == 1:
            self._roomy[slab.slot_bytes].insert(0, slab)  # the slab in use stays last, so that others become empty

    def _new_slab(self, size: int) -> _Slab:
        """Return a slab with a free slot of this size: of slots that were viewed, of a slab that is empty, or new."""
        freed, self._viewed = self._viewed, []
        while freed:
            is_viewed, slot = _is_viewed(freed, -1), freed.pop()
            (self._viewed.append if is_viewed else self._give_back)(slot)
        roomy = self._roomy.setdefault(size, [])
        if not roomy:
            roomy.append(self._cut(max(SLAB_BYTES, size), size))
        return roomy[-1]

    def _cut(self, num_bytes: int, size: int) -> _Slab:
        unused = (slab for slab in self._slabs.values() if len(slab.data) == num_bytes and slab.is_unused)
        if (old := next(unused, None)) is not None:
            self._roomy[old.slot_bytes].remove(old)
        slab = _Slab(old.data if old else self._map(num_bytes), size)
        self._slabs[id(slab.data)] = slab
        return slab

    def _map(self, num_bytes: int) -> NDArray[np.uint8]:
        mapping = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            mapping.madvise(mmap.MADV_HUGEPAGE)  # one fault for 2 MiB, not for each 4 KiB
        self.mapped_bytes += num_bytes
        return np.frombuffer(mapping, dtype=np.uint8)
