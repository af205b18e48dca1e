"""Memory of stored payloads: slabs of equal slots, apart from the heap in which messages come and go.

On the heap, payloads that stay would lie between the buffers of messages that pass: gRPC grows such a buffer piece by
piece, and each time it meets a neighbour it moves, into fresh pages. That costs ten times the CPU of the transfer.
"""

import mmap
import weakref
from collections import deque
from functools import lru_cache
from typing import Any

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
    """One mapping, cut into slots. A slot is free again when the last view of it is gone."""

    __slots__ = ("data", "free", "held", "num_slots", "room", "slot_bytes")

    def __init__(self, data: NDArray[np.uint8], size: int) -> None:
        self.room = data.data
        self.data = data.view()  # what slots are read through
        self.data.flags.writeable = False
        self.slot_bytes = size
        self.num_slots = len(data) // size
        self.free = list(range(self.num_slots - 1, -1, -1))
        self.held: list[_Held | None] = [None] * self.num_slots


class _Held(weakref.ref[Any]):
    """A slot in use; tells where it is when its view has gone."""

    __slots__ = ("index", "slab")

    slab: _Slab
    index: int


class PayloadMemory:
    """Owns the slabs. `keep` belongs to one thread; views may be dropped in any.

    Always: bytes under a view do not change while any view of that slot, or of a part of it, is alive. Memory that was
    touched once is used again, for slots of any size: what is mapped is at most what was needed at some time.
    """

    def __init__(self) -> None:
        self.mapped_bytes = 0
        self._slabs: set[_Slab] = set()
        self._roomy: dict[int, list[_Slab]] = {}  # slot size -> slabs with a free slot
        self._spare: dict[int, list[NDArray[np.uint8]]] = {}  # size -> mappings that nothing uses
        self._gone: deque[_Held] = deque()
        self._note_gone = self._gone.append  # called in whichever thread drops the last view

    def keep(self, payload: Payload) -> memoryview:
        """Copy a payload into a slot and return a read-only view of it."""
        while self._gone:
            self._reclaim(self._gone.popleft())
        num_bytes = len(payload)
        size = slot_bytes(num_bytes)
        roomy = self._roomy.get(size)
        if roomy is None:
            roomy = self._roomy[size] = []
        slab = roomy[-1] if roomy else self._new_slab(size, roomy)
        free = slab.free
        index = free.pop()
        if not free:
            roomy.pop()
        start = index * size
        end = start + num_bytes
        slab.room[start:end] = payload
        part = slab.data[start:end]  # whose last view frees the slot: views of a memoryview do not keep it alive
        held = slab.held[index] = _Held(part, self._note_gone)
        held.slab, held.index = slab, index
        return part.data

    def _new_slab(self, size: int, roomy: list[_Slab]) -> _Slab:
        num_bytes = max(SLAB_BYTES, size)
        spare = self._spare.get(num_bytes)
        slab = _Slab(spare.pop() if spare else self._map(num_bytes), size)
        self._slabs.add(slab)
        roomy.append(slab)
        return slab

    def _map(self, num_bytes: int) -> NDArray[np.uint8]:
        mapping = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            mapping.madvise(mmap.MADV_HUGEPAGE)  # one fault for 2 MiB, not for each 4 KiB
        self.mapped_bytes += num_bytes
        return np.frombuffer(mapping, dtype=np.uint8)

    def _reclaim(self, held: _Held) -> None:
        slab = held.slab
        slab.held[held.index] = None
        slab.free.append(held.index)
        roomy = self._roomy[slab.slot_bytes]
        if len(slab.free) == 1:
            roomy.insert(0, slab)  # the slab in use stays last, so that others can become empty
        if len(slab.free) == slab.num_slots:
            roomy.remove(slab)
            self._slabs.remove(slab)
            self._spare.setdefault(len(slab.data), []).append(np.asarray(slab.room))
