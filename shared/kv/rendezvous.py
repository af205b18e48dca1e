"""Which of a datacenter's pool nodes a block belongs to: rendezvous hashing, the same answer in every process.

Thaler and Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM Transactions on Networking 6(1),
1998: every (key, node) pair has a score, and a key belongs to the node whose score is highest. A node that leaves gives
only its own keys away, to all others alike; one that joins takes its share, from all others alike.

A node's weight is the first 8 bytes of BLAKE2b of its address, a key's the first 8 bytes of the key, which is a sha256
already; both little-endian. The score is SplitMix64's finalizer (Steele, Lea and Flood, OOPSLA 2014) of their XOR. All
of this is part of the wire contract: two processes that disagreed would look for a block in different places.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shared.ids import BlockKey
from shared.kv.hashing import KEY_BYTES

_MASK = (1 << 64) - 1
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)

KeyHeads = NDArray[np.uint64]
"""The first 8 bytes of keys."""

VECTORISED_FROM = 4
"""Fewer keys than this are faster done one by one."""


def owner(key: BlockKey, nodes: Sequence[str]) -> str:
    """Return the node that `key` belongs to. The order of `nodes` does not matter; there is at least one."""
    if len(nodes) == 1:
        return nodes[0]
    return nodes[_owner_index(key, [_weight(node) for node in nodes])]


def owner_indices(keys: Sequence[BlockKey], nodes: Sequence[str]) -> NDArray[np.intp]:
    """Return for each key the index in `nodes` of the node that it belongs to."""
    if len(nodes) == 1 or not keys:
        return np.zeros(len(keys), np.intp)
    if len(keys) < VECTORISED_FROM:
        weights = [_weight(node) for node in nodes]
        return np.array([_owner_index(key, weights) for key in keys], np.intp)
    highest: NDArray[np.intp] = _scores(heads_of(keys), nodes).argmax(axis=0)
    return highest


def heads_of(keys: Sequence[BlockKey]) -> KeyHeads:
    """Return what places follow from. Where the same keys are looked up among several lists of nodes, this is once."""
    return np.frombuffer(b"".join(keys), "<u8")[:: KEY_BYTES // 8].copy()


def owned(heads: KeyHeads, nodes: Sequence[str]) -> NDArray[np.bool_]:
    """Return for each of `nodes` which keys belong to it: `[nodes, keys]`."""
    if len(nodes) == 1:
        return np.ones((1, len(heads)), np.bool_)
    scores = _scores(heads, nodes)
    return np.asarray(scores == scores.max(axis=0))  # a key's scores differ: the finalizer is a bijection


def _scores(heads: KeyHeads, nodes: Sequence[str]) -> NDArray[np.uint64]:
    weights = np.array([_weight(node) for node in nodes], np.uint64)
    scores = np.bitwise_xor(weights[:, None], heads)  # [nodes, keys]: whole rows at a time
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        scores ^= scores >> np.uint64(shift)
        scores *= np.uint64(factor)
    scores ^= scores >> np.uint64(_SHIFTS[-1])
    return scores


def partition(keys: Sequence[BlockKey], nodes: Sequence[str]) -> dict[str, list[int]]:
    """Return the positions in `keys`, ascending, of what each node owns; nodes that own nothing are left out."""
    owners = owner_indices(keys, nodes)
    shares = {node: np.flatnonzero(owners == index).tolist() for index, node in enumerate(nodes)}
    return {node: positions for node, positions in shares.items() if positions}


def _owner_index(key: BlockKey, weights: Sequence[int]) -> int:
    head = int.from_bytes(key[:8], "little")
    scores = [_mix(head ^ weight) for weight in weights]
    return scores.index(max(scores))


def _mix(x: int) -> int:
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        x = ((x ^ (x >> shift)) * factor) & _MASK
    return x ^ (x >> _SHIFTS[-1])


@lru_cache(maxsize=4096)
def _weight(node: str) -> int:
    return int.from_bytes(hashlib.blake2b(node.encode(), digest_size=8).digest(), "little")
