"""What a block is worth: how often and how lately it was used, and what its bytes would cost to compute again. Pure."""

import math
from typing import Final

from services.cachepool.store.block import Block, Uses, whole_charge
from shared.ids import BlockKey

CORRELATED_S = 10.0
"""Uses within this time are one: prefill's claim, its fetch and decode's fetch serve a single request (the correlated
reference period of LRU-K, O'Neil et al. 1993)."""

FIRST_INTERVAL_S = 100.0
INTERVAL_SAMPLES = 10_000
"""The typical time between two uses, before any was seen, and over how many of them it is averaged."""

COST_WEIGHT = 0.25
"""How much a factor of two in recompute time per byte counts beside a factor of two in uses. At 1 the pool saves more
time in some sizes and hits less often than LRU in others; the trace decides (docs/results/eviction.md)."""

ATTENTION_EQUALS_LINEAR_TOKENS = 8192
"""Prefix length at which attention over it takes as long as all that does not depend on it."""


class History:
    """Uses of blocks that are not here any more, so that one that comes back is known: two generations, all O(1)."""

    PER_BLOCK: Final = 8
    BYTES: Final = 120  # of one remembered block: two small integers in a dictionary

    def __init__(self) -> None:
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def remember(self, key: BlockKey, uses: Uses, num_blocks: int) -> None:
        """Keep what is known of a block; of `PER_BLOCK` times `num_blocks` blocks, the latest, something is kept."""
        # One integer in place of two numbers and a tuple: 64 instead of 170 bytes.
        self._young[_short(key)] = round(uses.counted_at * 16) << 8 | min(uses.count, 255)
        if len(self._young) >= self.PER_BLOCK // 2 * max(1, num_blocks):
            self._old, self._young = self._young, {}

    def recall(self, key: BlockKey) -> Uses:
        """Forget a block and return its uses; none when it is not known."""
        packed = self._young.pop(_short(key), 0) or self._old.pop(_short(key), 0)
        counted_at = (packed >> 8) / 16
        return Uses(packed & 255, counted_at, counted_at)


def _short(key: BlockKey) -> int:
    return int.from_bytes(key[:8], "little")


class ReuseClock:
    """Counts uses, and learns how long the typical reuse takes, blocks that had been evicted meanwhile included."""

    def __init__(self) -> None:
        self.interval_s = FIRST_INTERVAL_S
        self._num_samples = 0

    def count(self, uses: Uses, now: float, least: int = 1) -> bool:
        """Count a use, of `least` or more, and return True; False when it belongs to the last one."""
        uses.last_at = now
        since_counted = now - uses.counted_at
        if uses.count and since_counted < CORRELATED_S:
            return False
        if uses.count:
            self._num_samples = min(self._num_samples + 1, INTERVAL_SAMPLES)
            self.interval_s += (since_counted - self.interval_s) / self._num_samples
        uses.count = max(uses.count + 1, least)
        uses.counted_at = now
        return True

    def bonus_s(self, block: Block) -> float:
        """Return how much longer than at its last use a block counts as used: an interval for each doubling of worth.

        Worth is uses times recompute time per byte. Exponential ageing of it is what adding logarithms to a time means:
        an order that holds while nothing is used needs no recomputing.
        """
        whole = whole_charge(block.layout)
        density = recompute_cost(block) * whole / (block.charge or whole)
        return self.interval_s * (math.log2(max(1, block.uses.count)) + COST_WEIGHT * math.log2(density))

    def resume_bonus_s(self, block: Block) -> float:
        """Return the same for resumes right behind a block. One made its end and one went on: more are a habit."""
        return self.interval_s * math.log2(max(2, block.resumes.count) / 2)


def recompute_cost(block: Block) -> float:
    """Return the time to compute a block again, in units of that of a chain's first: attention grows with depth."""
    layout = block.layout
    full_share = 1 - layout.window_layers.bit_count() / layout.num_layers
    return 1.0 + full_share * block.depth * layout.block_tokens / ATTENTION_EQUALS_LINEAR_TOKENS
