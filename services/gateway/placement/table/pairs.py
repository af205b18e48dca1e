"""Who holds which block, for many holders at once: a table that grows, shrinks and forgets a step at a time. Pure."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.gateway.placement.table.changes import MAX_STATES, Changes, OwnedBlocks
from services.gateway.placement.table.owners import MAX_OWNERS, NO_HOLDER, Owners
from services.gateway.placement.table.table import BUCKET_SLOTS, MIN_BUCKETS, PairTable, Positions
from services.gateway.placement.table.words import Words

_STATE_BITS, _STATE = np.uint32(12), np.uint32(MAX_STATES - 1)  # a pair is owner and state in 32 bits

MAX_LOAD = 0.5
"""Of the slots, when the next table is wanted. A second visit costs a lookup as many array calls as the first."""

PRESSING_LOAD = 0.9
"""Of the slots, when the next table is taken as it is, though nobody has made its memory ready. From `MAX_LOAD` to here
a million blocks a second leave the thread 200 ms for each 16 MiB, which took 2 to 44 ms of CPU."""

SMALL_BUCKETS = 1 << 11
"""Of a table whose memory, 256 KiB, need not be made ready."""

MIN_GARBAGE = 1 << 16
"""Pairs of dropped owners that are not worth a new table, nor are as many dropped owners."""

MAX_STEP_BLOCKS = 4096
"""Blocks that are looked up at once: more only make the arrays in between outgrow the CPU's caches."""

STEP_BUCKETS = 256
"""Buckets that move in one step, and one more for every block of the step: a move, in which every lookup is two, ends
before an eighth of the old table's slots has come on top, and no step takes more than some milliseconds."""


class Found(NamedTuple):
    """Pairs of an owner with a holder, in no order."""

    blocks: Positions  # index into the keys asked for
    owners: NDArray[np.uint32]
    holders: Positions
    states: NDArray[np.uint32]


