"""A hash table of (block, owner) pairs in flat arrays, each operation vectorised over many blocks. Pure."""

import secrets
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.gateway.placement.table.native import Table
from services.gateway.placement.table.words import Words
from shared.native import address_of

Pairs = NDArray[np.uint32]
"""What is stored beside a key: the owner's number and a state, as the caller packs them."""

Positions = NDArray[np.intp]

BUCKET_SLOTS, BUCKET_BYTES = 8, 128
MIN_BUCKETS = 128

_ROW_BITS, _SLOT_BITS = 4, 3  # of the words of a bucket, of its slots
_COLUMNS = BUCKET_SLOTS - 1

_ONES = np.uint64(0x0101010101010101)
"""A number times this is that number in each of eight bytes, and of eight small bytes the sums from the first on."""

_PASSED = np.uint64(1 << 63)  # of a bucket's tags: somebody found it full and went on
_TAGS = ~_PASSED
_TAG = np.uint8(0x7F)  # 0: the slot is free
_ONE, _WORD_BITS, _LAST_BYTE = np.uint64(1), np.uint64(_ROW_BITS), np.uint64(56)


class Hits(NamedTuple):
    """Pairs that were found, in no order; a key that several owners hold has several."""

    keys: Positions  # which of the keys asked for
    slots: Positions  # where the pair is: its bucket's first word plus its column


