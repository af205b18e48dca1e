"""Full blocks that decode computed go to the pool in the background, so that the next turn of a conversation hits."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from services.decode.sequence import Sequence
from shared.deadline import Deadline
from shared.engine.fetch import FetchContext
from shared.engine.publish import PagePublisher, Ready
from shared.errors import PrfaasError
from shared.kv.entries import BlockEntries
from shared.log import get_logger
from shared.metrics import Metrics
from shared.model.paged import Reservation

log = get_logger()

MAX_QUEUED_BLOCKS = 1024
PUBLISH_TIMEOUT_S = 10.0


class _Work(NamedTuple):
    sequence: Sequence
    pages: Reservation
    first: int
    end: int


class BlockPublisher:
    """Publishes blocks one request at a time, best effort: a pool that is away costs a later miss, nothing else.

    It holds the pages of what waits here itself, and drops what it gets no hold on.
    """

    def __init__(self, context: FetchContext, metrics: Metrics, on_published: Callable[[], None]) -> None:
        self._context = context
        self._on_published = on_published
        self._queue: asyncio.Queue[_Work] = asyncio.Queue()
        self._num_queued = 0
        self._published = metrics.counter(
            "decode_published_blocks", "Blocks that decode computed and offered to the pool"
        )
        self._dropped = metrics.counter("decode_unpublished_blocks", "Blocks that did not reach the pool")

    def publish(self, sequence: Sequence, first: int, end: int) -> None:
        """Queue blocks `[first, end)` of a sequence that holds pages; drops them when too many wait."""
        pages = None
        if self._num_queued + end - first <= MAX_QUEUED_BLOCKS and sequence.reservation is not None:
            pages = self._context.kv.share(sequence.reservation, first, end)
        if pages is None:
            self._dropped.inc(end - first)
            return
        self._num_queued += end - first
        self._queue.put_nowait(_Work(sequence, pages, first, end))

    async def run(self) -> None:
        """Publish what is queued, for ever."""
        while True:
            work = await self._queue.get()
            num_blocks = work.end - work.first
            try:
                await self._send(work)
                self._published.inc(num_blocks)
            except PrfaasError as error:
                self._dropped.inc(num_blocks)
                log.warning("blocks_not_published", num_blocks=num_blocks, error=str(error), code=error.code)
            finally:
                self._num_queued -= num_blocks
                self._context.kv.release(work.pages)
                self._on_published()

    async def _send(self, work: _Work) -> None:
        context, sequence = self._context, work.sequence
        async with context.pool.publish(Deadline.after(PUBLISH_TIMEOUT_S)) as publication:
            publisher = PagePublisher(publication, context, work.pages, sequence.keys, sequence.generation.codec)
            blocks = [BlockEntries(key, context.layout.all_layers) for key in sequence.keys[work.first : work.end]]
            if work.first > 0:
                blocks.insert(0, BlockEntries(sequence.keys[work.first - 1], 0))  # tells the pool what these follow
            grant = await publication.open(context.layout, blocks)
            publisher.to_send[work.first : work.end] = grant.granted[-(work.end - work.first) :]
            for layer in range(context.layout.num_layers):
                publisher.emit(Ready(layer, work.first, work.end))
            publisher.finish()
            await publisher.run()
