"""Blocks from pages to the pool: a layer's entries leave as soon as they are complete, while the next one computes."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import NamedTuple

from torch import Tensor

from shared.engine.in_order import in_order
from shared.engine.stage import Departure, Mark
from shared.engine.transfer import PageTransfer
from shared.ids import BlockKey
from shared.kv.codec import SINK_TOKENS, Codec, Payload
from shared.kv.frame import Frame, raw_headers, seal, seal_all
from shared.model.pages.reservation import Reservation
from shared.pool.nodes import Publishing
from shared.rpc.convert import MAX_BATCH_BYTES

MAX_BACKLOG_BYTES = 256 * 1024 * 1024
"""What may be ready and not sent before a publisher says that it is `full`."""

MAX_PLACED_BYTES = 32 * 1024 * 1024
"""What one message names at most of what lies in the pool's room: much, for there is little in it; not so much that the
pool's readers wait for the last of it."""

MAX_SEALED = 2
"""Messages of one publisher that are being sealed, wait to be sent, or are being sent: the copier seals one while
another one leaves."""

_LEAST_RATIO = {codec: 1 if codec.spec.cost is None else int(codec.spec.cost.ratio) for codec in Codec}
"""How much smaller entries are when they are sealed, at least: a message should be full, and no more than that."""


class Ready(NamedTuple):
    """Blocks `[first, end)` are complete in `layer` and will not change any more."""

    layer: int
    first: int
    end: int
    mark: Mark = None  # where they are complete


_Emitted = tuple[Ready, list[int]]
"""Blocks of a layer that are to be sent."""


class _Placing(NamedTuple):
    """Blocks of a layer, and a slot for each."""

    ready: Ready
    blocks: list[int]
    slots: list[memoryview]


class _Message(NamedTuple):
    """What is sealed and sent together."""

    seal: Callable[[], list[Frame]]  # runs in the copier thread
    num_bytes: int  # of its entries before the codec; 0: there is nothing to seal
    ends: Sequence[Ready] = ()  # nothing is left to be sent of these once it is sent
    is_placed: bool = False  # its entries are in the pool's room


