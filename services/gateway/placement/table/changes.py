"""What events say of blocks, gathered: small events change the table in one go, as if one after the other. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.gateway.placement.table.words import Words, words
from shared.kv.hashing import KEY_BYTES

MAX_STATES = 1 << 12
EVICTED = MAX_STATES
"""The state of a run whose blocks are gone from all that the owner's holder has."""

_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # tells one block's owners apart: odd, and no small multiple is like another


class Run(NamedTuple):
    """Blocks that are held by an owner in the same way from now on, or are evicted."""

    keys: bytes  # packed
    owner: int
    state: int


class OwnedBlocks(NamedTuple):
    """Blocks of owners; no block is named twice for one owner."""

    keys: Words
    owners: NDArray[np.uint32]
    states: NDArray[np.uint32]

    def take(self, chosen: "NDArray[np.intp] | slice") -> "OwnedBlocks":
        return OwnedBlocks(self.keys[chosen], self.owners[chosen], self.states[chosen])


class Changes(NamedTuple):
    """What runs come to: first these are evicted, then those are stored."""

    evicted: OwnedBlocks
    stored: OwnedBlocks


def nothing() -> OwnedBlocks:
    return OwnedBlocks(np.zeros(0, np.uint64), np.zeros(0, np.uint32), np.zeros(0, np.uint32))


def joined(runs: Sequence[Run]) -> Changes:
    """Return what runs come to, taken in their order.

    All that was evicted at some time is evicted, for the table may have it from before; stored is what was not evicted
    afterwards, as it was stored last.
    """
    num_blocks = [len(run.keys) // KEY_BYTES for run in runs]
    owners = np.array([run.owner for run in runs], np.uint32).repeat(num_blocks)
    states = np.array([run.state for run in runs], np.uint32).repeat(num_blocks)
    every = OwnedBlocks(words(b"".join([run.keys for run in runs])), owners, states)
    is_evicted = every.states == EVICTED
    evicted, stored = is_evicted.nonzero()[0], (~is_evicted).nonzero()[0]
    pairs = every.keys ^ (every.owners * _SPREAD)
    if not _is_distinct(pairs):
        evicted = evicted.take(np.unique(pairs.take(evicted), return_index=True)[1])
        last = len(pairs) - 1 - np.unique(pairs[::-1], return_index=True)[1]
        stored = last[~is_evicted.take(last)]
    return Changes(every.take(evicted), every.take(stored))


def _is_distinct(numbers: Words) -> bool:
    """Return whether none is there twice: in most batches none is."""
    ordered = np.sort(numbers)
    return not (ordered[1:] == ordered[:-1]).any()
