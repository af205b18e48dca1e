"""Who holds which block, for many holders at once: a table that grows, shrinks and forgets a step at a time. Pure."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.gateway.table import BUCKET_SLOTS, MIN_BUCKETS, PairTable, Positions, Words
from shared.kv.hashing import KEY_BYTES

MAX_STATES = 1 << 12
MAX_OWNERS = 1 << 20
_STATE_BITS, _STATE = np.uint32(12), np.uint32(MAX_STATES - 1)  # a pair is owner and state in 32 bits

MAX_LOAD = 0.5
"""Of the slots, when the next table is prepared. A second visit costs a lookup as many array calls as the first."""

MIN_GARBAGE = 1 << 16
"""Pairs of dropped owners that are not worth a new table, nor are as many dropped owners."""

MAX_STEP_BLOCKS = 4096
"""Blocks that are looked up at once: more only make the arrays in between outgrow the CPU's caches."""

STEP_BUCKETS, MAX_STEP_BUCKETS = 256, 4096
"""Buckets that move in one step, and two more for every block of the step, up to the second number: a move, in which
every lookup is two, ends before an eighth of the old table's slots has come on top, and no step takes ten
milliseconds."""

TOUCH_BUCKETS = 4096
"""Buckets of the next table whose memory is written to in one step before the move, and eight more for every block
of the step: 4 MiB at most, and all of it before a 32nd of the old table's slots has come on top."""

NO_HOLDER = -1


class Found(NamedTuple):
    """Pairs of an owner with a holder, in no order."""

    blocks: Positions  # index into the keys asked for
    owners: NDArray[np.uint32]
    holders: NDArray[np.int32]
    states: NDArray[np.uint32]


