"""One reader of the store: what it still wants, what of it is ready, and how long it waits for the rest."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from services.cachepool.store.block import Block
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame
from shared.kv.layout import iter_layers
from shared.tenant import NO_TENANT, Tenant

_PART = (1 << 60) - 1  # as many bits as the interpreter handles at about the speed of one


@dataclass(order=True, slots=True)
class _Orphans:
    """Entries of one block that have had no writer since the same moment."""

    deadline: float
    index: int
    layers: int = field(compare=False)


class Subscription:
    """Wanted entries, delivered lowest (layer, block index) first among those that are ready.

    Every wanted entry leaves exactly once: from `take` as a frame, or from `take_missing` when it had no writer for
    `wait_s`. The store calls the methods named `on_...`; `notify` is called whenever `take` or `take_missing` may
    have something new, or a deadline was added, and must not call back into the store.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        wanted: Sequence[int],
        wait_s: float,
        notify: Callable[[], None],
        tenant: Tenant = NO_TENANT,
    ) -> None:
        """What is present in `blocks` is ready from the start."""
        self.blocks = tuple(blocks)
        self.num_left = sum(mask.bit_count() for mask in wanted)
        self.tenant = tenant  # pays for what is pulled for this reader
        self.is_open = True
        self.lost_writers = False  # set when entries became writerless; cleared by whoever looks for a new writer
        self._wanted = list(wanted)  # layer bitmasks: neither delivered nor reported missing
        self._wait_s = wait_s
        self._notify = notify
        # For each layer a bitmask of block indices: a chain that is all here costs a step per block, not per entry.
        self._ready: dict[int, int] = {}
        self._ready_layers = 0  # the layers with a ready entry, as a bitmask
        self._waiting: list[_Orphans] = []  # heap
        self._orphans: dict[int, list[_Orphans]] = {}  # the same records by block index
        ready: dict[int, int] = {}  # layers -> block indices: most blocks of a chain have the same layers
        for index, block in enumerate(self.blocks):
            if layers := block.present & wanted[index]:
                ready[layers] = ready.get(layers, 0) | 1 << index
        for layers, indices in ready.items():
            self._add_ready(layers, indices)

    @property
    def done(self) -> bool:
        return self.num_left == 0

    @property
    def has_ready(self) -> bool:
        """Whether `take` would return something."""
        return bool(self._ready_layers)

    def wants(self, index: int) -> int:
        """Return the layers of a block that were neither delivered nor reported missing."""
        return self._wanted[index]

    def take(self, max_bytes: int) -> list[Frame]:
        """Remove and return ready frames, at least one if any is ready, at most about `max_bytes` of payload."""
        frames: list[Frame] = []
        blocks, wanted = self.blocks, self._wanted
        size = 0
        while self._ready_layers and size < max_bytes:
            layer = _lowest_bit(self._ready_layers)
            bit, ready = 1 << layer, self._ready[layer]
            while ready and size < max_bytes:
                first = _lowest_bit(ready)
                part = left = ready >> first & _PART  # a chain's mask may be thousands of bits long
                while left:
                    low = left & -left
                    index = first + low.bit_length() - 1
                    frame = blocks[index].frames[layer]
                    assert frame is not None, "an entry vanished under a reader's lease"
                    size += len(frame[5])
                    if size > max_bytes and frames:
                        break
                    frames.append(frame)
                    wanted[index] ^= bit
                    left ^= low
                ready ^= (part ^ left) << first
            self._ready[layer] = ready
            if not ready:
                self._ready_layers &= ~bit
        self.num_left -= len(frames)
        return frames

    def take_missing(self, now: float) -> list[BlockEntries]:
        """Give up on entries that were without a writer for `wait_s`, and return them."""
        missing: dict[int, int] = {}
        while self._waiting and (self._waiting[0].deadline <= now or not self._waiting[0].layers):
            orphans = heapq.heappop(self._waiting)
            self._forget(orphans)
            if orphans.layers:
                missing[orphans.index] = missing.get(orphans.index, 0) | orphans.layers
        for index, layers in missing.items():
            self._wanted[index] &= ~layers
            self.num_left -= layers.bit_count()
        return [BlockEntries(self.blocks[index].key, missing[index]) for index in sorted(missing)]

    def next_deadline(self) -> float | None:
        """Return when `take_missing` may next have something, or None when all that is left has a writer."""
        while self._waiting and not self._waiting[0].layers:
            self._forget(heapq.heappop(self._waiting))
        return self._waiting[0].deadline if self._waiting else None

    def without_writer(self) -> Iterator[tuple[int, int]]:
        """Yield (block index, layers) of the entries that wait for a writer."""
        for index, records in sorted(self._orphans.items()):
            layers = 0
            for record in records:
                layers |= record.layers
            if layers:
                yield index, layers

    def on_present(self, indices: Sequence[int], layers: int) -> None:
        """Entries can be delivered. Those that are not wanted (any more) are ignored."""
        wanted, first, is_awaited = self._wanted, min(indices), False
        for layer in iter_layers(layers):
            ready = 0  # a chain's mask may be thousands of bits long: that of a batch is put together apart
            for index in indices:
                ready |= (wanted[index] >> layer & 1) << (index - first)
            if ready:
                self._add_ready(1 << layer, ready << first)
                is_awaited = True
        if is_awaited:
            self._notify()

    def on_granted(self, index: int, layers: int) -> None:
        """Entries found a writer: no deadline runs."""
        for record in self._orphans.get(index, ()):
            record.layers &= ~layers

    def on_orphaned(self, index: int, layers: int, since: float) -> None:
        """Entries have no writer; patience counts from `since`."""
        layers &= self._wanted[index]
        if layers:
            record = _Orphans(since + self._wait_s, index, layers)
            heapq.heappush(self._waiting, record)
            self._orphans.setdefault(index, []).append(record)
            self.lost_writers = True
            self._notify()

    def on_lost(self, index: int, layers: int, since: float) -> None:
        """Entries that were present are not any more, and have no writer."""
        for layer in iter_layers(layers & self._wanted[index]):
            self._ready[layer] &= ~(1 << index)
            if not self._ready[layer]:
                self._ready_layers &= ~(1 << layer)
        self.on_orphaned(index, layers, since)

    def _add_ready(self, layers: int, indices: int) -> None:
        for layer in iter_layers(layers):
            self._ready[layer] = self._ready.get(layer, 0) | indices
        self._ready_layers |= layers

    def _forget(self, orphans: _Orphans) -> None:
        records = [record for record in self._orphans[orphans.index] if record is not orphans]
        if records:
            self._orphans[orphans.index] = records
        else:
            del self._orphans[orphans.index]


def _lowest_bit(mask: int) -> int:
    return (mask & -mask).bit_length() - 1