class PairTable:
    """A multimap from keys to pairs. Fixed in size: `pairs` moves to a larger one in time.

    A bucket is 16 words, two neighbouring lines of memory, for waiting for memory is what a search does most:

        word 0     1 ... 8    9 ... 12              13           14, 15
        8 tags     8 keys     8 pairs of 32 bits    num spilled  unused

    All tags of a bucket are compared at once, then the few keys whose tag is the one that is looked for, as Swiss
    tables do. A pair lies in the first bucket with a free slot on its key's path, which has a stride of its own: the
    many pairs of a block that every pool holds stand in nobody else's way for long. Each bucket counts the pairs that
    found it full and went on, and a search ends at the first that nobody went past. So removing leaves no tombstones
    behind, and a table that has been emptied is as quick as a new one. Inside, a bucket is named by its first word.
    """

    def __init__(self, num_buckets: int) -> None:
        assert num_buckets >= MIN_BUCKETS
        assert num_buckets & (num_buckets - 1) == 0, "the number of buckets is a power of two"
        self.num_pairs = 0
        self.num_buckets = num_buckets
        self.num_slots = num_buckets * BUCKET_SLOTS
        self._words = np.zeros(num_buckets << _ROW_BITS, "<u8")
        # Views that begin where the first bucket's are, so that positions need no sums.
        self._tags, self._keys, self._spilled = self._words.view(np.uint8), self._words[1:], self._words[13:]
        self._pairs = self._words[9:].view("<u4")
        # Homes come from a secret multiplication: no choice of prompts can pile blocks up in one bucket.
        self._multiplier = np.uint64(secrets.randbits(64) | 1)
        self._shift = np.uint64(64 - (num_buckets.bit_length() - 1) - _ROW_BITS)
        self._last_row = np.uint64(num_buckets - 1 << _ROW_BITS)
        self.in_c = Table(address_of(self._words), int(self._multiplier), int(self._last_row), int(self._shift))

    @property
    def nbytes(self) -> int:
        return self._words.nbytes

    def touch(self, first: int, end: int) -> None:
        """Write to the memory of these buckets of an empty table, in a thread: NumPy lets go of the GIL meanwhile.

        The kernel clears memory at its first use, 2 MiB at a time: left to the first pairs, which lie all over the
        table, hundreds of those would fall to one call.
        """
        self._words[first << _ROW_BITS : end << _ROW_BITS].fill(0)

    def find(self, keys: Words) -> Hits:
        """Return where the pairs of these keys are."""
        rows = homes = self._homes(keys)
        found, further = self._find_in(rows, keys)
        if not len(further):
            return found
        parts, which = [found], further
        while len(which):
            keys, homes = keys.take(further), homes.take(further)
            rows = self._next(rows.take(further), keys)
            found, further = self._find_in(rows, keys)
            parts.append(Hits(which.take(found.keys), found.slots))
            # Who comes home has seen all: where blocks came and went that many pools hold, all buckets may be passed.
            further = further[(self._next(rows, keys) != homes).take(further)]
            which = which.take(further)
        return Hits(np.concatenate([part.keys for part in parts]), np.concatenate([part.slots for part in parts]))

    def _find_in(self, rows: Positions, keys: Words) -> tuple[Hits, Positions]:
        """Return what is found in one bucket for each key, and which keys may be further on."""
        tags = self._words.take(rows)
        likely = ((tags & _TAGS).view(np.uint8) == (_tags_of(keys) * _ONES).view(np.uint8)).nonzero()[0]
        which = likely >> _SLOT_BITS
        slots = rows.take(which) + (likely & _COLUMNS)
        hits = (self._keys.take(slots) == keys.take(which)).nonzero()[0]
        return Hits(which.take(hits), slots.take(hits)), (tags > _TAGS).nonzero()[0]

    def pairs(self, slots: Positions) -> Pairs:
        return self._pairs.take((slots << 1) - (slots & _COLUMNS))

    def replace(self, slots: Positions, pairs: Pairs) -> None:
        """Change what is stored beside keys that were found."""
        self._pairs[(slots << 1) - (slots & _COLUMNS)] = pairs

    def insert(self, keys: Words, pairs: Pairs) -> None:
        """Add pairs that are not there yet; the caller sees to it that there is room."""
        self.num_pairs += len(keys)
        assert self.num_pairs <= self.num_slots
        rows = self._homes(keys)
        while len(keys):
            # Those that meet in a bucket take its free slots in turn; whoever finds none goes on to the next bucket.
            order = rows.argsort()
            rows, keys, pairs = rows.take(order), keys.take(order), pairs.take(order)
            columns = self._free_columns(rows, _turns(rows))
            fits, spills = (columns < BUCKET_SLOTS).nonzero()[0], (columns == BUCKET_SLOTS).nonzero()[0]
            slots, placed = rows.take(fits) + columns.take(fits), keys.take(fits)
            self._keys[slots] = placed
            self.replace(slots, pairs.take(fits))
            self._tags[_tag_at(slots)] |= _tags_of(placed).astype(np.uint8)
            if not len(spills):
                return
            keys, pairs, rows = keys.take(spills), pairs.take(spills), rows.take(spills)
            np.add.at(self._spilled, rows, np.uint64(1))
            self._words[rows] |= _PASSED
            rows = self._next(rows, keys)

    def _free_columns(self, rows: Positions, turns: Positions) -> Positions:
        """Return the column of the free slot that it is each one's turn to take, `BUCKET_SLOTS` if there is none."""
        is_free = (self._words.take(rows) & _TAGS).view(np.uint8) == 0
        num_free = (is_free.view(np.uint64) * _ONES).view(np.uint8)  # from the first slot to each
        turn = (np.minimum(turns, BUCKET_SLOTS).astype(np.uint64) * _ONES).view(np.uint8)
        num_before = ((num_free <= turn).view(np.uint64) * _ONES) >> _LAST_BYTE
        columns: Positions = num_before.view(np.intp)
        return columns

    def remove(self, slots: Positions) -> None:
        """Remove the pairs in these slots, each named once."""
        self.num_pairs -= len(slots)
        self._tags[_tag_at(slots)] &= ~_TAG
        keys = self._keys.take(slots)
        rows, ends = self._homes(keys), slots & ~_COLUMNS
        while len(passed := (rows != ends).nonzero()[0]):
            keys, rows, ends = keys.take(passed), rows.take(passed), ends.take(passed)
            np.subtract.at(self._spilled, rows, np.uint64(1))
            self._words[rows[self._spilled.take(rows) == 0]] &= _TAGS
            rows = self._next(rows, keys)

    def take_out(self, first: int, end: int) -> tuple[Words, Pairs]:
        """Empty the buckets `first` to `end` and return what was in them. For a table that is inserted to no more."""
        tags = self._words[first << _ROW_BITS : end << _ROW_BITS : 1 << _ROW_BITS]
        taken = (tags & _TAGS).view(np.uint8).nonzero()[0]
        slots = ((taken >> _SLOT_BITS) + first << _ROW_BITS) + (taken & _COLUMNS)
        tags &= _PASSED
        self.num_pairs -= len(slots)
        return self._keys.take(slots), self.pairs(slots)

    def _next(self, rows: Positions, keys: Words) -> Positions:
        """Return the bucket after each of these on the paths of these keys: odd strides come by all buckets."""
        return ((rows.view(np.uint64) + ((keys | _ONE) << _WORD_BITS)) & self._last_row).view(np.intp)

    def _homes(self, keys: Words) -> Positions:
        return (((keys * self._multiplier) >> self._shift) & self._last_row).view(np.intp)


def _tag_at(slots: Positions) -> Positions:
    """Return where the tags of these slots are, in bytes."""
    at: Positions = ((slots & ~_COLUMNS) << 3) + (slots & _COLUMNS)
    return at


def _tags_of(keys: Words) -> Words:
    tags: Words = np.maximum(keys & np.uint64(_TAG), _ONE)
    return tags


def _turns(rows: Positions) -> Positions:
    """Return how many equal numbers come before each of these, which are in order."""
    index = np.arange(len(rows))
    is_first = np.ones(len(rows), np.bool_)
    np.not_equal(rows[1:], rows[:-1], out=is_first[1:])
    turns: Positions = index - np.maximum.accumulate(index * is_first)
    return turns