def words(packed: bytes) -> Words:
    """Cut packed block keys to 64 bits each.

    They are sha256 values, so of n blocks that are asked for, about n * m / 2^64 are taken for one of m stored ones:
    one in 10^9 requests of 2,000 blocks against ten million. It costs that request a wrong plan, never a wrong answer.
    """
    cut = np.frombuffer(packed, "<u8")[:: KEY_BYTES // 8]
    keys: Words = np.maximum(cut, 1)
    return keys


class OwnedPairs:
    """(block, owner) pairs, each with a state below `MAX_STATES`.

    An owner is a number that stands for what one holder holds, for as long as that is true: a holder whose content is
    void gets a new owner, which takes no time, however much it held. Pairs of dropped owners are garbage, left behind
    when the table moves to a new one. That happens when it is full, whatever it is full of: a few buckets with every
    change, so that no call takes long. Until all have moved, a pair is in either table, never in both.
    """

    def __init__(self) -> None:
        self._table = PairTable(MIN_BUCKETS)
        self._old: PairTable | None = None
        self._coming: PairTable | None = None  # to move to, once its memory has been touched
        self._next_bucket = 0  # of the old table, to be moved
        self._holder_of = np.full(64, NO_HOLDER, np.int32)  # by owner
        self._num_pairs = np.zeros(64, np.int64)  # by owner
        self._is_live = np.zeros(64, np.bool_)
        self._free_owners = list(reversed(range(64)))
        self._dropped: list[int] = []  # since the move began: the new table may have pairs of theirs
        self._leaving: list[int] = []  # dropped before it began: gone when it is over
        self._num_garbage = 0

    @property
    def nbytes(self) -> int:
        return sum(table.nbytes for table in (self._table, self._old, self._coming) if table is not None)

    def num_pairs(self, owner: int) -> int:
        return int(self._num_pairs[owner])

    def new_owner(self, holder: int = NO_HOLDER) -> int:
        """Return an owner; without a holder its pairs are not found until it is given one."""
        if not self._free_owners:
            self._add_owners()
        owner = self._free_owners.pop()
        self._is_live[owner] = True
        self._holder_of[owner] = holder
        return owner

    def give(self, owner: int, holder: int) -> None:
        """Let an owner's pairs be found as the holder's."""
        self._holder_of[owner] = holder

    def drop(self, owner: int) -> None:
        """Forget an owner and all its pairs, at once."""
        self._is_live[owner] = False
        self._holder_of[owner] = NO_HOLDER
        self._num_garbage += int(self._num_pairs[owner])
        self._dropped.append(owner)

    def put(self, owner: int, keys: Words, states: NDArray[np.uint32]) -> None:
        """Set the state of blocks for an owner; of a block that is named twice, the last one."""
        keys, states = _last_of_each(keys, states)
        for start in range(0, len(keys), MAX_STEP_BLOCKS):
            self._put(owner, keys[start : start + MAX_STEP_BLOCKS], states[start : start + MAX_STEP_BLOCKS])

    def remove(self, holder: int, keys: Words) -> None:
        """Remove these blocks from all owners of a holder."""
        for start in range(0, len(keys), MAX_STEP_BLOCKS):
            self.step(0)
            part = keys[start : start + MAX_STEP_BLOCKS]
            part = part if _is_distinct(part) else np.unique(part)
            for table in self._tables():
                slots = table.find(part).slots
                owners = table.pairs(slots) >> _STATE_BITS
                chosen = self._holder_of.take(owners) == holder
                table.remove(slots[chosen])
                np.subtract.at(self._num_pairs, owners[chosen], 1)

    def find(self, keys: Words) -> Found:
        """Return every pair of these blocks whose owner has a holder."""
        hits = self._table.find(keys)
        blocks, pairs = hits.keys, self._table.pairs(hits.slots)
        if self._old is not None:
            hits = self._old.find(keys)
            blocks, pairs = np.concatenate([blocks, hits.keys]), np.concatenate([pairs, self._old.pairs(hits.slots)])
        owners = pairs >> _STATE_BITS
        holders = self._holder_of.take(owners)
        if holders.min(initial=0) == NO_HOLDER:
            seen = (holders != NO_HOLDER).nonzero()[0]
            blocks, pairs, owners, holders = blocks[seen], pairs[seen], owners[seen], holders[seen]
        return Found(blocks, owners, holders, pairs & _STATE)

    def step(self, num_blocks: int) -> None:
        """Move what a change of `num_blocks` blocks pays for; prepare a move when it is time. Cheap when it is not."""
        if self._old is not None:
            self._move(min(2 * num_blocks + STEP_BUCKETS, MAX_STEP_BUCKETS))
        elif self._coming is not None or self._is_due(num_blocks):
            if self._coming is None:
                self._coming = PairTable(self._num_buckets_wanted())
            if self._coming.touch(8 * num_blocks + TOUCH_BUCKETS):
                self._old, self._table, self._coming = self._table, self._coming, None
                self._next_bucket = 0
                self._leaving, self._dropped = self._dropped, []

    def _put(self, owner: int, keys: Words, states: NDArray[np.uint32]) -> None:
        self.step(len(keys))
        pairs = np.uint32(owner) << _STATE_BITS | states
        is_new = np.ones(len(keys), np.bool_)
        for table in self._tables():
            hits = table.find(keys)
            if len(hits.slots):
                own = (table.pairs(hits.slots) >> _STATE_BITS == owner).nonzero()[0]
                known = hits.keys.take(own)
                table.replace(hits.slots.take(own), pairs.take(known))
                is_new[known] = False
        new = is_new.nonzero()[0]
        if len(new):
            self._num_pairs[owner] += len(new)
            self._table.insert(keys.take(new), pairs.take(new))

    def _tables(self) -> tuple[PairTable, ...]:
        return (self._table,) if self._old is None else (self._table, self._old)

    def _is_due(self, num_more: int) -> bool:
        garbage, stored = self._num_garbage, self._table.num_pairs
        return (
            stored + num_more > MAX_LOAD * self._table.num_slots
            or garbage > max(MIN_GARBAGE, stored // 2)
            or len(self._dropped) > MIN_GARBAGE
        )

    def _num_buckets_wanted(self) -> int:
        live = self._table.num_pairs - self._num_garbage
        # More than what comes before the old table is empty (see TOUCH_BUCKETS, STEP_BUCKETS): a table of the same size
        # is no use when it is due again at once.
        wanted = max(2 * live, 3 * (live + self._table.num_slots * 5 // 16) // 2) + 2 * MAX_STEP_BLOCKS
        num_buckets = MIN_BUCKETS
        while num_buckets * BUCKET_SLOTS < wanted:
            num_buckets *= 2
        return num_buckets

    def _move(self, num_buckets: int) -> None:
        assert self._old is not None
        keys, pairs = self._old.take_out(self._next_bucket, self._next_bucket + num_buckets)
        is_live = self._is_live.take(pairs >> _STATE_BITS)
        keys, pairs, num_before = keys[is_live], pairs[is_live], len(keys)
        self._table.insert(keys, pairs)
        self._num_garbage -= num_before - len(keys)
        self._next_bucket += num_buckets
        if self._next_bucket >= self._old.num_buckets:
            self._old = None
            self._num_pairs[self._leaving] = 0
            self._free_owners += self._leaving
            self._leaving = []

    def _add_owners(self) -> None:
        num_owners = len(self._is_live)
        assert num_owners < MAX_OWNERS, "owners are dropped, not lost"
        self._holder_of = np.concatenate([self._holder_of, np.full(num_owners, NO_HOLDER, np.int32)])
        self._num_pairs = np.concatenate([self._num_pairs, np.zeros(num_owners, np.int64)])
        self._is_live = np.concatenate([self._is_live, np.zeros(num_owners, np.bool_)])
        self._free_owners = list(reversed(range(num_owners, 2 * num_owners)))


def _is_distinct(keys: Words) -> bool:
    """Return whether no key is named twice: hardly ever is one."""
    ordered = np.sort(keys)
    return not (ordered[1:] == ordered[:-1]).any()


def _last_of_each(keys: Words, states: NDArray[np.uint32]) -> tuple[Words, NDArray[np.uint32]]:
    """Drop all but the last mention of each key."""
    if _is_distinct(keys):
        return keys, states
    _, last = np.unique(keys[::-1], return_index=True)
    chosen = len(keys) - 1 - last
    return keys[chosen], states[chosen]
