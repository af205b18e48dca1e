"""How requests name KV entries: some layers of a block, and where else a run of blocks can be had."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from shared.ids import BlockKey, Datacenter


class BlockEntries(NamedTuple):
    """Some layers of one block."""

    key: BlockKey
    layers: int  # bitmask, bit i for layer i; 0 where only the place in the chain matters


class Source(NamedTuple):
    """Blocks `[first, end)` of a request's chain can be had from the pool of a datacenter."""

    first: int
    end: int
    dc: Datacenter
    nodes: tuple[str, ...]  # host:port of its pool nodes, at least one; `shared.kv.rendezvous` says which has a key


def reindexed(sources: Iterable[Source], blocks: Sequence[int]) -> list[Source]:
    """Turn ranges of chain blocks into ranges of positions in `blocks` (ascending); empty ones vanish."""
    moved = (s._replace(first=bisect_left(blocks, s.first), end=bisect_left(blocks, s.end)) for s in sources)
    return [source for source in moved if source.first < source.end]
