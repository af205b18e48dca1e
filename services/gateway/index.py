"""Who holds which KV blocks: a view of the placement topic that knows when it cannot be trusted. Pure."""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import numpy as np

from services.gateway.holder import Credit, Holder
from services.gateway.pairs import OwnedPairs, words
from services.gateway.resume import GroupMasks, longest_resume, no_groups
from services.gateway.states import States
from shared.bus.events import PlacementEvent, StoredBlocks
from shared.ids import BlockKey, WorkerId
from shared.kv.layout import KvLayout

CREDIT_STEP_S = 0.5
"""Credits that end within this time of one another end together, with the first of them."""


class Held(NamedTuple):
    """What one pool holds of a request's prefix. Arrays are shared and read-only."""

    groups: GroupMasks  # for each block, the layer groups that it holds wholly, in any tier
    memory_groups: GroupMasks  # of these, the ones in memory
    longest: int  # blocks after which a request could resume from this pool alone


class Certainty(NamedTuple):
    """How far the index can be trusted about one pool."""

    stale: bool  # nothing is known until its snapshot has come
    epoch: int
    sequence: int  # of the last event that is part of what is known
    num_blocks: int
    num_assumed: int  # blocks that are credited ahead of the pool's own word
    silent_s: float | None  # since its last event; None: never heard


class Intake:
    """A snapshot that is coming in: its blocks are found once the index has finished it."""

    def __init__(self, pairs: OwnedPairs, states: States, holder_id: WorkerId) -> None:
        self.holder_id = holder_id
        self.owner: int | None = pairs.new_owner()
        self.num_blocks = 0
        self._pairs = pairs
        self._states = states

    def add(self, stored: Sequence[StoredBlocks]) -> None:
        """Take the next part; some thousand blocks a call keep the event loop free."""
        assert self.owner is not None
        self.num_blocks += sum(blocks.num_blocks for blocks in stored)
        _put(self._pairs, self._states, self.owner, stored)

    def release(self) -> int:
        """Hand the blocks over to whoever asks first."""
        assert self.owner is not None
        owner, self.owner = self.owner, None
        return owner

    def close(self) -> None:
        """Drop what was not handed over; idempotent."""
        if self.owner is not None:
            self._pairs.drop(self.release())


