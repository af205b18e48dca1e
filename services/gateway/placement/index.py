"""Who holds which KV blocks: a view of the placement topic that knows when it cannot be trusted. Pure."""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import numpy as np

from services.gateway.placement.held import HeldPrefix
from services.gateway.placement.holder import AssumedBlocks, Holder
from services.gateway.placement.matching import held_by_number
from services.gateway.placement.snapshot import IncomingSnapshot, stored_runs
from services.gateway.placement.states import States
from services.gateway.placement.table.changes import EVICTED, Changes, OwnedBlocks, Run, joined, nothing
from services.gateway.placement.table.pairs import OwnedPairs
from services.gateway.placement.table.table import PairTable
from services.gateway.placement.table.words import words
from shared.bus.events import PlacementEvent
from shared.ids import BlockKey, WorkerId
from shared.kv.layout import KvLayout
from shared.kv.resume import GroupMasks

CREDIT_STEP_S = 0.5
"""Credits that end within this time of one another end together, with the first of them."""

MAX_WAITING_BLOCKS = 1024
"""Blocks of events that wait to be put into the table together: what a match may have to do beside its own work."""


class Certainty(NamedTuple):
    """How far the index can be trusted about one pool."""

    stale: bool  # nothing is known until its snapshot has come
    epoch: int
    sequence: int  # of the last event that is part of what is known
    num_blocks: int
    num_assumed: int  # blocks that are credited ahead of the pool's own word
    silent_s: float | None  # since its last event; None: never heard


class PlacementIndex:
    """Placements by holder id. Invariant: a holder that is not stale is exactly as its events up to `sequence` say.

    A gap in the sequence or a new epoch makes a holder stale until a snapshot has told its content anew. Sequences are
    followed event by event; what events say of blocks waits until it is asked for, or is worth a change of the table.
    """

    def __init__(self, layout: KvLayout) -> None:
        self._layout = layout
        self._states = States(layout)
        self._pairs = OwnedPairs()
        self._waiting: list[Run] = []
        self._num_waiting = 0  # blocks
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
        if not self._waiting:
            self._pairs.step(0)

    def settle(self) -> None:
        """Put into the table what waits: less is left to do for whoever asks next."""
        if self._waiting:
            runs, self._waiting, self._num_waiting = self._waiting, [], 0
            self._pairs.change(joined(runs))

    @property
    def has_waiting(self) -> bool:
        """Whether there is something to settle."""
        return bool(self._waiting)

    @property
    def room_wanted(self) -> int | None:
        """Buckets of the table that is wanted; making its memory ready takes long, so a thread had better do it."""
        return self._pairs.room_wanted

    @property
    def is_moving(self) -> bool:
        """Whether pairs are on their way to another table: until that is over, every search is two."""
        return self._pairs.is_moving

    def take_room(self, table: PairTable) -> None:
        """Use this empty table of the wanted size from now on."""
        self._pairs.take_room(table)

    def open_snapshot(self, holder_id: WorkerId) -> IncomingSnapshot:
        """Begin to take in what a pool says it holds; the intake is to be closed, whatever happens."""
        return IncomingSnapshot(self._pairs, self._states, holder_id)

    def finish_snapshot(self, intake: IncomingSnapshot, epoch: int, sequence: int) -> None:
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
        self._pairs.owners.give(holder.owner, holder.number)
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
        self.settle()
        wanted = words(b"".join(keys))
        found = self._pairs.find(wanted)
        told = (found.holders == holder.number) & ~self._states.is_assumed[found.states]
        lacking = np.array(groups)
        lacking[found.blocks[told]] &= ~self._states.masks[found.states[told], 1]
        for mask in np.unique(lacking[lacking != 0]).tolist():
            state = self._states.number(mask, mask, is_assumed=True)
            chosen = wanted[lacking == mask]
            owner = self._creditor(holder, until)
            credited = OwnedBlocks(
                chosen, np.full(len(chosen), owner, np.uint32), np.full(len(chosen), state, np.uint32)
            )
            self._pairs.change(Changes(nothing(), credited))

    def held(self, keys: Sequence[BlockKey], now: float) -> dict[WorkerId, HeldPrefix]:
        """Return what each holder that can be trusted has of `keys`; holders with nothing usable are included."""
        self._expire(now)
        self.settle()
        held = held_by_number(self._layout, self._states, self._pairs, b"".join(keys), self._num_numbers)
        return {holder_id: held[holder.number] for holder_id, holder in self._holders.items() if not holder.stale}

    def num_blocks(self) -> dict[WorkerId, int]:
        self.settle()
        return {
            holder_id: 0 if holder.owner is None else self._num_pairs(holder.owner)
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
                num_assumed=sum(self._num_pairs(credit.owner) for credit in holder.credits),
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
            holder.owner = self._pairs.owners.new(holder.number)
        assert holder.owner is not None
        if event.evicted:
            self._waiting.append(Run(event.evicted, holder.owner, EVICTED))
        self._waiting += stored_runs(event.stored, holder.owner, self._states)
        self._num_waiting += event.num_blocks
        if self._num_waiting >= MAX_WAITING_BLOCKS:
            self.settle()

    def _void(self, holder: Holder) -> None:
        self.settle()  # what waits may be of these owners
        owners = [credit.owner for credit in holder.credits]
        if holder.owner is not None:
            owners.append(holder.owner)
        for owner in owners:
            self._pairs.owners.drop(owner)
        holder.owner, holder.credits = None, []

    def _num_pairs(self, owner: int) -> int:
        return int(self._pairs.owners.num_pairs[owner])

    def _creditor(self, holder: Holder, until: float) -> int:
        for credit in holder.credits:
            if credit.until <= until < credit.until + CREDIT_STEP_S:
                return credit.owner
        credit = AssumedBlocks(self._pairs.owners.new(holder.number), until)
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
                    self._pairs.owners.drop(credit.owner)
            holder.credits = [credit for credit in holder.credits if credit.until > now]
        self._next_expiry = min((c.until for holder in self._holders.values() for c in holder.credits), default=inf)