class OwnedPairs:
    """(block, owner) pairs, each with a state below `MAX_STATES`.

    When the table is full, of whatever, or half garbage, another one is wanted (`room_wanted`), and as soon as it has
    been brought all pairs move there, a few buckets with every change. Until that is done, a pair is in either table,
    never in both.
    """

    def __init__(self) -> None:
        self.owners = Owners()
        self.room_wanted: int | None = None  # buckets of the table to move to
        self._table = PairTable(MIN_BUCKETS)
        self._old: PairTable | None = None
        self._next_bucket = 0  # of the old table, to be moved

    @property
    def nbytes(self) -> int:
        return sum(table.nbytes for table in self.tables)

    @property
    def tables(self) -> tuple[PairTable, ...]:
        """One, or while pairs move two, of which a pair is in either."""
        return (self._table,) if self._old is None else (self._table, self._old)

    @property
    def is_moving(self) -> bool:
        return self._old is not None

    def change(self, changes: Changes) -> None:
        """Remove blocks from all owners of their owner's holder, then set the state of others."""
        for batch, apply in ((changes.evicted, self._remove), (changes.stored, self._put)):
            for start in range(0, len(batch.keys), MAX_STEP_BLOCKS):
                part = batch.take(slice(start, start + MAX_STEP_BLOCKS))
                self.step(len(part.keys))
                apply(part)

    def find(self, keys: Words) -> Found:
        """Return every pair of these blocks whose owner has a holder."""
        hits = self._table.find(keys)
        blocks, pairs = hits.keys, self._table.pairs(hits.slots)
        if self._old is not None:
            hits = self._old.find(keys)
            blocks, pairs = np.concatenate([blocks, hits.keys]), np.concatenate([pairs, self._old.pairs(hits.slots)])
        owners = pairs >> _STATE_BITS
        holders = self.owners.holder_of.take(owners)
        if holders.min(initial=0) == NO_HOLDER:
            seen = (holders != NO_HOLDER).nonzero()[0]
            blocks, pairs, owners, holders = blocks[seen], pairs[seen], owners[seen], holders[seen]
        return Found(blocks, owners, holders, pairs & _STATE)

    def step(self, num_blocks: int) -> None:
        """Move what a change of `num_blocks` blocks pays for, or see whether it is time to. Cheap when it is not."""
        if self._old is not None:
            self._move(num_blocks + STEP_BUCKETS)
        elif self._is_due(num_blocks):
            wanted = self._num_buckets_wanted()
            if wanted <= SMALL_BUCKETS or self._is_pressing(num_blocks):
                self._begin_move(PairTable(wanted))
            elif self.room_wanted is None:
                self.room_wanted = wanted

    def take_room(self, table: PairTable) -> None:
        """Move to this empty table of the wanted size, unless it comes too late: pairs cannot always wait for it."""
        if table.num_buckets == self.room_wanted:
            self._begin_move(table)

    def _begin_move(self, table: PairTable) -> None:
        self.room_wanted = None
        self._old, self._table = self._table, table
        self._next_bucket = 0
        self.owners.begin_move()

    def _move(self, num_buckets: int) -> None:
        assert self._old is not None
        keys, pairs = self._old.take_out(self._next_bucket, self._next_bucket + num_buckets)
        is_live = self.owners.is_live.take(pairs >> _STATE_BITS)
        live = is_live.nonzero()[0]
        self._table.insert(keys.take(live), pairs.take(live))
        self.owners.num_garbage -= len(keys) - len(live)
        self._next_bucket += num_buckets
        if self._next_bucket >= self._old.num_buckets:
            self._old = None
            self.owners.end_move()

    def _put(self, batch: OwnedBlocks) -> None:
        pairs = batch.owners << _STATE_BITS | batch.states
        is_new = np.ones(len(pairs), np.bool_)
        for table in self.tables:
            hits = table.find(batch.keys)
            if len(hits.slots):
                own = (table.pairs(hits.slots) >> _STATE_BITS == batch.owners.take(hits.keys)).nonzero()[0]
                known = hits.keys.take(own)
                table.replace(hits.slots.take(own), pairs.take(known))
                is_new[known] = False
        new = is_new.nonzero()[0]
        if len(new):
            np.add.at(self.owners.num_pairs, batch.owners.take(new), 1)
            self._table.insert(batch.keys.take(new), pairs.take(new))

    def _remove(self, batch: OwnedBlocks) -> None:
        holders = self.owners.holder_of.take(batch.owners)
        for table in self.tables:
            hits = table.find(batch.keys)
            owners = table.pairs(hits.slots) >> _STATE_BITS
            chosen = (self.owners.holder_of.take(owners) == holders.take(hits.keys)).nonzero()[0]
            if len(chosen):
                table.remove(hits.slots.take(chosen))
                np.subtract.at(self.owners.num_pairs, owners.take(chosen), 1)

    def _is_due(self, num_more: int) -> bool:
        garbage, stored = self.owners.num_garbage, self._table.num_pairs
        return (
            stored + num_more > MAX_LOAD * self._table.num_slots
            or garbage > max(MIN_GARBAGE, stored // 2)
            or self.owners.num_dropped > MIN_GARBAGE
        )

    def _is_pressing(self, num_more: int) -> bool:
        is_full = self._table.num_pairs + num_more > PRESSING_LOAD * self._table.num_slots
        return is_full or self.owners.num_dropped > MAX_OWNERS // 2

    def _num_buckets_wanted(self) -> int:
        live = self._table.num_pairs - self.owners.num_garbage
        # More than what comes before the old table is empty (see STEP_BUCKETS), and before this one has been brought:
        # a table of the same size is no use when it is due again at once.
        wanted = max(2 * live, 3 * (live + self._table.num_slots * 5 // 16) // 2) + 2 * MAX_STEP_BLOCKS
        num_buckets = MIN_BUCKETS
        while num_buckets * BUCKET_SLOTS < wanted:
            num_buckets *= 2
        return num_buckets