class PlacementIndex:
    """Placements by holder id. Invariant: a holder that is not stale is exactly as its events up to `sequence` say.

    A gap in the sequence or a new epoch makes a holder stale until a snapshot has told its content anew.
    """

    def __init__(self, layout: KvLayout) -> None:
        self._layout = layout
        self._states = States(layout)
        self._pairs = OwnedPairs()
        self._holders: dict[WorkerId, Holder] = {}
        self._free_numbers: list[int] = []
        self._num_numbers = 0
        self._next_expiry = inf

    def apply(self, event: PlacementEvent, now: float) -> None:
        """Take one event from the bus, in the order of delivery. Events of an earlier epoch are ignored."""
        holder = self._holders.get(event.holder)
        if holder is None or event.epoch > holder.epoch:
            holder = self._meet(event.holder, event.epoch)
        elif event.epoch < holder.epoch:
            return
        holder.heard_at = now
        self._take(holder, event)
        self._pairs.step(0)

    def open_snapshot(self, holder_id: WorkerId) -> Intake:
        """Begin to take in what a pool says it holds; the intake is to be closed, whatever happens."""
        return Intake(self._pairs, self._states, holder_id)

    def finish_snapshot(self, intake: Intake, epoch: int, sequence: int) -> None:
        """Take what a pool said it held at `sequence`, then the events that arrived meanwhile.

        Ignored when the pool is not known (any more), when it is not stale, and when the snapshot is older than what
        was known of the pool. The holder stays stale when even so an event is missing.
        """
        holder = self._holders.get(intake.holder_id)
        if holder is None or not holder.stale or (epoch, sequence) < (holder.epoch, holder.sequence):
            return
        if epoch > holder.epoch:
            holder = self._meet(intake.holder_id, epoch)
        holder.owner = intake.release()
        self._pairs.give(holder.owner, holder.number)
        for event in holder.trust(sequence):
            # A second gap makes the holder stale again, and later events wait for the next snapshot.
            self._take(holder, event)

    def doubt(self, holder_id: WorkerId) -> None:
        """Make a holder stale, known or not: it has restarted, or this process has just met it."""
        holder = self._holders.get(holder_id)
        if holder is None:
            holder = self._meet(holder_id, 0)
        holder.doubt()
        self._void(holder)

    def doubt_all(self) -> None:
        """Make every holder stale: the bus has lost events."""
        for holder_id in self._holders:
            self.doubt(holder_id)

    def forget(self, holder_id: WorkerId) -> None:
        holder = self._holders.pop(holder_id, None)
        if holder is not None:
            self._void(holder)
            self._free_numbers.append(holder.number)

    def is_stale(self, holder_id: WorkerId) -> bool:
        holder = self._holders.get(holder_id)
        return holder is not None and holder.stale

    @property
    def has_stale(self) -> bool:
        return any(holder.stale for holder in self._holders.values())

    def stale(self) -> list[WorkerId]:
        """Return the holders whose snapshot is wanted."""
        return [holder_id for holder_id, holder in self._holders.items() if holder.stale]

    def assume(self, holder_id: WorkerId, keys: Sequence[BlockKey], groups: GroupMasks, until: float) -> None:
        """Credit a holder with blocks that a request has just seen arrive there, ahead of the holder's own event.

        An eviction takes the credit away; it may end up to `CREDIT_STEP_S` before `until`.
        """
        holder = self._holders.get(holder_id)
        if holder is None or holder.stale:
            return
        wanted = words(b"".join(keys))
        found = self._pairs.find(wanted)
        told = (found.holders == holder.number) & ~self._states.is_assumed[found.states]
        lacking = np.array(groups)
        lacking[found.blocks[told]] &= ~self._states.memory_groups[found.states[told]]
        for mask in np.unique(lacking[lacking != 0]).tolist():
            state = self._states.number(mask, mask, is_assumed=True)
            chosen = wanted[lacking == mask]
            self._pairs.put(self._creditor(holder, until), chosen, np.full(len(chosen), state, np.uint32))

    def held(self, keys: Sequence[BlockKey], now: float) -> dict[WorkerId, Held]:
        """Return what each holder that can be trusted has of `keys`; holders with nothing usable are included."""
        self._expire(now)
        found = self._pairs.find(words(b"".join(keys)))
        present = np.bincount(found.holders, minlength=self._num_numbers).nonzero()[0]
        rows = np.zeros(self._num_numbers, np.intp)
        rows[present] = np.arange(1, len(present) + 1)
        # Row 0 is that of everybody who has nothing.
        groups = no_groups(self._layout, len(present) + 1, len(keys))
        memory_groups = np.zeros_like(groups)
        cells = rows.take(found.holders) * len(keys) + found.blocks
        # Two may tell of a block only while there are credits.
        is_told_twice = self._next_expiry < inf and self._states.is_assumed.take(found.states).any()
        for masks, of_states in ((groups, self._states.groups), (memory_groups, self._states.memory_groups)):
            flat, values = masks.reshape(-1), of_states.take(found.states)
            flat[cells] = values
            if is_told_twice:
                np.bitwise_or.at(flat, cells, values)
            masks.setflags(write=False)
        longest = longest_resume(self._layout, groups).tolist()
        held_by_row = [Held(*row) for row in zip(groups, memory_groups, longest, strict=True)]
        row_of = rows.tolist()
        return {
            holder_id: held_by_row[row_of[holder.number]]
            for holder_id, holder in self._holders.items()
            if not holder.stale
        }

    def num_blocks(self) -> dict[WorkerId, int]:
        return {
            holder_id: 0 if holder.owner is None else self._pairs.num_pairs(holder.owner)
            for holder_id, holder in self._holders.items()
        }

    def certainty(self, now: float) -> dict[WorkerId, Certainty]:
        """Return how sure the index is of each pool."""
        self._expire(now)
        num_blocks = self.num_blocks()
        return {
            holder_id: Certainty(
                stale=holder.stale,
                epoch=holder.epoch,
                sequence=holder.sequence,
                num_blocks=num_blocks[holder_id],
                num_assumed=sum(self._pairs.num_pairs(credit.owner) for credit in holder.credits),
                silent_s=None if holder.heard_at is None else now - holder.heard_at,
            )
            for holder_id, holder in self._holders.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the table of blocks."""
        return self._pairs.nbytes

    def _meet(self, holder_id: WorkerId, epoch: int) -> Holder:
        """Start to follow a life of a pool; what was known of the one before is void."""
        self.forget(holder_id)
        if not self._free_numbers:
            self._free_numbers.append(self._num_numbers)
            self._num_numbers += 1
        holder = self._holders[holder_id] = Holder(self._free_numbers.pop(), epoch)
        return holder

    def _take(self, holder: Holder, event: PlacementEvent) -> None:
        """Apply the next event in sequence; keep one that cannot be applied yet."""
        if not holder.accept(event):
            if holder.stale:
                self._void(holder)
            return
        if event.cleared:
            self._void(holder)
            holder.owner = self._pairs.new_owner(holder.number)
        assert holder.owner is not None
        if event.evicted:
            self._pairs.remove(holder.number, words(event.evicted))
        if event.stored:
            _put(self._pairs, self._states, holder.owner, event.stored)

    def _void(self, holder: Holder) -> None:
        owners = [credit.owner for credit in holder.credits]
        if holder.owner is not None:
            owners.append(holder.owner)
        for owner in owners:
            self._pairs.drop(owner)
        holder.owner, holder.credits = None, []

    def _creditor(self, holder: Holder, until: float) -> int:
        for credit in holder.credits:
            if credit.until <= until < credit.until + CREDIT_STEP_S:
                return credit.owner
        credit = Credit(self._pairs.new_owner(holder.number), until)
        holder.credits.append(credit)
        self._next_expiry = min(self._next_expiry, until)
        return credit.owner

    def _expire(self, now: float) -> None:
        """Drop the credits that have ended."""
        if now < self._next_expiry:
            return
        for holder in self._holders.values():
            for credit in holder.credits:
                if credit.until <= now:
                    self._pairs.drop(credit.owner)
            holder.credits = [credit for credit in holder.credits if credit.until > now]
        self._next_expiry = min((c.until for holder in self._holders.values() for c in holder.credits), default=inf)


def _put(pairs: OwnedPairs, states: States, owner: int, stored: Sequence[StoredBlocks]) -> None:
    numbers = [states.number(blocks.groups, blocks.memory_groups) for blocks in stored]
    num_blocks = [blocks.num_blocks for blocks in stored]
    keys = words(b"".join(blocks.keys for blocks in stored))
    pairs.put(owner, keys, np.repeat(np.array(numbers, np.uint32), num_blocks))
