"""How requests name KV entries: some layers of a block, and where else a run of blocks can be had."""

from typing import NamedTuple

from shared.ids import BlockKey


class BlockEntries(NamedTuple):
    """Some layers of one block."""

    key: BlockKey
    layers: int  # bitmask, bit i for layer i; 0 where only the place in the chain matters


class Source(NamedTuple):
    """Blocks `[first, end)` of a request's chain can be had from the pool at `address`."""

    first: int
    end: int
    address: str  # host:port
    dc: str = ""  # of that pool; empty: not known, and taken for the reader's own
