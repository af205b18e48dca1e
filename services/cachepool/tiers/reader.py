"""Entries out of objects, checked: what is not intact is read once more, and then its object is dropped."""

import asyncio
from collections.abc import Callable
from time import monotonic

from services.cachepool.tiers.context import TierContext
from services.cachepool.tiers.index import Stored
from services.cachepool.tiers.objects import frame_at, object_path
from services.cachepool.tiers.ranges import Range, ranges
from services.cachepool.tiers.recovery import Recovery
from shared.errors import BlockMissing, CorruptFrame, PrfaasError, Unavailable
from shared.ids import BlockKey
from shared.kv.frame import Frame, is_intact
from shared.log import get_logger
from shared.measuring.rates import MovingRate

log = get_logger()

REST_S = 30.0
"""How long an object that could not be read is not tried again: readers go to peers, writers may write it anew."""


class Reader:
    """Owns the bound on reads. Everything it returns has passed its checksum."""

    def __init__(
        self, context: TierContext, recovery: Recovery, max_reads: int, clock: Callable[[], float] = monotonic
    ) -> None:
        """`max_reads`: at a time, over all that read. `clock` is for the speed of reading."""
        self._bucket = context.bucket
        self._index = context.index
        self._metrics = context.metrics
        self._breaker = context.breaker
        self._recovery = recovery
        self._gate = asyncio.Semaphore(max_reads)
        self._rate = MovingRate(clock)

    @property
    def bytes_per_s(self) -> float:
        """How fast objects are read, over the time in which any are; 0 until one was."""
        return self._rate.per_s

    async def entries(self, stored: Stored, layers: int) -> list[Frame]:
        """Return those of an object's entries that are intact; the object is dropped when some are not.

        Raises what `Bucket.read` raises when it cannot be read.
        """
        frames: list[Frame] = []
        for part in ranges(stored.header, layers):
            frames += await self.read(stored.key, part)
        return frames

    async def read(self, key: BlockKey, part: Range) -> list[Frame]:
        """Like `entries`, of one range. Raises `Unavailable` without asking while the object store rests."""
        if self._breaker.is_open:
            raise Unavailable("the object store has failed and rests")
        stored = self._index.get(key)
        if stored is None:
            return []
        try:
            frames = await self._intact(key, part)
            if len(frames) < len(part.entries):
                frames = await self._read_again(stored, part)
        except BlockMissing:
            self._drop(key, "missing")
            return []
        except PrfaasError:
            self._breaker.failed()
            self._index.rest(key, REST_S)
            raise
        self._breaker.succeeded()
        return frames

    async def _read_again(self, stored: Stored, part: Range) -> list[Frame]:
        """The place of an entry is not where it was when a write that seemed to fail took effect later."""
        await self._recovery.check(stored.key)
        now = self._index.get(stored.key)
        if now is None:
            return []
        frames: list[Frame] = []
        for again in ranges(now.header, part.layers):
            frames += await self._intact(stored.key, again)
        if len(frames) < len(part.entries):
            log.warning("object_corrupt", key=stored.key.hex(), layers=len(part.entries) - len(frames))
            self._drop(stored.key, "corrupt")
            await self._bucket.delete(object_path(stored.key))
        return frames

    async def _intact(self, key: BlockKey, part: Range) -> list[Frame]:
        async with self._gate:
            try:
                with self._rate.moving():
                    data = await self._bucket.read(object_path(key), part.offset, part.length)
                self._rate.moved(part.length)
            except CorruptFrame:  # shorter than it should be
                self._metrics.corrupt.inc(len(part.entries))
                return []
        self._metrics.read_bytes.inc(part.length)
        starts = [entry.offset - part.offset for entry in part.entries]
        frames = [
            frame_at(key, entry, data[start : start + entry.length])
            for entry, start in zip(part.entries, starts, strict=True)
        ]
        intact = [frame for frame in frames if is_intact(frame)]
        self._metrics.read.inc(len(intact))
        self._metrics.corrupt.inc(len(frames) - len(intact))
        return intact

    def _drop(self, key: BlockKey, reason: str) -> None:
        if self._index.remove(key):
            self._metrics.dropped.labels(reason).inc()
