"""The object tier of a pool, put together: what it holds, and the loops that keep it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.cachepool.store.sources import SourcedReader
from services.cachepool.store.store import Store
from services.cachepool.tiers.context import TierContext
from services.cachepool.tiers.reader import Reader
from services.cachepool.tiers.reads import ReadThrough
from services.cachepool.tiers.recovery import Recovery
from services.cachepool.tiers.room import Room
from services.cachepool.tiers.writes import WriteBehind, WriteLimits
from shared.ids import BlockKey
from shared.kv.layout import KvLayout


@dataclass(frozen=True)
class TierLimits:
    max_waiting: int  # blocks that wait to be written
    max_writes: int  # at a time
    max_reads: int  # at a time
    read_limit_s: float  # of all reads for one reader


class ObjectTier:
    """Blocks behind memory. What it does not deliver, for whatever reason, is missing or comes from a peer."""

    def __init__(self, context: TierContext, store: Store, limits: TierLimits, folder: Path | None) -> None:
        """`folder` is where a local store has its files."""
        room = Room(context.bucket, context.index, context.metrics, store.clock)
        self.index = context.index
        self.recovery = Recovery(context, room, folder)
        reader = Reader(context, self.recovery, limits.max_reads, store.clock)
        self._reader = reader
        self.reads = ReadThrough(context, store, reader, limits.read_limit_s)
        self.writes = WriteBehind(
            context, store, room, reader, self.recovery, WriteLimits(limits.max_waiting, limits.max_writes)
        )
        self._breaker = context.breaker

    @property
    def read_bytes_per_s(self) -> float:
        """How fast objects are read, over the time in which any are; 0 until one was."""
        return self._reader.bytes_per_s

    def readable(self, key: BlockKey, layout: KvLayout | None = None) -> int:
        """Return the layers of a block that a reader would get from here, as far as one can tell beforehand."""
        if self._breaker.is_open:
            return 0
        return self.index.readable(key, layout)

    def add_readable(self, keys: Sequence[BlockKey], present: list[int]) -> list[int]:
        """Return the layers of blocks that memory, `present`, or an object has."""
        return [layers | self.readable(key) for key, layers in zip(keys, present, strict=True)]

    def start(self, sourced: SourcedReader) -> None:
        """Begin reading what the reader wants, nobody writes, and an object has."""
        self.reads.start(sourced)

    def cancel_unwanted(self) -> None:
        """Cancel the reads that no reader waits for any more."""
        self.reads.cancel_unwanted()

    async def run(self) -> None:
        """Recover, write; for ever."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self.recovery.run(), name="object recovery")
            loops.create_task(self.writes.run(), name="object writes")

    async def close(self, limit_s: float) -> int:
        """Write what waits, at most for `limit_s`; return how many blocks were not written. `run` goes on till then."""
        await self.reads.close()
        return await self.writes.flush(limit_s)
