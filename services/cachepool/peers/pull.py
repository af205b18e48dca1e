"""One pull's life: streams from a peer fill the grants of one writer; what a lost stream owed is asked for again."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from services.cachepool.links.links import channel_ids
from services.cachepool.metrics import PoolMetrics
from services.cachepool.peers.stream import PeerNetwork, StreamRequest, Terms, arrivals
from services.cachepool.peers.suspects import CORRUPT_S, SILENT_S
from services.cachepool.store.block import Writer
from services.cachepool.store.store import Store
from services.cachepool.store.subscription import Subscription
from shared.deadline import Deadline
from shared.errors import CorruptFrame, DeadlineExceeded, PrfaasError, WorkerLost
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame, verify_all
from shared.kv.layout import iter_layers
from shared.log import get_logger
from shared.pool.client import SHARE_ID_BYTES
from shared.pool.lanes.messages import IN_MESSAGES
from shared.rpc.options import ChannelId
from shared.telemetry.spans import Attributes, current_span, named, traced

log = get_logger()

MAX_REFETCHES = 16
"""A peer with more corrupt entries than this in one pull is not worth asking again."""


@dataclass(frozen=True)
class PullContext:
    """What all pulls of one pool share."""

    store: Store
    network: PeerNetwork
    metrics: PoolMetrics
    accuse: Callable[[str, float], None]  # leave a peer alone for so many seconds
    limit_s: float  # of one pull
    num_connections: int  # of a pull from another datacenter


class Pull:
    """Fills the grants of one writer from one peer. Its owner opens the writer before, and closes it afterwards.

    plan streams ─► receive ─► verify ─► put                             all streams have ended
                      │          └► corrupt: ask again, alone                │
                      └► the stream is lost: the others go on                ▼
                                           what is neither here nor denied: ask again, over channels that were not lost
    """

    def __init__(self, context: PullContext, terms: Terms, writer: Writer) -> None:
        self.terms = terms
        self.writer = writer
        self.task: asyncio.Task[None] | None = None
        self._context = context
        self._store = context.store
        self._address = terms.peer.address
        self._started = context.store.clock()
        self._deadline = Deadline.after(context.limit_s)
        self._lost: dict[ChannelId, PrfaasError] = {}
        self._num_refetched = 0

    def left(self) -> list[BlockEntries]:
        """Return what has still to come, in chain order."""
        blocks = sorted(self.writer.granted.items(), key=lambda item: item[0].serial)
        return [BlockEntries(block.key, layers) for block, layers in blocks]

    @property
    def num_bytes_left(self) -> int:
        """What has still to come, before any codec."""
        return sum(self.terms.layout.mask_bytes(layers) for layers in self.writer.granted.values())

    def wanted_by(self, reader: Subscription) -> list[BlockEntries]:
        """Return what of it a reader waits for, in the reader's order."""
        granted = self.writer.granted
        wanted = ((block, granted.get(block, 0) & reader.wants(index)) for index, block in enumerate(reader.blocks))
        return [BlockEntries(block.key, layers) for block, layers in wanted if layers]

    async def run(self, blocks: Sequence[BlockEntries]) -> bool:
        """Receive these entries. Return whether the peer has answered for all of them, be it with a denial.

        A stream that is lost has taken entries from the share that nobody else will send. Which ones is known when
        the others have brought theirs: then they are asked for once more.
        """
        lane = await self._context.network.lanes.to(self._address)
        num_streams = self._num_connections if lane is IN_MESSAGES else 1  # a link has connections of its own
        used = channel_ids(len(blocks), num_streams, is_background=self.terms.is_background)
        lost = await self._receive_over(used, blocks)
        if len(lost) == len(used) and self._fell_silent(lost):
            self._context.accuse(self._address, SILENT_S)
        if lost and (again := self.left()) and (spare := self._spare(used, lost)):
            lost = await self._receive_over(spare[: len(channel_ids(len(again), len(spare)))], again)
        return not lost or not self.writer.granted

    async def _receive_over(
        self, used: Sequence[ChannelId], blocks: Sequence[BlockEntries]
    ) -> Mapping[ChannelId, PrfaasError]:
        """Ask for entries over several channels, which share them; return which of the channels were lost."""
        share = os.urandom(SHARE_ID_BYTES) if len(used) > 1 else b""
        waited_s = self._store.clock() - self._started
        lost: dict[ChannelId, PrfaasError] = {}
        async with asyncio.TaskGroup() as streams:

            async def receive(request: StreamRequest) -> None:
                try:
                    with traced("pull", "client", self._facts(request)):
                        await self._receive(request, lambda entry: streams.create_task(self._refetch(entry)))
                except PrfaasError as error:
                    lost[request.channel_id] = self._lost[request.channel_id] = error
                    self._context.metrics.streams_lost.labels(self._address, error.code).inc()
                    log.warning(
                        "pull_stream_lost", peer=self._address, channel_id=request.channel_id.number, error=str(error)
                    )

            for channel_id in used:
                streams.create_task(
                    receive(StreamRequest(blocks, max(0.0, self.terms.wait_s - waited_s), channel_id, share))
                )
        return lost

    def _facts(self, request: StreamRequest) -> Attributes:
        peer = self.terms.peer
        return {
            "server.address": peer.address,
            **named(dc=peer.dc, num_blocks=len(request.blocks), channel=request.channel_id.number),
        }

    def _fell_silent(self, lost: Mapping[ChannelId, PrfaasError]) -> bool:
        return all(isinstance(error, DeadlineExceeded) for error in lost.values()) and not self._deadline.expired

    def _spare(self, used: Sequence[ChannelId], lost: Mapping[ChannelId, PrfaasError]) -> list[ChannelId]:
        """Return the channels to ask again over: those that did it well, or else one that was not tried.

        Where every stream fell silent the peer hangs: asking it anything costs only time.
        """
        if healthy := [channel_id for channel_id in used if channel_id not in lost]:
            return healthy
        if not all(isinstance(error, WorkerLost) for error in lost.values()):
            return []
        return [ChannelId(len(used), self.terms.is_background)] if len(used) < max(2, self._num_connections) else []

    @property
    def _num_connections(self) -> int:
        context = self._context
        return context.num_connections if context.network.links.is_remote(self.terms.peer.dc) else 1

    async def _receive(self, request: StreamRequest, on_corrupt: Callable[[BlockEntries], object]) -> None:
        """Store what the peer sends and release what it denies.

        A peer denies after it has waited for a writer as long as our reader would: patience counts from the start.
        """
        num_entries = 0
        async with aclosing(arrivals(self._context.network, self.terms, request, self._deadline)) as arriving:
            async for arrived in arriving:
                num_entries += len(arrived.frames)
                for denied in arrived.missing:
                    self._store.release(self.writer, denied, self._started)
                corrupt = [(key, layer) for key, layers in arrived.corrupt for layer in iter_layers(layers)]
                corrupt += [(bad.key, bad.layer) for bad in self._put(arrived.frames, arrived.is_verified)]
                self._context.metrics.corrupt.labels(self._address).inc(len(corrupt))
                for key, layer in corrupt:
                    if 0 <= layer < self.terms.layout.num_layers:  # else nobody can tell which entry this was
                        on_corrupt(BlockEntries(key, 1 << layer))
                del arrived  # or, when this is cancelled, its traceback would hold slots until it is collected
        current_span().set(named(num_entries=num_entries))

    def _put(self, frames: Sequence[Frame], is_verified: bool) -> list[Frame]:
        """Store frames; return those that are not what their source sealed, or are no KV of this layout all the same.

        Raises `BadRequest` when the peer sends what it was not asked for.
        """
        intact = [True] * len(frames) if is_verified else verify_all(frames)
        corrupt = [frame for frame, is_good in zip(frames, intact, strict=True) if not is_good]
        left = frames if not corrupt else [frame for frame, is_good in zip(frames, intact, strict=True) if is_good]
        metrics = self._context.metrics
        while left:
            result = self._store.put_all(self.writer, left)
            done, left = left[: result.num_done], left[result.num_done :]
            metrics.refused.inc(len(result.refused))
            # They have crossed the link, stored or not.
            num_bytes = sum(len(frame.payload) for frame in done)
            metrics.pulled.labels(self._address).inc(len(done))
            metrics.pulled_bytes.labels(self._address).inc(num_bytes)
            metrics.lane_received.labels("socket" if is_verified else "grpc").inc(num_bytes)
            if isinstance(result.error, CorruptFrame):
                corrupt.append(left[0])
                left = left[1:]
            elif result.error is not None:
                raise result.error
        return corrupt

    async def _refetch(self, entry: BlockEntries) -> None:
        """Ask once more for an entry that came corrupt, alone; the pull gives it up when that fails too."""
        self._num_refetched += 1
        try:
            if self._num_refetched <= MAX_REFETCHES:
                ids_left = (ChannelId(n, self.terms.is_background) for n in range(len(self._lost) + 1))
                channel_id = next(channel_id for channel_id in ids_left if channel_id not in self._lost)
                await self._receive(
                    StreamRequest([entry], 0.0, channel_id, doubted=True),
                    lambda _entry: self._context.accuse(self._address, CORRUPT_S),
                )
            else:
                self._context.accuse(self._address, CORRUPT_S)
        except PrfaasError as error:
            log.warning("refetch_failed", peer=self._address, error=str(error))
        self._store.release(self.writer, entry, self._started)
