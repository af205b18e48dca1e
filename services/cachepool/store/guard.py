"""Whether worth beats last use as an order of eviction, on this traffic: told by two small ghost caches. Pure."""

import heapq
import math
from collections.abc import Callable, Sequence

from services.cachepool.store.block import Block
from shared.ids import BlockKey

SAMPLE = 8
"""One block in so many is followed: spatial sampling, as in SHARDS (Waldspurger et al., FAST 2015)."""

PROOF = 3.0
"""Standard deviations by which the order by worth must lead to be taken. Blocks of one chain hit or miss together, so
that their errors are larger than a coin's."""

MEMORY = 1000
"""Differences over which the lead is taken; older ones fade, for traffic changes."""


class Guard:
    """Two ghosts with the pool's size, one in each order; says which order hits more.

    The order is LRU's until that by worth has proven itself, and again as soon as its lead is gone. In LRU's order the
    ghosts go on, so that nothing has to be tried on the pool.
    """

    def __init__(self) -> None:
        self.worth_pays = False
        self._by_last_use = _Ghost()
        self._by_worth = _Ghost()
        self._lead = 0.0
        self._num_differences = 0.0

    def use(self, chain: Sequence[Block], bonus_s: Callable[[Block], float], num_blocks: int) -> None:
        """Count new uses of a chain that was touched now. `bonus_s`: how much longer than at its last use a block
        counts as used, in the order by worth; `num_blocks`: how many blocks the pool holds.
        """
        limit = -(-num_blocks // SAMPLE)
        latest_s = -math.inf
        for block in reversed(chain):
            if block.key[-1] % SAMPLE:
                continue
            last_at = block.uses.last_at
            latest_s = max(latest_s, last_at + bonus_s(block))  # no block goes before those that follow it
            hit = self._by_last_use.use(block.key, last_at, block.tick)
            hit_by_worth = self._by_worth.use(block.key, latest_s, block.tick)
            if hit != hit_by_worth:
                self._weigh(1 if hit_by_worth else -1)
        self._by_last_use.shrink(limit)
        self._by_worth.shrink(limit)

    def _weigh(self, difference: int) -> None:
        fading = 1 - 1 / MEMORY
        self._lead = self._lead * fading + difference
        self._num_differences = self._num_differences * fading + 1
        if self._lead < 0:
            self.worth_pays = False
        elif self._lead > PROOF * math.sqrt(self._num_differences):
            self.worth_pays = True


class _Ghost:
    """Keys that a cache would hold, in the order in which they would go. A heap, validated when popped."""

    def __init__(self) -> None:
        self._ticks: dict[BlockKey, int] = {}
        self._heap: list[tuple[float, int, BlockKey]] = []

    def use(self, key: BlockKey, worth: float, tick: int) -> bool:
        """Put a key in its place; `tick`, unique, tells equals apart. Return whether it was here."""
        was_here = key in self._ticks
        self._ticks[key] = tick
        heapq.heappush(self._heap, (worth, tick, key))
        return was_here

    def shrink(self, limit: int) -> None:
        """Keep the last `limit` keys, and the heap at most twice as long as what is kept."""
        ticks = self._ticks
        while len(ticks) > limit:
            _, tick, key = heapq.heappop(self._heap)
            if ticks.get(key) == tick:
                del ticks[key]
        if len(self._heap) > 2 * len(ticks) + SAMPLE:
            self._heap = [entry for entry in self._heap if ticks.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)
