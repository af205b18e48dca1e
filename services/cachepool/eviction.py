"""Which block goes first when room is needed: the least recently used that nothing holds and nothing follows."""

import heapq

from services.cachepool.block import Block

_SLACK = 1024


class LeastRecentlyUsed:
    """A heap of evictable blocks by last use, validated when popped.

    A block is pushed each time it becomes evictable; entries that its later uses made stale are skipped, and swept
    once they outnumber the live ones, so that a pool that never evicts does not grow.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Block]] = []
        self._tick = 0
        self._pushes = 0  # breaks ties: blocks have no order of their own

    def touch(self, block: Block) -> None:
        """Make `block` the most recently used. Does not make it evictable: see `offer`."""
        self._tick += 1
        block.tick = self._tick

    def offer(self, block: Block, num_blocks: int) -> None:
        """Note that `block` is evictable now; `num_blocks` is how many blocks the store has."""
        self._pushes += 1
        heapq.heappush(self._heap, (block.tick, self._pushes, block))
        if len(self._heap) > 2 * num_blocks + _SLACK:
            live = {item[2].serial: item for item in self._heap if self._is_current(item)}
            self._heap = list(live.values())
            heapq.heapify(self._heap)

    def pop(self) -> Block | None:
        """Remove and return the block to evict, or None when everything is held."""
        while self._heap:
            item = heapq.heappop(self._heap)
            if self._is_current(item):
                return item[2]
        return None

    @staticmethod
    def _is_current(item: tuple[int, int, Block]) -> bool:
        tick, _, block = item
        return block.evictable and block.tick == tick