class PagePublisher:
    """Sends one request's granted entries in the order in which they become ready.

    Invariant: `outstanding[block]` is what the pool granted, less what `limit` gave up, less what `emit` queued. So an
    entry is sent at most once for each grant, and never without one. Whoever talks to the pool calls `grant`; whoever
    owns the pages calls `limit`, with what they hold, and `emit`.

    Entries in the codec `RAW` are written into the room that the publication gives, where it gives some, and only named
    in messages; all others travel in messages. The publication owns the room: an entry that was not sent is its to
    take back.

    The queue holds references to pages; bytes exist for `MAX_SEALED` messages at most. A slow pool slows the sending
    first: the pages are its buffer. When `backlog_bytes` exceed the limit the publisher is `full`, and whoever computes
    shall hold this request back until `on_sent` is called, so that the backlog never exceeds the limit by more than
    what one step computes. The caller owns the reservation and keeps it until `run` has returned or raised: pages of
    ready entries are only read. Window pages must be kept until `num_blocks_sent` is past them.
    """

    def __init__(
        self,
        publication: Publishing,
        transfer: PageTransfer,
        reservation: Reservation,
        keys: Sequence[BlockKey],
        codec: Codec,
        on_sent: Callable[[], None] = lambda: None,
        rest: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        """`on_sent` is called when `num_blocks_sent` may have grown, and `full` may have ceased.

        `rest` is awaited after each message, with the seconds that it took: background work may wait there.
        """
        self._publication = publication
        self._transfer = transfer
        self._reservation = reservation
        self._keys = keys
        self._codec = codec
        self._on_sent = on_sent
        self._rest = rest
        self.backlog_bytes = 0  # of entries that are ready and not sent, before the codec
        self._queue: deque[_Emitted] = deque()
        self._ahead: dict[int, memoryview | None] = {}  # room for the first layer, by block
        self._num_placed = 0  # messages that name entries in the pool's room and are not sent yet
        self._changed = asyncio.Event()
        self._is_over = False  # nothing more will be emitted
        self._outstanding = [0] * len(keys)
        self._sent_in_layer = [0] * transfer.layout.num_layers
        self.num_entries_sent = 0
        self.opened_at_s = time.time()  # seconds since 1970, as all of these
        self.first_sent_at_s: float | None = None
        self.last_sent_at_s: float | None = None
        self.finished_at_s: float | None = None

    @property
    def outstanding(self) -> Sequence[int]:
        """Return the layers of each block that are ours to send and were not emitted yet."""
        return self._outstanding

    def grant(self, block: int, layers: int) -> None:
        """Add layers of a block that the pool has just granted on this publication."""
        self._outstanding[block] |= layers

    def limit(self, block: int, layers: int) -> None:
        """Give up what is outstanding of a block except `layers`: the pages will not have the rest.

        The grant of the rest ends with the publication.
        """
        self._outstanding[block] &= layers

    def emit(self, ready: Ready) -> None:
        """Queue those of the entries that are ours to send; returns at once. A layer's blocks come in order."""
        bit = 1 << ready.layer
        blocks = [block for block in range(ready.first, ready.end) if self._outstanding[block] & bit]
        for block in blocks:
            self._outstanding[block] &= ~bit
        self.backlog_bytes += len(blocks) * self._transfer.layout.entry_bytes(ready.layer)
        self._queue.append((ready, blocks))
        self._changed.set()

    def finish(self) -> None:
        """Say that nothing more will be emitted: `run` returns when the queue is empty."""
        self.finished_at_s = time.time()
        self._is_over = True
        self._changed.set()

    @property
    def full(self) -> bool:
        return self.backlog_bytes > MAX_BACKLOG_BYTES

    @property
    def num_blocks_sent(self) -> int:
        """Return how many leading blocks were emitted in all layers and are not read any more.

        What was ours of them was sent.
        """
        return min(self._sent_in_layer)

    async def run(self) -> None:
        """Send what is emitted until `finish`. Raises what the publication raises."""
        async with aclosing(in_order(self._messages(), self._sealed, MAX_SEALED)) as messages:
            async for message, (frames, seconds) in messages:
                if frames:
                    await self._send(message, frames, seconds)
                if message.is_placed:
                    self._num_placed -= 1
                    self._changed.set()
                for ready in message.ends:
                    self._sent_in_layer[ready.layer] = max(self._sent_in_layer[ready.layer], ready.end)
                    self._on_sent()

    async def _sealed(self, message: _Message) -> tuple[list[Frame], float]:
        """Return a message's frames, and the seconds that it took to seal them."""
        if not message.num_bytes:
            return [], 0.0
        started = time.perf_counter()
        frames = await self._transfer.copier.run(message.seal)
        return frames, time.perf_counter() - started

    async def _send(self, message: _Message, frames: Sequence[Frame], seconds: float) -> None:
        started = time.perf_counter()
        await self._publication.send(frames)
        self.num_entries_sent += len(frames)
        self.last_sent_at_s = time.time()
        self.first_sent_at_s = self.first_sent_at_s or self.last_sent_at_s
        self.backlog_bytes -= message.num_bytes
        if self._rest is not None:
            await self._rest(seconds + time.perf_counter() - started)

    async def _next(self) -> list[_Emitted]:
        """Return what was emitted next, with more of it where this publisher is behind; nothing at the end.

        What the device has still to compute is left for later: who reads the first of it would wait for the last.
        """
        while not self._queue and not self._is_over:
            self._changed.clear()
            await self._changed.wait()
        emitted: list[_Emitted] = []
        num_bytes = 0
        while self._queue and (not emitted or (num_bytes < MAX_PLACED_BYTES and self._is_complete(self._queue[0]))):
            ready, blocks = self._queue.popleft()
            emitted.append((ready, blocks))
            num_bytes += len(blocks) * self._transfer.layout.entry_bytes(ready.layer)
        return emitted

    def _is_complete(self, emitted: _Emitted) -> bool:
        ready, blocks = emitted
        return not blocks or self._transfer.stager.is_reached(ready.mark)

    async def _messages(self) -> AsyncGenerator[_Message, None]:
        """Yield what is to be sealed and sent, in order."""
        if self._codec is Codec.RAW:
            await self._ask_ahead()
        while emitted := await self._next():
            if self._codec is Codec.RAW:
                async for message in self._placed(emitted):
                    yield message
                continue
            for ready, blocks in emitted:
                for message in self._in_messages(ready, blocks):
                    yield message

    async def _placed(self, emitted: Sequence[_Emitted]) -> AsyncGenerator[_Message, None]:
        """Yield messages that name entries in the room that the pool gives, then those of what found none."""
        left: list[_Emitted] = []
        placings: list[_Placing] = []
        ends: list[Ready] = []
        num_bytes = 0
        for ready, blocks in emitted:
            rest = list(blocks)
            entry_bytes = self._transfer.layout.entry_bytes(ready.layer)
            while rest:
                if placings and num_bytes + entry_bytes > MAX_PLACED_BYTES:
                    yield self._message(placings, num_bytes, ends)
                    placings, num_bytes, ends = [], 0, []
                asked = rest[: max(1, (MAX_PLACED_BYTES - num_bytes) // entry_bytes)]
                room = await self._room(asked, entry_bytes)
                given = [(block, slot) for block, slot in zip(asked, room, strict=True) if slot is not None]
                if not given and (placings or self._num_placed):
                    if placings:
                        yield self._message(placings, num_bytes, ends)
                        placings, num_bytes, ends = [], 0, []
                    await self._all_sent()  # then the pool has room again
                    continue
                if not given:
                    break  # as many messages as there would be without a question
                placings.append(_Placing(ready, *map(list, zip(*given, strict=True))))
                num_bytes += len(given) * entry_bytes
                found = {block for block, _ in given}
                rest = [block for block in rest if block not in found]
            if rest or left:  # later blocks of a layer are not sent before earlier ones
                left.append((ready, rest))
            else:
                ends.append(ready)
        if placings or ends:
            yield self._message(placings, num_bytes, ends)
        for ready, rest in left:
            for message in self._in_messages(ready, rest):
                yield message

    async def _ask_ahead(self) -> None:
        """Have room for the first layer when it is complete: a question takes about as long as to copy it."""
        num_bytes = self._transfer.layout.entry_bytes(0)
        blocks = [block for block, layers in enumerate(self._outstanding) if layers & 1]
        blocks = blocks[: MAX_PLACED_BYTES // num_bytes]
        if blocks:
            self._ahead = dict(zip(blocks, await self._room(blocks, num_bytes), strict=True))

    async def _room(self, blocks: Sequence[int], num_bytes: int) -> list[memoryview | None]:
        ahead = [self._ahead.pop(block, None) for block in blocks]
        if any(slot is not None and len(slot) == num_bytes for slot in ahead):
            return [slot if slot is not None and len(slot) == num_bytes else None for slot in ahead]
        return await self._publication.room([self._keys[block] for block in blocks], num_bytes)

    def _message(self, placings: Sequence[_Placing], num_bytes: int, ends: Sequence[Ready]) -> _Message:
        self._num_placed += 1
        return _Message(partial(self._seal_in_place, placings), num_bytes, ends, is_placed=True)

    async def _all_sent(self) -> None:
        """Wait until every message is sent that names entries in the pool's room."""
        while self._num_placed:
            self._changed.clear()
            await self._changed.wait()

    def _in_messages(self, ready: Ready, blocks: Sequence[int]) -> Iterator[_Message]:
        """Yield messages that bring blocks of a layer; one without any, if there are none."""
        shape = self._transfer.layout.entry_shape(ready.layer)
        at_once = -(-MAX_BATCH_BYTES * _LEAST_RATIO[self._codec] // shape.num_bytes)
        # One reader for all batches: on a GPU it has copied ahead.
        raws = self._stage(ready, blocks)
        for first in range(0, max(1, len(blocks)), at_once):
            part = blocks[first : first + at_once]
            ends = [ready] if first + at_once >= len(blocks) else []
            yield _Message(partial(self._seal_batch, ready.layer, part, raws), len(part) * shape.num_bytes, ends)

    def _stage(self, ready: Ready, blocks: Sequence[int]) -> Iterator[Payload]:
        return self._transfer.stager.stage(ready.mark, *self._pages(ready.layer, blocks))

    def _pages(self, layer: int, blocks: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Return a layer's entries, and which of them are those of the blocks."""
        kv = self._transfer.kv
        return kv.blocks_of(layer), [kv.block_number(layer, self._reservation, block) for block in blocks]

    def _seal_in_place(self, placings: Sequence[_Placing]) -> list[Frame]:
        """Write entries into slots and seal them there; runs in the copier thread."""
        transfer = self._transfer
        keys = [[self._keys[block] for block in placing.blocks] for placing in placings]
        departures: list[Departure] = []
        for of_blocks, (ready, blocks, slots) in zip(keys, placings, strict=True):
            headers = raw_headers(of_blocks, ready.layer, transfer.layout.entry_bytes(ready.layer))
            departures.append(Departure(ready.mark, *self._pages(ready.layer, blocks), slots, headers))
        checksums = transfer.stager.place(departures, transfer.digests)
        return [
            frame
            for of_blocks, placing, found in zip(keys, placings, checksums, strict=True)
            for frame in seal_all(of_blocks, placing.ready.layer, placing.slots, found)
        ]

    def _seal_batch(self, layer: int, blocks: Sequence[int], raws: Iterator[Payload]) -> list[Frame]:
        """Seal one message's blocks; runs in the copier thread."""
        transfer, shape = self._transfer, self._transfer.layout.entry_shape(layer)
        staged = list(zip(blocks, raws, strict=False))
        if self._codec is Codec.RAW:
            return seal_all([self._keys[block] for block, _ in staged], layer, [raw for _, raw in staged])

        def sealed(entry: tuple[int, Payload]) -> Frame:
            block, raw = entry
            num_whole = SINK_TOKENS if block == 0 else 0
            return seal(self._keys[block], layer, raw, self._codec, shape, num_whole)

        return transfer.codecs.map(sealed, staged)
