"""Who holds which KV blocks: a view of the placement topic that knows when it cannot be trusted. Pure."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from services.gateway.resume import GroupMasks, longest_resume, no_groups
from shared.bus.events import PlacementEvent, StoredBlocks, unpack_keys
from shared.ids import BlockKey, WorkerId
from shared.kv.layout import KvLayout

MAX_PENDING_EVENTS = 4096
"""Events kept while a snapshot is on its way. Losing the oldest only costs another snapshot: the gap is noticed."""


class Held(NamedTuple):
    """What one pool holds of a request's prefix."""

    groups: GroupMasks  # for each block, the layer groups that it holds wholly, in any tier
    memory_groups: GroupMasks  # of these, the ones in memory
    longest: int  # blocks after which a request could resume from this pool alone


@dataclass(slots=True)
class _Holder:
    """One pool's content. While `stale` it earns no credit and its events wait in `pending` for a snapshot."""

    epoch: int
    sequence: int = 0
    stale: bool = True
    stored: dict[BlockKey, tuple[int, int]] = field(default_factory=dict)  # groups in any tier, in memory
    assumed: dict[BlockKey, tuple[int, float]] = field(default_factory=dict)  # groups in memory, true until
    pending: deque[PlacementEvent] = field(default_factory=lambda: deque(maxlen=MAX_PENDING_EVENTS))

    def doubt(self) -> None:
        self.stale = True
        self.pending.clear()

    def take(self, event: PlacementEvent) -> None:
        """Apply the next event in sequence, or notice that one is missing."""
        if event.sequence <= self.sequence:
            return  # delivered twice, or already part of the snapshot
        if event.sequence != self.sequence + 1:
            self.doubt()
            self.pending.append(event)
            return
        self.sequence = event.sequence
        if event.cleared:
            self.stored.clear()
            self.assumed.clear()
        for key in unpack_keys(event.evicted):
            self.stored.pop(key, None)
            self.assumed.pop(key, None)
        self.stored.update(_unpacked(event.stored))


class PlacementIndex:
    """Placements by holder id. Invariant: a holder that is not stale is exactly as its events up to `sequence` say.

    A gap in the sequence or a new epoch makes a holder stale until `apply_snapshot` has told its content anew.
    """

    def __init__(self, layout: KvLayout) -> None:
        self._layout = layout
        self._holders: dict[WorkerId, _Holder] = {}

    def apply(self, event: PlacementEvent) -> None:
        """Take one event from the bus, in the order of delivery. Events of an earlier epoch are ignored."""
        holder = self._holders.get(event.holder)
        if holder is None or event.epoch > holder.epoch:
            holder = self._holders[event.holder] = _Holder(event.epoch)
        elif event.epoch < holder.epoch:
            return
        if holder.stale:
            holder.pending.append(event)
        else:
            holder.take(event)

    def apply_snapshot(self, holder_id: WorkerId, epoch: int, sequence: int, stored: Iterable[StoredBlocks]) -> None:
        """Take what a pool said it held at `sequence`, then the events that arrived meanwhile.

        Ignored when it is older than what was known of the pool, or when the holder is not stale. The holder stays
        stale when even so an event is missing.
        """
        holder = self._holders.get(holder_id)
        if holder is None or epoch > holder.epoch:
            holder = self._holders[holder_id] = _Holder(epoch)
        elif not holder.stale or (epoch, sequence) < (holder.epoch, holder.sequence):
            return
        holder.stored, holder.assumed = dict(_unpacked(stored)), {}
        holder.sequence, holder.stale = sequence, False
        pending = tuple(holder.pending)
        holder.pending.clear()
        for event in pending:
            # A second gap makes the holder stale again, and later events wait for the next snapshot.
            if holder.stale:
                holder.pending.append(event)
            else:
                holder.take(event)

    def doubt(self, holder_id: WorkerId) -> None:
        """Make a holder stale, known or not: it has restarted, or this process has just met it."""
        self._holders.setdefault(holder_id, _Holder(0)).doubt()

    def doubt_all(self) -> None:
        """Make every holder stale: the bus has lost events."""
        for holder in self._holders.values():
            holder.doubt()

    def forget(self, holder_id: WorkerId) -> None:
        self._holders.pop(holder_id, None)

    @property
    def has_stale(self) -> bool:
        return any(holder.stale for holder in self._holders.values())

    def stale(self) -> list[WorkerId]:
        """Return the holders whose snapshot is wanted."""
        return [holder_id for holder_id, holder in self._holders.items() if holder.stale]

    def assume(self, holder_id: WorkerId, keys: Sequence[BlockKey], groups: GroupMasks, until: float) -> None:
        """Credit a holder with blocks that a request has just seen arrive there, ahead of the holder's own event."""
        holder = self._holders.get(holder_id)
        if holder is not None:
            holder.assumed.update((key, (int(mask), until)) for key, mask in zip(keys, groups, strict=True) if mask)

    def held(self, keys: Sequence[BlockKey], now: float) -> dict[WorkerId, Held]:
        """Return what each holder that can be trusted has of `keys`; holders with nothing usable are included."""
        return {
            holder_id: self._held_by(holder, keys, now)
            for holder_id, holder in self._holders.items()
            if not holder.stale
        }

    def num_blocks(self) -> dict[WorkerId, int]:
        return {holder_id: len(holder.stored) for holder_id, holder in self._holders.items()}

    def _held_by(self, holder: _Holder, keys: Sequence[BlockKey], now: float) -> Held:
        groups, memory_groups = no_groups(self._layout, len(keys)), no_groups(self._layout, len(keys))
        known = (1 << len(self._layout.groups)) - 1
        holder.assumed = {key: entry for key, entry in holder.assumed.items() if entry[1] > now}
        for block, key in enumerate(keys):
            anywhere, in_memory = holder.stored.get(key, (0, 0))
            assumed = holder.assumed.get(key, (0, 0.0))[0]
            groups[block], memory_groups[block] = (anywhere | assumed) & known, (in_memory | assumed) & known
        return Held(groups, memory_groups, int(longest_resume(self._layout, groups)))


def _unpacked(stored: Iterable[StoredBlocks]) -> Iterator[tuple[BlockKey, tuple[int, int]]]:
    for blocks in stored:
        for key in unpack_keys(blocks.keys):
            yield key, (blocks.groups, blocks.memory_groups)
