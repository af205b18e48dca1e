"""Full blocks that decode computed go to the pool in the background: for the next turn of a conversation, and for
requests that are pre-empted."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from services.decode.holding import Holding
from services.decode.request import Request
from shared.deadline import Deadline
from shared.engine.batching import Ready
from shared.engine.duty import DutyCycle
from shared.engine.pool_access import PoolAccess
from shared.engine.publish import PagePublisher
from shared.engine.transfer import PageTransfer
from shared.errors import DeadlineExceeded, PrfaasError, Unavailable
from shared.kv.entries import BlockEntries
from shared.log import get_logger
from shared.metrics import Metrics
from shared.model.pages.kv import PagedKv
from shared.model.pages.reservation import Reservation

log = get_logger()

MAX_QUEUED_BLOCKS = 1024
HELD_SHARE = 8
"""One in so many of the device's pages may be held by blocks that wait to be published."""
BUSY_SHARE = 0.2
"""Part of the time that publishing may take while there are steps to run: both want the interpreter and memory."""
PUBLISH_TIMEOUT_S = 30.0
BACK_OFF_S = 5.0
"""How long nothing is sent to a pool that could not be reached: pages wait for the sending, others for the pages."""


class PublishWork(NamedTuple):
    """Blocks `[first, end)` of a request that are to go to the pool."""

    request: Request
    holding: Holding
    pages: Reservation  # what the blocks are read from
    first: int
    layers: tuple[int, ...]  # of the blocks from `first` on: what is in the pages

    @property
    def end(self) -> int:
        return self.first + len(self.layers)

    @property
    def is_swap(self) -> bool:
        """Whether it is what a pre-empted request leaves behind, in pages that others wait for."""
        return self.pages is self.holding.reservation


class BlockPublisher:
    """Publishes blocks one request at a time, best effort: a pool that is away costs a later miss, nothing else.

    Every accepted piece of work uses its pages until `on_done` is called. What is published counts in its request's
    `num_pooled`; what is not may be offered again, together with the request's next block. What a pre-empted request
    leaves goes first and at full speed. All else holds a small part of the device's pages at most, takes a small part
    of the time while the engine is `busy`, and is dropped when somebody needs its pages.
    """

    def __init__(
        self, pool: PoolAccess, transfer: PageTransfer, metrics: Metrics, on_done: Callable[[PublishWork], None]
    ) -> None:
        self._pool = pool
        self._transfer = transfer
        self._on_done = on_done
        self._swaps: deque[PublishWork] = deque()
        self._waiting: deque[PublishWork] = deque()
        self._arrived = asyncio.Event()
        self._num_queued = 0  # blocks, of works in hand too
        self._max_held = max_held_blocks(transfer.kv)
        self._busy = False
        self._duty = DutyCycle(BUSY_SHARE)
        self._away_until_s = 0.0
        self._published = metrics.counter(
            "decode_published_blocks", "Blocks that decode computed and offered to the pool"
        )
        self._dropped = metrics.counter("decode_unpublished_blocks", "Blocks that did not reach the pool")

    def publish(self, work: PublishWork) -> bool:
        """Queue blocks. False, and nothing is done, when too many wait."""
        most = MAX_QUEUED_BLOCKS if work.is_swap or not self._num_queued else min(MAX_QUEUED_BLOCKS, self._max_held)
        if self._num_queued + len(work.layers) > most:
            return False
        self._num_queued += len(work.layers)
        if work.is_swap:
            self._swaps += [earlier for earlier in self._waiting if earlier.request is work.request]
            self._waiting = deque(other for other in self._waiting if other.request is not work.request)
            self._swaps.append(work)
        else:
            self._waiting.append(work)
        self._arrived.set()
        self._set_pace()
        return True

    def make_room(self) -> bool:
        """Drop what waits, but what pre-empted requests have left. Return whether there was any."""
        dropped, self._waiting = self._waiting, deque()
        for work in dropped:
            self._drop(work)
        return bool(dropped)

    def set_busy(self, busy: bool) -> None:
        """Say whether the engine has steps to run."""
        self._busy = busy
        self._set_pace()

    async def run(self) -> None:
        """Publish what is queued, until cancelled; then the queue is dropped."""
        try:
            while True:
                while queue := self._swaps or self._waiting:
                    await self._publish(queue.popleft())
                    self._set_pace()
                self._arrived.clear()
                await self._arrived.wait()
        finally:
            for work in (*self._swaps, *self._waiting):
                self._drop(work)

    def _set_pace(self) -> None:
        self._duty.limit(self._busy and not self._swaps)

    async def _publish(self, work: PublishWork) -> None:
        if time.monotonic() < self._away_until_s:
            self._drop(work)
            return
        try:
            with work.request.generation.bound():
                await self._send(work)
        except PrfaasError as error:
            log.warning("blocks_not_published", num_blocks=len(work.layers), error=str(error), code=error.code)
            if isinstance(error, (Unavailable, DeadlineExceeded)):
                self._away_until_s = time.monotonic() + BACK_OFF_S
            self._drop(work)
        except BaseException:
            self._drop(work)
            raise
        else:
            self._published.inc(len(work.layers))
            if work.first <= work.request.num_pooled:
                work.request.num_pooled = max(work.request.num_pooled, work.end)
            self._finish(work)

    def count_unpublished(self, num_blocks: int) -> None:
        """Note that a request has ended, and as many of its blocks were never accepted."""
        self._dropped.inc(num_blocks)

    def _drop(self, work: PublishWork) -> None:
        if work.request.retired:  # else they may be offered again
            self._dropped.inc(len(work.layers))
        work.request.num_offered = min(work.request.num_offered, work.first)
        self._finish(work)

    def _finish(self, work: PublishWork) -> None:
        self._num_queued -= len(work.layers)
        self._on_done(work)

    async def _send(self, work: PublishWork) -> None:
        request, generation = work.request, work.request.generation
        pool = self._pool.at(generation.pool_nodes, generation.tenant)
        async with pool.publish(Deadline.after(PUBLISH_TIMEOUT_S)) as publication:
            rest = None if work.is_swap else self._duty.rest
            publisher = PagePublisher(
                publication, self._transfer, work.pages, request.keys, generation.codec, rest=rest
            )
            blocks = [
                BlockEntries(key, layers)
                for key, layers in zip(request.keys[work.first : work.end], work.layers, strict=True)
            ]
            if work.first > 0:
                blocks.insert(0, BlockEntries(request.keys[work.first - 1], 0))  # tells the pool what these follow
            grant = await publication.open(self._transfer.layout, blocks)
            for block, granted in zip(range(work.first, work.end), grant.granted[-len(work.layers) :], strict=True):
                publisher.grant(block, granted)
            for layer in range(self._transfer.layout.num_layers):
                publisher.emit(Ready(layer, work.first, work.end))
            publisher.finish()
            await publisher.run()


def max_held_blocks(kv: PagedKv) -> int:
    """Return how many blocks the part of the device's pages holds that may wait to be published."""
    return kv.num_pages // (HELD_SHARE * kv.num_groups) * kv.blocks_per_page
