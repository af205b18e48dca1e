"""Blocks from pages to the pool: a layer's entries leave as soon as they are complete, while the next one computes."""

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, nullcontext

from shared.engine.batching import MessageBatcher, Ready, UnsealedMessage
from shared.engine.in_order import in_order
from shared.engine.transfer import PageTransfer
from shared.ids import BlockKey
from shared.kv.codec import Codec
from shared.kv.frame import Frame
from shared.model.pages.reservation import Reservation
from shared.pool.nodes import Publishing

MAX_BACKLOG_BYTES = 256 * 1024 * 1024
"""What may be ready and not sent before a publisher says that it is `full`."""

MAX_SEALED = 2
"""Messages of one publisher that are being sealed, wait to be sent, or are being sent: the copier seals one while
another one leaves."""


class PagePublisher:
    """Sends one request's granted entries in the order in which they become ready.

    Invariant: `outstanding[block]` is what the pool granted, less what `limit` gave up, less what `emit` queued. So an
    entry is sent at most once for each grant, and never without one. Whoever talks to the pool calls `grant`; whoever
    owns the pages calls `limit`, with what they hold, and `emit`.

    What is queued are references to pages; bytes exist for `MAX_SEALED` messages at most. A slow pool slows the sending
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
        on_layer_sent: Callable[[int], None] = lambda _layer: None,
    ) -> None:
        """`on_sent` is called when `num_blocks_sent` may have grown, and `full` may have ceased. `on_layer_sent` is
        told a layer of which entries were sent.

        `rest` is awaited after each message, with the seconds that it took: background work may wait there.
        """
        self._publication = publication
        self._transfer = transfer
        self._batcher = MessageBatcher(publication, transfer, reservation, keys, codec)
        self._codec = codec
        self._on_sent = on_sent
        self._on_layer_sent = on_layer_sent
        self._rest = rest
        self.backlog_bytes = 0  # of entries that are ready and not sent, before the codec
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
        self._batcher.put((ready, blocks))

    def finish(self) -> None:
        """Say that nothing more will be emitted: `run` returns when the queue is empty."""
        self.finished_at_s = time.time()
        self._batcher.finish()

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
        async with aclosing(in_order(self._batcher.messages(self._outstanding), self._sealed, MAX_SEALED)) as messages:
            async for message, frames, seconds in messages:
                if frames:
                    await self._send(message, frames, seconds)
                self._batcher.sent(message)
                for ready in message.ends:
                    self._sent_in_layer[ready.layer] = max(self._sent_in_layer[ready.layer], ready.end)
                    if frames:
                        self._on_layer_sent(ready.layer)
                    self._on_sent()
                del message, frames  # their bytes are nobody's while this waits

    async def _sealed(self, message: UnsealedMessage) -> tuple[UnsealedMessage, list[Frame], float]:
        """Return a message, its frames, and the seconds that it took to seal them."""
        if not message.num_bytes:
            return message, [], 0.0
        started = time.perf_counter()
        sending, is_complete = self._transfer.sending, self._is_complete(message)
        with sending.moving() if is_complete else nullcontext():
            frames = await self._transfer.copier.run(message.seal)
        if is_complete:
            sending.moved(message.num_bytes)
        return message, frames, time.perf_counter() - started

    def _is_complete(self, message: UnsealedMessage) -> bool:
        """Whether sealing waits for nothing that the device still computes: else its time says nothing of the way."""
        return all(self._transfer.stager.is_reached(ready.mark) for ready in message.ends)

    async def _send(self, message: UnsealedMessage, frames: Sequence[Frame], seconds: float) -> None:
        started = time.perf_counter()
        with self._transfer.sending.moving():
            await self._publication.send(frames)
        self._transfer.metrics.sent(self._codec, message.num_bytes, sum(len(frame.payload) for frame in frames))
        self.num_entries_sent += len(frames)
        self.last_sent_at_s = time.time()
        self.first_sent_at_s = self.first_sent_at_s or self.last_sent_at_s
        self.backlog_bytes -= message.num_bytes
        if self._rest is not None:
            await self._rest(seconds + time.perf_counter() - started)
