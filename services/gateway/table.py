"""A hash table of (block, owner) pairs in flat arrays, each operation vectorised over many blocks. Pure."""

import secrets
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
"""Block keys, cut to 64 bits and never 0 (`words` in `services.gateway.pairs`)."""

Pairs = NDArray[np.uint32]
"""What is stored beside a key: the owner's number and a state, as the caller packs them."""

Positions = NDArray[np.intp]

SLOT_BITS = 3
BUCKET_SLOTS = 1 << SLOT_BITS
"""Keys of one bucket fill a cache line."""

MIN_BUCKETS = 128
_PAGE_WORDS = 512  # of the longest items, 8 bytes
_FREE, _ODD = np.uint64(0), np.uint64(1)


class Hits(NamedTuple):
    """Pairs that were found, in no order; a key that several owners hold has several."""

    keys: Positions  # which of the keys asked for
    slots: Positions  # where the pair is


class PairTable:
    """A multimap from keys to pairs. Fixed in size: `services.gateway.pairs` makes a larger one in time.

    A pair lies in the first bucket with a free slot on its key's path, which has a stride of its own: the many pairs of
    a block that every pool holds stand in nobody else's way for long. `_spilled[b]` counts the pairs that found bucket
    b full and went on: a search ends at the first bucket that nobody went past. So removing leaves no tombstones
    behind, and a table that has been emptied is as quick as a new one.
    """

    def __init__(self, num_buckets: int) -> None:
        assert num_buckets >= MIN_BUCKETS
        assert num_buckets & (num_buckets - 1) == 0, "the number of buckets is a power of two"
        self.num_pairs = 0
        self.num_buckets = num_buckets
        self.num_slots = num_buckets * BUCKET_SLOTS
        self._num_touched = 0  # buckets
        self._keys = np.zeros((num_buckets, BUCKET_SLOTS), np.uint64)
        self._pairs = np.zeros(num_buckets * BUCKET_SLOTS, np.uint32)
        self._spilled = np.zeros(num_buckets, np.uint32)
        # Homes come from a secret multiplication: no choice of prompts can pile blocks up in one bucket.
        self._multiplier = np.uint64(secrets.randbits(64) | 1)
        self._shift = np.uint64(64 - (num_buckets.bit_length() - 1))
        self._last_bucket = num_buckets - 1

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._pairs.nbytes + self._spilled.nbytes

    def touch(self, num_buckets: int) -> bool:
        """Write to the memory of the next so many buckets; returns whether all have been written to.

        The kernel clears memory at its first use, 2 MiB at a time: left to the first pairs, which lie all over the
        table, it would all fall to one call.
        """
        first, end = self._num_touched, self._num_touched + num_buckets
        self._keys[first : end : _PAGE_WORDS // BUCKET_SLOTS] = 0
        self._pairs[first * BUCKET_SLOTS : end * BUCKET_SLOTS : _PAGE_WORDS] = 0
        self._spilled[first:end:_PAGE_WORDS] = 0
        self._num_touched = end
        return end >= self.num_buckets

    def find(self, keys: Words) -> Hits:
        """Return where the pairs of these keys are."""
        buckets = self._homes(keys)
        found, further = self._find_in(buckets, keys)
        if not len(further):
            return found
        parts, which = [found], further
        while len(which):
            keys = keys.take(further)
            buckets = self._next(buckets.take(further), keys)
            found, further = self._find_in(buckets, keys)
            parts.append(Hits(which.take(found.keys), found.slots))
            which = which.take(further)
        return Hits(np.concatenate([part.keys for part in parts]), np.concatenate([part.slots for part in parts]))

    def _find_in(self, buckets: Positions, keys: Words) -> tuple[Hits, Positions]:
        """Return what is found in one bucket for each key, and which keys may be further on."""
        # `take` moves whole buckets several times as fast as indexing does.
        hits = (self._keys.take(buckets, axis=0) == keys[:, np.newaxis]).ravel().nonzero()[0]
        rows = hits >> SLOT_BITS
        slots = (buckets.take(rows) << SLOT_BITS) + (hits & (BUCKET_SLOTS - 1))
        return Hits(rows, slots), self._spilled.take(buckets).nonzero()[0]

    def pairs(self, slots: Positions) -> Pairs:
        return self._pairs.take(slots)

    def replace(self, slots: Positions, pairs: Pairs) -> None:
        """Change what is stored beside keys that were found."""
        self._pairs[slots] = pairs

    def insert(self, keys: Words, pairs: Pairs) -> None:
        """Add pairs that are not there yet; the caller sees to it that there is room."""
        self.num_pairs += len(keys)
        assert self.num_pairs <= self.num_slots
        buckets = self._homes(keys)
        while len(keys):
            # Those that meet in a bucket take its free slots in turn; whoever finds none goes on to the next bucket.
            order = buckets.argsort()
            buckets, keys, pairs = buckets.take(order), keys.take(order), pairs.take(order)
            turn = _turns(buckets)
            num_free = (self._keys.take(buckets, axis=0) == _FREE).cumsum(axis=1, dtype=np.int8)
            fits = turn < num_free[:, -1]
            column = (num_free > turn[:, np.newaxis]).argmax(axis=1)
            slots = ((buckets << SLOT_BITS) + column)[fits]
            self._keys.reshape(-1)[slots] = keys[fits]
            self._pairs[slots] = pairs[fits]
            spills = (~fits).nonzero()[0]
            if not len(spills):
                return
            keys, pairs, buckets = keys.take(spills), pairs.take(spills), buckets.take(spills)
            np.add.at(self._spilled, buckets, 1)
            buckets = self._next(buckets, keys)

    def remove(self, slots: Positions) -> None:
        """Remove the pairs in these slots, each named once."""
        flat = self._keys.reshape(-1)
        keys = flat[slots]
        buckets, ends = self._homes(keys), slots >> SLOT_BITS
        flat[slots] = _FREE
        self.num_pairs -= len(slots)
        while len(passed := (buckets != ends).nonzero()[0]):
            keys, buckets, ends = keys[passed], buckets[passed], ends[passed]
            np.subtract.at(self._spilled, buckets, 1)
            buckets = self._next(buckets, keys)

    def take_out(self, first: int, end: int) -> tuple[Words, Pairs]:
        """Empty the buckets `first` to `end` and return what was in them. For a table that is inserted to no more."""
        keys = self._keys[first:end].reshape(-1)
        slots = np.flatnonzero(keys)
        taken, pairs = keys[slots], self._pairs[first * BUCKET_SLOTS :][slots]
        keys[slots] = _FREE
        self.num_pairs -= len(slots)
        return taken, pairs

    def _next(self, buckets: Positions, keys: Words) -> Positions:
        """Return the bucket after each of these on the paths of these keys: odd strides come by all buckets."""
        return (buckets + (keys | _ODD).astype(np.intp)) & self._last_bucket

    def _homes(self, keys: Words) -> Positions:
        return ((keys * self._multiplier) >> self._shift).astype(np.intp)


def _turns(buckets: Positions) -> Positions:
    """Return how many equal numbers come before each of these, which are in order."""
    index = np.arange(len(buckets))
    is_first = np.ones(len(buckets), np.bool_)
    np.not_equal(buckets[1:], buckets[:-1], out=is_first[1:])
    turns: Positions = index - np.maximum.accumulate(index * is_first)
    return turns
