"""A cache pool inside one process, without peers, budget or wire: an engine that runs alone has one to work with."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

from shared.deadline import Deadline
from shared.errors import BadRequest, CorruptFrame, WorkerLost
from shared.ids import BlockKey
from shared.kv.entries import BlockEntries, Source
from shared.kv.frame import Frame, verify
from shared.kv.layout import KvLayout, iter_layers
from shared.pool.lanes.lane import Arrived
from shared.pool.publication import Grant

Entry = tuple[BlockKey, int]
"""A layer of a block."""


class MemoryPool:
    """A `Pool` that keeps everything for as long as it lives; belongs to one event loop.

    As in a pool node an entry has at most one writer, and the first one wins; readers get it as soon as it is there,
    and give up on what had no writer for as long as they wait. `lose`, `damage` and `is_away` bring about what happens
    to pools, for tests of those who use one.
    """

    address = "memory"

    def __init__(self) -> None:
        self.is_away = False  # True: every call fails, as if nobody answered
        self._layouts: dict[BlockKey, KvLayout] = {}  # of the blocks that somebody has asked for
        self._frames: dict[Entry, Frame] = {}
        self._writing: set[Entry] = set()
        self._left_at_s: dict[Entry, float] = {}  # when a writer went without filling it; nobody has taken it since
        self._changed = asyncio.Event()  # a new one for each change

    @property
    def frames(self) -> Mapping[Entry, Frame]:
        return self._frames

    @property
    def idle(self) -> bool:
        """Whether no grant is held."""
        return not self._writing

    def lose(self, *entries: Entry) -> None:
        """Forget entries, as a node does that needs room. Raises `KeyError` for what is not here."""
        for entry in entries:
            del self._frames[entry]

    def damage(self, *entries: Entry) -> None:
        """Change a bit of what is stored, so that it fails its checksum. Raises `KeyError` for what is not here."""
        for entry in entries:
            first, *rest = self._frames[entry].payload
            self._frames[entry] = self._frames[entry]._replace(payload=bytes([first ^ 1, *rest]))

    async def fetch(
        self,
        layout: KvLayout,
        blocks: Sequence[BlockEntries],
        sources: Iterable[Source],
        wait_s: float,
        deadline: Deadline,
        *,
        doubted: bool = False,
    ) -> AsyncGenerator[Arrived, None]:
        """As `PoolClient.fetch`; nothing can be had from `sources`. Raises `DeadlineExceeded`, `WorkerLost`, and
        `BadRequest` for a block that is known with another layout.
        """
        self.know(layout, blocks)
        started_s = time.monotonic()
        wanted = sorted(((b.key, layer) for b in blocks for layer in iter_layers(b.layers)), key=lambda entry: entry[1])
        while wanted:
            self.reach()
            if here := [entry for entry in wanted if entry in self._frames]:
                wanted = [entry for entry in wanted if entry not in self._frames]
                yield Arrived([self._frames[entry] for entry in here], [])
                continue
            given_up_at_s = {
                entry: max(started_s, self._left_at_s.get(entry, started_s)) + wait_s
                for entry in wanted
                if entry not in self._writing
            }
            now_s = time.monotonic()
            if overdue := [entry for entry, at_s in given_up_at_s.items() if at_s <= now_s]:
                wanted = [entry for entry in wanted if entry not in overdue]
                yield Arrived([], _by_block(overdue))
                continue
            await self._change(min(given_up_at_s.values(), default=None), deadline)

    async def _change(self, until_s: float | None, deadline: Deadline) -> None:
        """Wait for a change, at most until then. Raises `DeadlineExceeded`."""
        changed = self._changed
        async with deadline.scope("fetching"):
            try:
                async with asyncio.timeout(None if until_s is None else max(0.0, until_s - time.monotonic())):
                    await changed.wait()
            except TimeoutError:
                pass  # or the deadline's: its scope sees to that

    @asynccontextmanager
    async def publish(self, deadline: Deadline) -> AsyncIterator["MemoryPublication"]:
        """As `PoolClient.publish`; nothing in it waits, so `deadline` is never exceeded."""
        publication = MemoryPublication(self)
        try:
            yield publication
        finally:
            publication.end()

    def reach(self) -> None:
        """Raise `WorkerLost` while the pool is away."""
        if self.is_away:
            raise WorkerLost("the pool in memory is away")

    def know(self, layout: KvLayout, blocks: Iterable[BlockEntries]) -> None:
        """Note the layout of blocks. Raises `BadRequest` when one is known with another."""
        for key, _ in blocks:
            if self._layouts.setdefault(key, layout).hash != layout.hash:
                raise BadRequest(f"block {key.hex()[:12]} is known here with another KV layout")

    def grant(self, entries: Iterable[Entry]) -> set[Entry]:
        """Return those that nobody has or writes: they are the asker's to write."""
        granted = {entry for entry in entries if entry not in self._frames and entry not in self._writing}
        self._writing |= granted
        for entry in granted:
            self._left_at_s.pop(entry, None)
        return granted

    def put(self, frame: Frame) -> None:
        """Store what its writer was granted."""
        entry = (frame.key, frame.layer)
        self._writing.remove(entry)
        self._frames[entry] = frame._replace(payload=bytes(frame.payload))
        self._wake()

    def leave(self, entries: Iterable[Entry]) -> None:
        """Take back what was granted and not written. Readers wait on for a next writer, counted from now."""
        for entry in entries:
            self._writing.remove(entry)
            self._left_at_s[entry] = time.monotonic()
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class MemoryPublication:
    """An open publication: what it was granted and has not sent is nobody else's until it ends."""

    def __init__(self, pool: MemoryPool) -> None:
        self._pool = pool
        self._granted: dict[Entry, KvLayout] = {}

    async def open(self, layout: KvLayout, blocks: Sequence[BlockEntries]) -> Grant:
        """As `Publication.open`. Raises `BadRequest`, `WorkerLost`."""
        self._pool.reach()
        self._pool.know(layout, blocks)
        granted, present = [], []
        for key, layers in blocks:
            asked = [(key, layer) for layer in iter_layers(layers)]
            ours = self._pool.grant(asked)
            self._granted |= dict.fromkeys(ours, layout)
            granted.append(sum(1 << layer for _, layer in ours))
            present.append(sum(1 << layer for _, layer in asked if (key, layer) in self._pool.frames))
        return Grant(granted, present)

    async def room(self, keys: Sequence[BlockKey], num_bytes: int) -> list[memoryview | None]:
        """As `Publication.room`; there is none."""
        return [None] * len(keys)

    async def send(self, frames: Sequence[Frame]) -> None:
        """As `Publication.send`. Raises `BadRequest` for what was not granted, `CorruptFrame`, `WorkerLost`."""
        self._pool.reach()
        for frame in frames:
            verify(frame)
            layout = self._granted.pop((frame.key, frame.layer), None)
            if layout is None:
                raise BadRequest(f"block {frame.key.hex()[:12]} layer {frame.layer} was not granted to this writer")
            if frame.raw_bytes != layout.entry_bytes(frame.layer):
                self._pool.leave([(frame.key, frame.layer)])
                raise CorruptFrame(f"{frame.raw_bytes} bytes in layer {frame.layer} are not what the KV layout says")
            self._pool.put(frame)

    def end(self) -> None:
        """Give back what was not sent."""
        self._pool.leave(self._granted)
        self._granted = {}


def _by_block(entries: Iterable[Entry]) -> list[BlockEntries]:
    layers: dict[BlockKey, int] = {}
    for key, layer in entries:
        layers[key] = layers.get(key, 0) | 1 << layer
    return [BlockEntries(key, mask) for key, mask in layers.items()]
