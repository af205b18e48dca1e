"""Memory of stored payloads: slabs of equal slots, apart from the heap in which messages come and go.

On the heap, payloads that stay would lie between the buffers of messages that pass: gRPC grows such a buffer piece by
piece, and each time it meets a neighbour it moves, into fresh pages. That costs ten times the CPU of the transfer.
"""

import mmap
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from sys import getrefcount
from threading import Lock, RLock

from shared.errors import Overloaded
from shared.kv.codec import Payload
from shared.kv.payloads import addresses_of
from shared.lanes.extents import Extents
from shared.lanes.mapping import MemoryRange
from shared.lanes.slabs import IN_A_LIST_ONLY, SLAB_BYTES, SLOT_STEPS, Slab, Slot, is_viewed, slot_bytes

FIRST_PLACE = mmap.PAGESIZE
"""Where the first slot may lie. Offset 0 stands for no place."""
_PIECE_BYTES = SLAB_BYTES // 4  # touched in one go: whoever needs memory at once waits for no more than one


def limit_for(budget_bytes: int, in_flight_bytes: int | None = None) -> int:
    """Return the limit of a memory whose payloads keep to a budget.

    A budget counts payloads. Slots are up to 1/32 larger, slots of writers and slots that are freed but still read come
    on top (`in_flight_bytes`; a quarter of the budget unless given), and of each size one slab may be used in part.
    """
    if in_flight_bytes is None:
        in_flight_bytes = budget_bytes // 4
    return budget_bytes + budget_bytes // SLOT_STEPS + in_flight_bytes + 32 * SLAB_BYTES


