"""Write-behind: blocks go to the object tier once nobody writes them, a few at a time, in nobody's way."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from services.cachepool.store.store import HeldBlock, Store
from services.cachepool.tiers.context import TierContext
from services.cachepool.tiers.index import Stored
from services.cachepool.tiers.objects import ObjectHeader, object_path, pack
from services.cachepool.tiers.reader import Reader
from services.cachepool.tiers.recovery import Recovery
from services.cachepool.tiers.room import Room
from shared.deadline import Deadline
from shared.errors import CorruptFrame, DeadlineExceeded, Overloaded, PrfaasError
from shared.ids import BlockKey
from shared.log import get_logger

log = get_logger()

MAX_ATTEMPTS = 3
MAX_HELD_SHARE = 8
"""No further write begins while blocks that are being written take an eighth of memory."""


@dataclass(frozen=True)
class WriteLimits:
    max_waiting: int  # blocks
    max_writes: int  # at a time


class WriteBehind:
    """Owns the queue of blocks to be written.

    A block that waits is only a key: it stays evictable, so that writing never stands in the way of publishing. It is
    held while it is written, `max_writes` blocks at a time and little of memory. A block that is evicted earlier, or
    finds the queue full, is not written, and counted. An object always has every intact layer that memory and the
    object before it had.
    """

    def __init__(
        self,
        context: TierContext,
        store: Store,
        room: Room,
        reader: Reader,
        recovery: Recovery,
        limits: WriteLimits,
    ) -> None:
        self._context = context
        self._store = store
        self._index = context.index
        self._breaker = context.breaker
        self._metrics = context.metrics
        self._room = room
        self._reader = reader
        self._recovery = recovery
        self._limits = limits
        self._waiting: dict[BlockKey, int] = {}  # key -> attempts so far, first come first
        self._writing: set[BlockKey] = set()
        self._held_bytes = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._writing)

    def note(self, key: BlockKey) -> None:
        """A block has entries and no writer: the store's `on_settled`. Calls nothing back."""
        if key in self._waiting or not self._store.lookup(key) & ~self._index.layers(key):
            return
        if len(self._waiting) >= self._limits.max_waiting:
            self._skip("queue_full")
            return
        self._enqueue(key, 0)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as workers:
            for number in range(self._limits.max_writes):
                workers.create_task(self._work(), name=f"object writer {number}")

    async def flush(self, limit_s: float) -> int:
        """Wait until nothing waits, at most `limit_s`; return how many blocks still do."""
        try:
            async with Deadline.after(limit_s).scope():
                await self._idle.wait()
        except DeadlineExceeded:
            pass
        return self.num_waiting

    async def _work(self) -> None:
        while True:
            key = await self._next()
            attempts = self._waiting.pop(key)
            self._writing.add(key)
            try:
                await self._write(key, attempts)
            finally:
                self._writing.discard(key)
                self._wake.set()  # the block may have gained layers meanwhile
                if not self.num_waiting:
                    self._idle.set()

    async def _next(self) -> BlockKey:
        while True:
            if self._breaker.is_open:
                await asyncio.sleep(self._breaker.rest_left_s)
                continue
            if self._held_bytes * MAX_HELD_SHARE <= self._store.budget_bytes:
                for key in self._waiting:
                    if key not in self._writing:  # two writes of one object would race
                        return key
            self._wake.clear()
            await self._wake.wait()

    async def _write(self, key: BlockKey, attempts: int) -> None:
        held: HeldBlock | None = None
        try:
            await self._recovery.settle(key)  # or an object of an earlier life would be overwritten unseen
            held = self._store.hold(key)
            if held is None:
                self._skip("evicted")
                return
            self._held_bytes += held.charge
            await self._write_held(key, held)
        except Overloaded as error:
            self._again(key, attempts, "no_room", error)
        except PrfaasError as error:
            self._breaker.failed()
            if isinstance(error, DeadlineExceeded):
                self._recovery.doubt(key)  # the object may be there all the same
            self._again(key, attempts, "failed", error)
        finally:
            if held is not None:
                self._held_bytes -= held.charge
                self._store.let_go(key)

    async def _write_held(self, key: BlockKey, held: HeldBlock) -> None:
        before = self._index.get(key)
        if before is not None and not held.layers & ~before.layers:
            return
        frames = list(held.frames)
        if before is not None and (rest := before.layers & ~held.layers):
            frames += await self._reader.entries(before, rest)
        frames.sort(key=lambda frame: frame.layer)
        parent = held.parent or (before.parent if before else None)
        try:
            header = await asyncio.to_thread(pack, key, parent, held.layout, frames)
        except CorruptFrame as error:
            self._skip("corrupt")
            log.error("block_rotten_in_memory", error=str(error))
            return
        async with self._room.reserved(header.total_bytes, spared=key):
            await self._put(header, [header.raw, *(frame.payload for frame in frames)])
        self._index.add(Stored.of(header, self._context.wall_clock()))
        self._breaker.succeeded()
        self._metrics.written.inc()
        self._metrics.written_bytes.inc(header.total_bytes)

    async def _put(self, header: ObjectHeader, parts: Sequence[bytes | memoryview]) -> None:
        asked_at = self._store.clock()
        try:
            await self._context.bucket.put(object_path(header.key), parts)
        except Overloaded:
            self._room.found_full(asked_at)
            raise

    def _again(self, key: BlockKey, attempts: int, reason: str, error: PrfaasError) -> None:
        """Put a block back into the queue, unless it has had its chances."""
        if attempts + 1 < MAX_ATTEMPTS and key not in self._waiting:
            self._enqueue(key, attempts + 1)
        else:
            self._skip(reason)
            log.warning("object_not_written", reason=reason, error=str(error), code=error.code)

    def _enqueue(self, key: BlockKey, attempts: int) -> None:
        self._waiting[key] = attempts
        self._idle.clear()
        self._wake.set()

    def _skip(self, reason: str) -> None:
        self._metrics.skipped.labels(reason).inc()
