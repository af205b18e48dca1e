"""Who holds which block, for many holders at once: a table that grows, shrinks and forgets a step at a time. Pure."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.gateway.table import BUCKET_SLOTS, MIN_BUCKETS, PairTable, Positions, Words
from shared.kv.hashing import KEY_BYTES

MAX_STATES = 1 << 12
MAX_OWNERS = 1 << 20
_STATE_BITS, _STATE = np.uint32(12), np.uint32(MAX_STATES - 1)  # a pair is owner and state in 32 bits

MAX_LOAD = 0.6
"""Of the slots: a lookup of 2,000 blocks then visits the next bucket for one in seven, and a fifth for hardly one."""

MIN_GARBAGE = 1 << 16
"""Pairs of dropped owners that are not worth a new table, nor are as many dropped owners."""

MAX_STEP_BLOCKS = 4096
"""Blocks that are looked up at once: more only make the arrays in between outgrow the CPU's caches."""

STEP_BUCKETS = 256
"""Buckets that move in one step, and one more for every two blocks of the step: so a move ends before a quarter of the
old table's slots has come on top, and no step takes milliseconds."""

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
        return self._table.nbytes + (self._old.nbytes if self._old else 0)

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
        blocks, pairs = [], []
        for table in self._tables():
            hits = table.find(keys)
            blocks.append(hits.keys)
            pairs.append(table.pairs(hits.slots))
        all_blocks, all_pairs = np.concatenate(blocks), np.concatenate(pairs)
        owners = all_pairs >> _STATE_BITS
        holders = self._holder_of.take(owners)
        if (seen := np.flatnonzero(holders != NO_HOLDER)).size < holders.size:
            all_blocks, all_pairs, owners, holders = all_blocks[seen], all_pairs[seen], owners[seen], holders[seen]
        return Found(all_blocks, owners, holders, all_pairs & _STATE)

    def step(self, num_blocks: int) -> None:
        """Move what a change of `num_blocks` blocks pays for; begin to move when it is time. Cheap when it is not."""
        if self._old is not None:
            self._move(num_blocks // 2 + STEP_BUCKETS)
        elif self._is_due(num_blocks):
            self._begin_move()

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

    def _begin_move(self) -> None:
        live = self._table.num_pairs - self._num_garbage
        # What comes while the old table empties (see STEP_BUCKETS) must leave the new one below two thirds.
        wanted = max(2 * live, 3 * (live + self._table.num_slots // 4) // 2) + 2 * MAX_STEP_BLOCKS
        num_buckets = MIN_BUCKETS
        while num_buckets * BUCKET_SLOTS < wanted:
            num_buckets *= 2
        self._old, self._table = self._table, PairTable(num_buckets)
        self._next_bucket = 0
        self._leaving, self._dropped = self._dropped, []

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
