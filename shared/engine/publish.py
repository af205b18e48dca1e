"""Blocks from pages to the pool: a layer's entries leave as soon as they are complete, while the next one computes."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from shared.engine.thread import WorkThread
from shared.ids import BlockKey
from shared.kv.codec import Codec
from shared.kv.frame import Frame, seal
from shared.kv.tensors import entry_to_bytes
from shared.model.paged import PagedKv, Reservation
from shared.rpc.convert import MAX_BATCH_BYTES
from shared.rpc.pool import Publication


class Ready(NamedTuple):
    """Blocks `[first, end)` are complete in `layer` and will not change any more."""

    layer: int
    first: int
    end: int


class PagePublisher:
    """Sends one request's granted entries in the order in which they become ready.

    The queue holds references to pages, not bytes, so it is bounded by layers x chunks; bytes exist for one batch at a
    time. The caller owns the reservation and keeps it until `run` has returned or raised: pages of ready entries are
    only read. Window pages must be kept until `num_blocks_sent` is past them: a slow pool slows the sending, and the
    computing only when that is as far ahead as its window pages allow.
    """

    def __init__(
        self,
        publication: Publication,
        kv: PagedKv,
        reservation: Reservation,
        keys: Sequence[BlockKey],
        copier: WorkThread,
        codec: Codec,
        on_sent: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_sent` is called when `num_blocks_sent` may have grown."""
        self._publication = publication
        self._kv = kv
        self._reservation = reservation
        self._keys = keys
        self._copier = copier
        self._codec = codec
        self._on_sent = on_sent
        self._queue: asyncio.Queue[Ready | None] = asyncio.Queue()
        self.to_send = [0] * len(keys)
        """Layers of each block that were granted to us and are not sent yet."""
        self._sent_in_layer = [0] * kv.layout.num_layers
        self.num_entries_sent = 0
        self.first_sent_at_s: float | None = None  # seconds since 1970, as all of these
        self.last_sent_at_s: float | None = None
        self.finished_at_s: float | None = None

    def emit(self, ready: Ready) -> None:
        """Queue entries for sending; returns at once."""
        self._queue.put_nowait(ready)

    def finish(self) -> None:
        """Say that nothing more will be emitted: `run` returns when the queue is empty."""
        self.finished_at_s = time.time()
        self._queue.put_nowait(None)

    @property
    def exposed_s(self) -> float:
        """Seconds from the last computed layer to the last entry sent: the sending that computing did not hide."""
        if self.last_sent_at_s is None or self.finished_at_s is None:
            return 0.0
        return max(0.0, self.last_sent_at_s - self.finished_at_s)

    @property
    def num_blocks_sent(self) -> int:
        """Leading blocks whose pages are not read any more, provided that each layer's blocks are emitted in order."""
        return min(self._sent_in_layer)

    async def run(self) -> None:
        """Send what is emitted until `finish`. Raises what the publication raises."""
        while (ready := await self._queue.get()) is not None:
            pending = [block for block in range(ready.first, ready.end) if self.to_send[block] >> ready.layer & 1]
            while pending:
                frames = await self._copier.run(partial(self._seal_batch, ready.layer, pending))
                await self._publication.send(frames)
                self._mark_sent(frames, ready.layer, pending[: len(frames)])
                del pending[: len(frames)]
            self._sent_in_layer[ready.layer] = ready.end
            self._on_sent()

    def _mark_sent(self, frames: list[Frame], layer: int, blocks: list[int]) -> None:
        for block in blocks:
            self.to_send[block] &= ~(1 << layer)
        self.num_entries_sent += len(frames)
        self.last_sent_at_s = time.time()
        self.first_sent_at_s = self.first_sent_at_s or self.last_sent_at_s

    def _seal_batch(self, layer: int, blocks: list[int]) -> list[Frame]:
        """Seal leading blocks up to one message's worth; runs in the copier thread."""
        frames: list[Frame] = []
        size = 0
        for block in blocks:
            k, v = self._kv.block(layer, self._reservation, block)
            frame = seal(self._keys[block], layer, entry_to_bytes(k, v), self._codec)
            frames.append(frame)
            size += len(frame.payload)
            if size >= MAX_BATCH_BYTES:
                break
        return frames