class SlotMemory:
    """Owns one mapping, its slabs and their slots. May be used, and views of it dropped, in any thread.

    Always: bytes under a view do not change while any view of that slot, or of a part of it, is alive, whether it was
    freed or not, unless by those who took the slot and write to it. A slot lies in memory that was touched. Memory that
    was touched once is used again, for slots of any size: no more is touched than the limit, and not before it is
    needed or asked for (`touch_ahead`). A slot that was taken and not kept is its views': it is free again when the
    last one has gone. Slots of one size that are taken in a row from fresh memory are adjacent.
    """

    def __init__(self, limit_bytes: int, *, shared: bool) -> None:
        """`limit_bytes`: what slabs may take of the machine's memory, see `limit_for`; by address it is taken at once.

        `shared`: other processes can map it by `fd`, where the system can do that. Raises `SettingsError` when so much
        cannot be mapped.
        """
        self.size_bytes = FIRST_PLACE + max(1, -(-limit_bytes // mmap.PAGESIZE)) * mmap.PAGESIZE
        self._mapping = MemoryRange(self.size_bytes, shared=shared)
        # Of all below; held for no system call, nor while memory is touched or copied. The collector may run within,
        # and end a coroutine that frees what it has.
        self._lock = RLock()
        self._acquire, self._release = self._lock.acquire, self._lock.release  # `with` takes 0.2 of 8 µs an entry more
        self._extents = Extents(FIRST_PLACE, self.size_bytes)
        self._slabs: dict[int, Slab] = {}  # by the id of its `data`, which is the base of its slots
        self._roomy: dict[int, list[Slab]] = {}  # slot size -> slabs with a free slot
        self._idle: dict[int, Slab] = {}  # slabs that had no slot in use at some time since they were cut
        self._viewed: list[Slot] = []  # freed while somebody read them
        self._taken: dict[int, Slot] = {}  # by id: taken to be written, and neither kept nor freed
        self._touching = Lock()  # of `_touched`: who holds it touches
        self._touched = FIRST_PLACE
        self._watchers: tuple[Callable[[], None], ...] = ()
        self._on_lack: Callable[[Sequence[int]], None] = lambda _sizes: None

    @property
    def fd(self) -> int | None:
        """The descriptor by which another process maps the memory; None when it is this process's own."""
        return self._mapping.fd

    @property
    def touched_bytes(self) -> int:
        """Where touched memory ends: all places below it are in memory."""
        return self._touched

    @property
    def mapped_bytes(self) -> int:
        """Bytes of the machine's memory that slabs take or may take at once."""
        return self._touched - FIRST_PLACE

    @property
    def num_taken(self) -> int:
        """Slots that were taken, neither kept nor freed, and are still viewed."""
        with self._lock:
            self._take_back_unviewed()
            return len(self._taken)

    @property
    def num_kept(self) -> int:
        """Payloads that were kept and not freed."""
        with self._lock:
            in_use = sum(slab.num_slots - len(slab.free) for slab in self._slabs.values())
            return in_use - len(self._viewed) - len(self._taken)

    def take(self, num_bytes: int) -> memoryview:
        """Return a slot to write to, for `keep` or `free`. Raises `Overloaded` when the limit is reached."""
        return self.take_all((num_bytes,))[0]

    def take_all(self, sizes: Iterable[int]) -> list[memoryview]:
        """Return a slot for each size, as `take` does, or raise `Overloaded` and take none."""
        sizes = list(sizes)
        try:
            return self._take_all(sizes)
        except Overloaded:
            self._on_lack(sizes)
            raise

    def has_room(self, sizes: Sequence[int]) -> bool:
        """Return whether `take_all` would find slots at this moment."""
        try:
            self.free_all(self._take_all(sizes))
        except Overloaded:
            return False
        return True

    def _take_all(self, sizes: Sequence[int]) -> list[memoryview]:
        views: list[memoryview] = []
        left = list(sizes)
        left.reverse()
        try:
            while left:
                with self._lock:
                    while left and (slot := self._pop(slot_bytes(left[-1]))) is not None:
                        self._taken[id(slot)] = slot
                        num_bytes = left.pop()
                        views.append(slot.data if len(slot) == num_bytes else slot.data[:num_bytes])
                        del slot
                if left:
                    self._grow(slot_bytes(left[-1]))
        except Overloaded:
            self.free_all(views)
            raise
        return views

    def keep(self, payload: Payload) -> memoryview:
        """Return a read-only view of a payload that stays, which goes to `free` in the end.

        The view is of `payload` itself where that lies in a slot of its size that was taken, else of a copy; a slot
        that is too large for what came to be in it is freed. Raises `Overloaded` when a copy finds no slot.
        """
        num_bytes = len(payload)
        size = slot_bytes(num_bytes)
        # `bool`: the dictionary itself may be filled by others before this is looked at again.
        is_taken = bool(self._taken) and type(payload) is memoryview and id(payload.obj) in self._taken
        if is_taken and len(payload.obj) == size:  # type: ignore[union-attr, arg-type]
            self._acquire()
            self._taken.pop(id(payload.obj), None)  # type: ignore[union-attr]
            self._release()
            return payload.toreadonly()  # type: ignore[union-attr]
        while True:
            self._acquire()
            try:
                slot = self._pop(size)
            finally:
                self._release()
            if slot is not None:
                break
            self._grow(size)
        view = slot.data if num_bytes == size else slot.data[:num_bytes]
        view[:] = payload
        if is_taken:
            self.free(payload)
        return view.toreadonly()

    def keep_all(self, payloads: Iterable[Payload]) -> list[memoryview | None]:
        """Return what `keep` returns of each; None for those that find no slot."""
        kept: list[memoryview | None] = []
        others: list[tuple[int, Payload]] = []
        with self._lock:
            taken = self._taken
            for payload in payloads:
                if type(payload) is memoryview and (slot := taken.get(id(payload.obj))) is not None:
                    if len(slot) == slot_bytes(len(payload)):
                        del taken[id(slot)], slot
                        kept.append(payload.toreadonly())
                        continue
                    del slot
                others.append((len(kept), payload))
                kept.append(None)
        for number, payload in others:
            with suppress(Overloaded):
                kept[number] = self.keep(payload)
        return kept

    def free(self, view: Payload) -> None:
        """Take a slot back, kept or not: it is used again when its last view has gone."""
        self.free_all((view,))

    def free_all(self, views: Iterable[Payload]) -> None:
        """Take slots back, as `free` does."""
        slots: list[Slot] = [view.obj for view in views]  # type: ignore[union-attr, misc]
        with self._lock:
            if self._taken:
                for slot in slots:
                    self._taken.pop(id(slot), None)
            while slots:
                self._give_back(slots.pop())

    def place(self, view: memoryview) -> int:
        """Return where in the memory a view of it begins, as offset."""
        return self.places((view,))[0]

    def places(self, views: Iterable[memoryview]) -> list[int]:
        """Return where in the memory views of it begin, as offsets."""
        address = self._mapping.address
        return [found - address for found in addresses_of(list(views))]

    def on_lack(self, told: Callable[[Sequence[int]], None]) -> None:
        """Have it said for which sizes `take_all` found no slots: in any thread, so it must neither block nor raise."""
        self._on_lack = told

    def watch(self, changed: Callable[[], None]) -> None:
        """Have it said when more memory is used or was touched: in any thread, so it must neither block nor raise."""
        self._watchers = (*self._watchers, changed)

    def unwatch(self, changed: Callable[[], None]) -> None:
        """End `watch`."""
        self._watchers = tuple(watcher for watcher in self._watchers if watcher != changed)

    def touch_ahead(self, num_bytes: int, is_over: Callable[[], bool] = lambda: False) -> None:
        """Touch memory until there is so much of it beyond what was ever used, or the limit is reached, or it is over.

        Blocks; for a thread of its own. Raises `Overloaded` when the system has no more memory.
        """
        ahead = _whole_pages(num_bytes)
        while self._touched < (end := min(self.size_bytes, self._extents.high_water + ahead)) and not is_over():
            self._touch(min(end, self._touched + _PIECE_BYTES))

    def close(self) -> None:
        """Close the descriptor. Views stay good, here and in processes that have mapped it. Idempotent."""
        self._mapping.close()

    def _pop(self, size: int) -> Slot | None:
        """Return a free slot that nobody views, of a slab that is there."""
        roomy = self._roomy.get(size)
        while roomy:
            free = roomy[-1].free
            is_alone = getrefcount(free[-1]) <= IN_A_LIST_ONLY
            slot = free.pop()
            if not free:
                roomy.pop()
            if is_alone:
                return slot
            self._viewed.append(slot)
        return None

    def _give_back(self, slot: Slot) -> None:
        slab = self._slabs[id(slot.base)]
        free = slab.free
        free.append(slot)
        num_free = len(free)
        if num_free == 1:
            self._roomy.setdefault(slab.slot_bytes, []).insert(0, slab)  # the last stays in use, so others become empty
        if num_free == slab.num_slots:
            self._idle[id(slab.data)] = slab

    def _grow(self, size: int) -> None:
        """See to a free slot of this size: of slots that were viewed, or a new slab. Raises `Overloaded`."""
        with self._lock:
            self._take_back_viewed()
            self._take_back_unviewed()
            if self._roomy.get(size):
                return
        num_slots = max(1, SLAB_BYTES // size)
        some, most = max(1, num_slots // 4) * size, num_slots * size
        while (cut := self._cut(size, some, most)) is None:
            try:
                self._touch_next(some)
            except Overloaded:
                if (cut := self._cut(size, size, most)) is None:
                    raise
                break
        offset, num_bytes = cut
        slab = Slab(self._mapping.part(offset, num_bytes), offset, size)
        with self._lock:
            self._slabs[id(slab.data)] = slab
            self._roomy.setdefault(size, []).append(slab)
        for changed in self._watchers:
            changed()

    def _take_back_viewed(self) -> None:
        freed, self._viewed = self._viewed, []
        while freed:
            take_back = self._viewed.append if is_viewed(freed, -1) else self._give_back
            take_back(freed.pop())

    def _take_back_unviewed(self) -> None:
        taken = self._taken
        for number in [number for number in taken if getrefcount(taken[number]) <= IN_A_LIST_ONLY]:
            self._give_back(taken.pop(number))

    def _cut(self, size: int, least: int, most: int) -> tuple[int, int] | None:
        """Take touched memory for slots of a size that no slab has, or that slabs without a slot in use have."""
        least, most = _whole_pages(least), _whole_pages(most)
        with self._lock:
            viewed = []
            while (cut := self._extents.take(least, most, self._touched)) is None and self._idle:
                _, slab = self._idle.popitem()
                if slab.is_unused:
                    del self._slabs[id(slab.data)]
                    self._roomy[slab.slot_bytes].remove(slab)
                    self._extents.give_back(slab.offset, len(slab.data))
                elif len(slab.free) == slab.num_slots:
                    viewed.append(slab)
            self._idle.update((id(slab.data), slab) for slab in viewed)
            if cut is None:
                return None
            offset, num_bytes = cut
            used = _whole_pages(num_bytes // size * size)
            if used < num_bytes:
                self._extents.give_back(offset + used, num_bytes - used)
            return offset, used

    def _touch_next(self, num_bytes: int) -> None:
        """Touch so much beyond what was ever used, unless it is. Raises `Overloaded` at the limit."""
        end = min(self.size_bytes, self._extents.high_water + _whole_pages(num_bytes))
        if end > self._touched:
            self._touch(end)
        elif end == self.size_bytes:
            raise Overloaded(f"all {self.size_bytes} bytes of memory for payloads are in use or still read")

    def _touch(self, end: int) -> None:
        """Touch memory up to there. Raises `Overloaded` when the system has none."""
        with self._touching:
            first = self._touched
            if first >= end:
                return
            self._mapping.touch(first, end - first)
            self._touched = end
        for changed in self._watchers:
            changed()


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
