"""Read-through: what readers lack in memory and the object tier has, read by layer and once for all readers."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from services.cachepool.store.block import Writer
from services.cachepool.store.sources import SourcedReader
from services.cachepool.store.store import Store
from services.cachepool.store.subscription import Subscription
from services.cachepool.tiers.context import TierContext
from services.cachepool.tiers.ranges import Range, ranges
from services.cachepool.tiers.reader import REST_S, Reader
from shared.deadline import Deadline
from shared.errors import CorruptFrame, Overloaded, PrfaasError
from shared.ids import BlockKey
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame
from shared.log import get_logger

log = get_logger()

READS_OF_A_JOB = 8


@dataclass(eq=False)
class _Job:
    """What one reader's want made us read: a writer of the store, and the ranges that fill its grants."""

    writer: Writer
    started: float
    parts: list[tuple[BlockKey, Range]]  # in the order in which they are read
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class ReadThrough:
    """Owns the reads in progress. They are writers of the store: an entry is read once, however many readers wait.

    A job ends when everything was read or given up, at its deadline, or as soon as no reader wants what is left. What
    it gives up has no writer again: a peer is asked for it, or it is missing. No reader gets an error from here.
    """

    def __init__(self, context: TierContext, store: Store, reader: Reader, limit_s: float) -> None:
        """`limit_s`: of all reads that one reader's want begins."""
        self._context = context
        self._store = store
        self._index = context.index
        self._reader = reader
        self._limit_s = limit_s
        self._jobs: set[_Job] = set()
        self._tried: WeakKeyDictionary[Subscription, dict[BlockKey, int]] = WeakKeyDictionary()

    def start(self, sourced: SourcedReader) -> None:
        """Begin reading what the reader wants, nobody writes, and an object has."""
        wanted = self._wanted(sourced)
        if not wanted:
            return
        writer = self._store.open_writer(sourced.reader.tenant)
        grants = self._store.grant(writer, sourced.layout, wanted)
        granted = [(key, grant.granted) for (key, _), grant in zip(wanted, grants, strict=True)]
        job = _Job(writer, self._store.clock(), self._plan(granted))
        self._jobs.add(job)
        job.task = asyncio.create_task(self._run(job), name="read-through")
        job.task.add_done_callback(_log_crash)

    def cancel_unwanted(self) -> None:
        """Cancel the jobs that no reader waits for any more. Their grants are free when this returns."""
        for job in [job for job in self._jobs if not self._store.is_awaited(job.writer)]:
            self._end(job)

    async def close(self) -> None:
        jobs = list(self._jobs)
        for job in jobs:
            self._end(job)
        if tasks := [job.task for job in jobs if job.task]:
            await asyncio.wait(tasks)

    def _wanted(self, sourced: SourcedReader) -> list[BlockEntries]:
        """Return what is worth reading for a reader. Each entry is tried once for it, whatever comes of that."""
        wanted: list[BlockEntries] = []
        if self._context.breaker.is_open:
            return wanted
        tried = self._tried.setdefault(sourced.reader, {})
        for number, layers in sourced.reader.without_writer():
            key = sourced.reader.blocks[number].key
            layers &= self._index.readable(key, sourced.layout) & ~tried.get(key, 0)
            if layers:
                tried[key] = tried.get(key, 0) | layers
                wanted.append(BlockEntries(key, layers))
        return wanted

    def _plan(self, granted: Iterable[tuple[BlockKey, int]]) -> list[tuple[BlockKey, Range]]:
        """Return the ranges to read: all blocks' first ones, then all blocks' second ones, and so on."""
        parts: list[tuple[BlockKey, Range]] = []
        for key, layers in granted:
            stored = self._index.get(key)
            assert stored is not None, "an object vanished between two lines"
            self._index.touch(key, self._context.wall_clock())
            parts += [(key, part) for part in ranges(stored.header, layers)]
        parts.sort(key=lambda item: item[1].stage)
        return parts

    async def _run(self, job: _Job) -> None:
        todo = iter(job.parts)
        try:
            async with (
                Deadline.after(self._limit_s).scope("reading from the object tier"),
                asyncio.TaskGroup() as tasks,
            ):
                for _ in range(min(READS_OF_A_JOB, len(job.parts))):
                    tasks.create_task(self._read_all(job, todo))
        except PrfaasError as error:  # too slow, though it answers: nothing of the rest is tried again soon
            log.warning("objects_slow", error=str(error))
            for block in job.writer.granted:
                self._index.rest(block.key, REST_S)
        finally:
            self._end(job)

    async def _read_all(self, job: _Job, todo: Iterator[tuple[BlockKey, Range]]) -> None:
        for key, part in todo:
            try:
                frames = await self._reader.read(key, part)
            except PrfaasError as error:
                log.warning("object_not_read", error=str(error), code=error.code)
                self._index.rest(key, REST_S)
                frames = []
            self._put(job, frames)
            self._store.release(job.writer, BlockEntries(key, part.layers), job.started)

    def _put(self, job: _Job, frames: Sequence[Frame]) -> None:
        for frame in frames:
            try:
                self._store.put(job.writer, frame)
            except Overloaded:
                self._context.metrics.refused.inc()  # memory is full of what others hold
            except CorruptFrame as error:  # intact, and all the same no KV of this layout
                self._context.metrics.corrupt.inc()
                log.warning("object_misfit", error=str(error))

    def _end(self, job: _Job) -> None:
        if job not in self._jobs:
            return
        self._jobs.remove(job)
        self._store.abandon(job.writer)
        if job.task is not None and not job.task.done() and job.task is not asyncio.current_task():
            job.task.cancel()


def _log_crash(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("read_crashed", exc_info=error)
