"""Small layouts, keys and frames, and a clock that only moves when told to, for tests of the pool."""

import hashlib
from collections.abc import Sequence

from services.cachepool.block import BLOCK_OVERHEAD_BYTES, ENTRY_OVERHEAD_BYTES
from shared.ids import BlockKey
from shared.kv.codec import Codec
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame, seal
from shared.kv.layout import KvLayout, LayerSpec

LAYOUT = KvLayout((LayerSpec(None, 1, 4), LayerSpec(8, 1, 4), LayerSpec(None, 1, 4)), "bfloat16", block_tokens=4)
"""Three layers of 64 bytes each: 0 and 2 are group 0 (full), 1 is group 1 (window)."""

ALL = LAYOUT.all_layers
ENTRY_BYTES = LAYOUT.entry_bytes(0)
BLOCK_BYTES = BLOCK_OVERHEAD_BYTES + LAYOUT.num_layers * (ENTRY_BYTES + ENTRY_OVERHEAD_BYTES)
"""What a whole block takes from a pool's budget."""


class ManualClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def key(name: object) -> BlockKey:
    return BlockKey(hashlib.sha256(repr(name).encode()).digest())


def keys(prefix: str, count: int) -> list[BlockKey]:
    return [key((prefix, number)) for number in range(count)]


def wanting(block_keys: Sequence[BlockKey], layers: int = ALL) -> list[BlockEntries]:
    return [BlockEntries(block_key, layers) for block_key in block_keys]


def frame(block_key: BlockKey, layer: int, layout: KvLayout = LAYOUT) -> Frame:
    """A sealed frame whose content is determined by its key and layer."""
    seed = block_key + bytes([layer])
    size = layout.entry_bytes(layer)
    return seal(block_key, layer, (seed * (size // len(seed) + 1))[:size], Codec.RAW)
