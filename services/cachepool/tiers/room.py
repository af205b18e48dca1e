"""Room for objects: the least recently used ones are deleted until what shall be written fits the budget."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from services.cachepool.tiers.bucket import Bucket
from services.cachepool.tiers.index import ObjectIndex
from services.cachepool.tiers.metrics import TierMetrics
from services.cachepool.tiers.objects import object_path
from shared.errors import Overloaded
from shared.ids import BlockKey

FULL_REST_S = 60.0
"""How long a full disk is taken to be full."""


class Room:
    """One at a time makes room, so that two writers do not both count on what one has freed.

    A disk that turns out to be full is a budget that is used up: older objects make room for newer ones. When it is
    full all the same, somebody else fills it, nothing more is deleted in vain, and nothing written for a while.
    """

    def __init__(self, bucket: Bucket, index: ObjectIndex, metrics: TierMetrics, clock: Callable[[], float]) -> None:
        self._bucket = bucket
        self._index = index
        self._clock = clock
        self._dropped = metrics.dropped.labels("evicted")
        self._lock = asyncio.Lock()
        self._full_since = float("-inf")
        self._rests_until = float("-inf")

    @asynccontextmanager
    async def reserved(self, num_bytes: int, spared: BlockKey) -> AsyncIterator[None]:
        """Make room for an object and keep it for the body. Raises `Overloaded` when there is none to be made."""
        if self._clock() < self._rests_until:
            raise Overloaded("the place where objects lie is full, and deleting older ones did not help")
        async with self._lock:
            await self._shrink(num_bytes, spared)
            self._index.reserved_bytes += num_bytes
        try:
            yield
        finally:
            self._index.reserved_bytes -= num_bytes

    def found_full(self, asked_at: float) -> None:
        """A write that began at `asked_at` failed for lack of space."""
        now = self._clock()
        if self._full_since + FULL_REST_S <= now:
            self._full_since = now
            self._index.fill_up(FULL_REST_S)
        elif asked_at > self._full_since:  # else it began before we knew
            self._rests_until = now + FULL_REST_S

    async def fit(self) -> None:
        """Delete what exceeds the budget: it may be smaller than in an earlier life. Raises what deleting raises."""
        async with self._lock:
            await self._shrink(0, None)

    async def _shrink(self, num_bytes: int, spared: BlockKey | None) -> None:
        while self._index.lacks_room(num_bytes):
            victim = self._index.pop_victim(spared)
            if victim is None:
                raise Overloaded(f"no object can be deleted to make room for {num_bytes} bytes")
            try:
                await self._bucket.delete(object_path(victim.key))
            except BaseException:
                self._index.restore(victim)
                raise
            self._index.remove(victim.key)
            self._dropped.inc()
