"""What goes into which message of a publication: room is asked for, layers are gathered and divided, entries sealed."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import NamedTuple

from torch import Tensor

from shared.engine.stage import Departure, Mark
from shared.engine.transfer import PageTransfer
from shared.ids import BlockKey
from shared.kv.codec import SINK_TOKENS, Codec, Payload
from shared.kv.frame import Frame, raw_headers, seal, seal_all
from shared.model.pages.reservation import Reservation
from shared.pool.nodes import Publishing
from shared.rpc.convert import MAX_BATCH_BYTES

MAX_PLACED_BYTES = 32 * 1024 * 1024
"""What one message names at most of what lies in the pool's room: much, for there is little in it; not so much that the
pool's readers wait for the last of it."""

_LEAST_RATIO = {codec: 1 if codec.spec.cost is None else int(codec.spec.cost.ratio) for codec in Codec}
"""How much smaller entries are when they are sealed, at least: a message should be full, and no more than that."""


class Ready(NamedTuple):
    """Blocks `[first, end)` are complete in `layer` and will not change any more."""

    layer: int
    first: int
    end: int
    mark: Mark = None  # where they are complete


Emitted = tuple[Ready, list[int]]
"""Blocks of a layer that are to be sent."""


class _Placing(NamedTuple):
    """Blocks of a layer, and a slot for each."""

    ready: Ready
    blocks: list[int]
    slots: list[memoryview]


class UnsealedMessage(NamedTuple):
    """Entries that are to be sealed and sent together."""

    seal: Callable[[], list[Frame]]  # runs in the copier thread
    num_bytes: int  # of its entries before the codec; 0: there is nothing to seal
    ends: Sequence[Ready] = ()  # nothing is left to be sent of these once it is sent
    is_placed: bool = False  # its entries are in the pool's room


class MessageBatcher:
    """Divides what a publisher emits into messages, in the order in which it was emitted.

    Entries in the codec `RAW` are written into the room that the publication gives, where it gives some, and only named
    in messages; all others travel in messages. The publication owns the room: an entry that was not sent is its to
    take back. The queue holds references to pages; bytes exist for messages that were sealed.
    """

    def __init__(
        self,
        publication: Publishing,
        transfer: PageTransfer,
        reservation: Reservation,
        keys: Sequence[BlockKey],
        codec: Codec,
    ) -> None:
        self._publication = publication
        self._transfer = transfer
        self._reservation = reservation
        self._keys = keys
        self._codec = codec
        self._queue: deque[Emitted] = deque()
        self._ahead: dict[int, memoryview | None] = {}  # room for the first layer, by block
        self._num_placed = 0  # messages that name entries in the pool's room and are not sent yet
        self._changed = asyncio.Event()
        self._is_over = False  # nothing more will be emitted

    def put(self, emitted: Emitted) -> None:
        """Queue blocks of a layer; returns at once."""
        self._queue.append(emitted)
        self._changed.set()

    def finish(self) -> None:
        """Say that nothing more will be put: `messages` ends when the queue is empty."""
        self._is_over = True
        self._changed.set()

    def sent(self, message: UnsealedMessage) -> None:
        """Say that a message has been sent: where its entries lay in the pool's room, there is room again."""
        if message.is_placed:
            self._num_placed -= 1
            self._changed.set()

    async def messages(self, outstanding: Sequence[int]) -> AsyncGenerator[UnsealedMessage, None]:
        """Yield what is to be sealed and sent, in order.

        `outstanding`: the layers of each block that are to come, as bitmasks. Room is asked for ahead by them.
        """
        if self._codec is Codec.RAW:
            await self._ask_ahead(outstanding)
        while emitted := await self._next():
            if self._codec is Codec.RAW:
                async with aclosing(self._placed(emitted)) as placed:
                    async for message in placed:
                        yield message
                continue
            for ready, blocks in emitted:
                for message in self._in_messages(ready, blocks):
                    yield message

    async def _next(self) -> list[Emitted]:
        """Return what was emitted next, with more of it where the sending is behind; nothing at the end.

        What the device has still to compute is left for later: who reads the first of it would wait for the last.
        """
        while not self._queue and not self._is_over:
            self._changed.clear()
            await self._changed.wait()
        emitted: list[Emitted] = []
        num_bytes = 0
        while self._queue and (not emitted or (num_bytes < MAX_PLACED_BYTES and self._is_complete(self._queue[0]))):
            ready, blocks = self._queue.popleft()
            emitted.append((ready, blocks))
            num_bytes += len(blocks) * self._transfer.layout.entry_bytes(ready.layer)
        return emitted

    def _is_complete(self, emitted: Emitted) -> bool:
        ready, blocks = emitted
        return not blocks or self._transfer.stager.is_reached(ready.mark)

    async def _placed(self, emitted: Sequence[Emitted]) -> AsyncGenerator[UnsealedMessage, None]:
        """Yield messages that name entries in the room that the pool gives, then those of what found none."""
        left: list[Emitted] = []
        placings: list[_Placing] = []
        ends: list[Ready] = []
        num_bytes = 0
        for ready, blocks in emitted:
            rest = list(blocks)
            entry_bytes = self._transfer.layout.entry_bytes(ready.layer)
            while rest:
                is_full = bool(placings) and num_bytes + entry_bytes > MAX_PLACED_BYTES
                asked = rest[: max(1, (MAX_PLACED_BYTES - num_bytes) // entry_bytes)]
                room = [None] * len(asked) if is_full else await self._room(asked, entry_bytes)
                given = [(block, slot) for block, slot in zip(asked, room, strict=True) if slot is not None]
                if not given:
                    if placings:
                        yield self._message(placings, num_bytes, ends)
                        placings, num_bytes, ends = [], 0, []
                    elif not self._num_placed:
                        break  # as many messages as there would be without a question
                    if not is_full:
                        await self._all_sent()  # then the pool has room again
                    continue
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

    async def _ask_ahead(self, outstanding: Sequence[int]) -> None:
        """Have room for the first layer when it is complete: a question takes about as long as to copy it."""
        num_bytes = self._transfer.layout.entry_bytes(0)
        blocks = [block for block, layers in enumerate(outstanding) if layers & 1]
        blocks = blocks[: MAX_PLACED_BYTES // num_bytes]
        if blocks:
            self._ahead = dict(zip(blocks, await self._room(blocks, num_bytes), strict=True))

    async def _room(self, blocks: Sequence[int], num_bytes: int) -> list[memoryview | None]:
        ahead = [self._ahead.pop(block, None) for block in blocks]
        if any(slot is not None and len(slot) == num_bytes for slot in ahead):
            return [slot if slot is not None and len(slot) == num_bytes else None for slot in ahead]
        return await self._publication.room([self._keys[block] for block in blocks], num_bytes)

    def _message(self, placings: Sequence[_Placing], num_bytes: int, ends: Sequence[Ready]) -> UnsealedMessage:
        self._num_placed += 1
        return UnsealedMessage(partial(self._seal_in_place, placings), num_bytes, ends, is_placed=True)

    async def _all_sent(self) -> None:
        """Wait until every message is sent that names entries in the pool's room."""
        while self._num_placed:
            self._changed.clear()
            await self._changed.wait()

    def _in_messages(self, ready: Ready, blocks: Sequence[int]) -> Iterator[UnsealedMessage]:
        """Yield messages that bring blocks of a layer; one without any, if there are none."""
        shape = self._transfer.layout.entry_shape(ready.layer)
        at_once = -(-MAX_BATCH_BYTES * _LEAST_RATIO[self._codec] // shape.num_bytes)
        # One reader for all batches: on a GPU it has copied ahead.
        raws = self._stage(ready, blocks)
        for first in range(0, max(1, len(blocks)), at_once):
            part = blocks[first : first + at_once]
            ends = [ready] if first + at_once >= len(blocks) else []
            yield UnsealedMessage(partial(self._seal_batch, ready.layer, part, raws), len(part) * shape.num_bytes, ends)

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
