"""The pool's gRPC face: streams are leases, masks and keys are checked here, frames pass through by reference."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import grpc.aio

from services.cachepool.links.links import PoolLinks, Sender
from services.cachepool.metrics import MEMORY, PoolMetrics
from services.cachepool.peers.peers import PeerPulls
from services.cachepool.placement import PlacementLog
from services.cachepool.serving.asked import check_size, wanted
from services.cachepool.serving.delivery import Beat, Delivery, Missing, Send, Wait
from services.cachepool.serving.offers import OfferedLanes
from services.cachepool.serving.outlets import LinkedOutlet, Outlet
from services.cachepool.serving.probes import ProbeHandler
from services.cachepool.serving.publish import PublishHandler
from services.cachepool.serving.shares import SharedReaders, Slot
from services.cachepool.serving.tier import Tier
from services.cachepool.settings import PoolSettings
from services.cachepool.store.pins import Pins
from services.cachepool.store.sources import SourcedReader
from services.cachepool.store.store import Store
from shared.bus.events import stored_to_messages
from shared.errors import BadRequest, Overloaded
from shared.ids import BlockKey
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame, verify_all
from shared.log import get_logger
from shared.pool.client import SHARE_ID_BYTES
from shared.pool.wire import Unreadable
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import CachePoolServicer
from shared.rpc.convert import (
    entries_to_messages,
    lookup_to_message,
    mask_to_bytes,
    sources_from_messages,
)
from shared.telemetry.spans import current_span, named
from shared.tenant import Tenant

log = get_logger()

Context = grpc.aio.ServicerContext[Any, Any]

MIN_HEARTBEAT_S = 0.05
"""The shortest pause between heartbeats that a reader may ask for: each is a message."""
SNAPSHOT_BLOCKS = 8192
"""Blocks in one snapshot message: 256 KiB of keys."""


@dataclass(slots=True)
class ServedFetch:
    """One Fetch stream, as its log line shows it."""

    num_blocks: int  # asked for
    reader_dc: str  # empty: of this datacenter
    lane: str
    num_entries: int = 0
    num_missing: int = 0  # entries that nobody had or wrote in time
    finished: bool = False  # false: the reader has left, or the stream broke


class PoolServicer(CachePoolServicer):
    """Serves one store. Every lease ends with its stream, however that ends."""

    def __init__(
        self,
        settings: PoolSettings,
        store: Store,
        pins: Pins,
        placement: PlacementLog,
        tier: Tier,
        pulls: PeerPulls,
        links: PoolLinks,
        lanes: OfferedLanes,
        metrics: PoolMetrics,
    ) -> None:
        self._settings = settings
        self._store = store
        self._pins = pins
        self._placement = placement
        self._tier = tier
        self._pulls = pulls
        self._links = links
        self._shares: SharedReaders[SourcedReader] = SharedReaders()
        self._metrics = metrics
        self._lanes = lanes
        self._publishing = PublishHandler(settings, store, tier, lanes, metrics)
        self._probing = ProbeHandler(links)

    async def Lanes(self, request: pb.LanesRequest, context: Context) -> pb.LanesReply:
        return self._lanes.reply()

    async def Publish(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]
        await self._publishing.serve(request_iterator, context)

    async def Fetch(self, request: pb.FetchRequest, context: Context) -> None:  # type: ignore[override]
        layout, blocks = wanted(request.layout, request.blocks, self._settings.max_blocks)
        sources = sources_from_messages(request.sources)
        if any(source.end > len(blocks) for source in sources):
            raise BadRequest("a source names blocks beyond those of the request")
        wait_s = min(request.wait_ms / 1000, self._settings.max_wait_s)
        is_background = request.urgency == pb.URGENCY_BACKGROUND
        sender = self._links.sender(request.dc, is_background=is_background)
        if len(request.share) not in (0, SHARE_ID_BYTES):
            raise BadRequest(f"the id of a share has {SHARE_ID_BYTES} bytes")
        outlet = self._lanes.outlet(request.lane, context, sender.permit, is_background=is_background)
        if request.doubted:
            await self._check(blocks)

        def opening(notify: Callable[[], None]) -> SourcedReader:
            if self._store.stats.num_readers >= self._settings.max_streams:
                raise Overloaded(f"the pool serves {self._settings.max_streams} readers already")
            reader = self._store.subscribe(layout, blocks, wait_s, notify, Tenant(request.tenant))
            sourced = SourcedReader(reader, layout, sources, wait_s, is_background=is_background)
            self._pulls.hasten(sourced)
            return sourced

        with self._shares.join(request.share, opening, self._closing) as slot:
            if slot is not None:
                heartbeat_s = max(request.heartbeat_ms / 1000, MIN_HEARTBEAT_S) if request.heartbeat_ms else None
                served = ServedFetch(len(blocks), request.dc, outlet.name)
                try:
                    await self._deliver(slot, sender, outlet, context, heartbeat_s, served)
                    await outlet.finish()
                    served.finished = True
                finally:
                    log.info("fetch_served", **asdict(served))
                    current_span().set(named(**asdict(served)))
                    if isinstance(outlet, LinkedOutlet):
                        await outlet.close()

    async def _check(self, blocks: Sequence[BlockEntries]) -> None:
        """Forget those of the entries here that are not what their source sealed: a reader has found them corrupt."""
        frames = [frame for block in blocks for frame in self._store.frames(block)]
        intact = await asyncio.to_thread(verify_all, frames)
        for frame in (frame for frame, is_good in zip(frames, intact, strict=True) if not is_good):
            if self._store.discard(frame):
                self._metrics.corrupt.labels(MEMORY).inc()
                log.error("entry_rotten_in_memory", key=frame.key.hex()[:12], layer=frame.layer)

    def _closing(self, sourced: SourcedReader) -> None:
        self._store.close(sourced.reader)
        self._tier.cancel_unwanted()
        self._pulls.cancel_unwanted()

    async def Lookup(  # type: ignore[override]
        self, keys: list[BlockKey] | Unreadable, context: Context
    ) -> pb.LookupReply:
        if isinstance(keys, Unreadable):
            raise keys.error
        check_size(len(keys), self._settings.max_blocks)
        return lookup_to_message(self._tier.add_readable(keys, self._store.lookup_all(keys)))

    async def Pin(self, request: pb.PinRequest, context: Context) -> pb.PinReply:
        layout, blocks = wanted(request.layout, request.blocks, self._settings.max_blocks)
        present = self._pins.pin(request.pin, layout, blocks, request.ttl_s, Tenant(request.tenant))
        return pb.PinReply(present=[mask_to_bytes(layers) for layers in present])

    async def Unpin(self, request: pb.UnpinRequest, context: Context) -> pb.UnpinReply:
        return pb.UnpinReply(found=self._pins.unpin(request.pin))

    async def Snapshot(self, request: pb.SnapshotRequest, context: Context) -> AsyncIterator[pb.SnapshotReply]:
        snapshot = self._placement.snapshot()
        for part in snapshot.parts(SNAPSHOT_BLOCKS):
            stored = stored_to_messages(part)
            yield pb.SnapshotReply(epoch=snapshot.epoch, sequence=snapshot.sequence, stored=stored)

    async def Probe(self, request: pb.ProbeRequest, context: Context) -> None:  # type: ignore[override]
        await self._probing.serve(request, context)

    async def _deliver(
        self,
        slot: Slot[SourcedReader],
        sender: Sender,
        outlet: Outlet,
        context: Context,
        heartbeat_s: float | None,
        served: ServedFetch,
    ) -> None:
        """Send what is ready, lowest layer first, until every wanted entry was sent or reported missing."""
        sourced, changed, wake_others = slot
        reader, clock = sourced.reader, self._store.clock
        delivery = Delivery(reader, sender.max_batch_bytes, heartbeat_s, clock())
        while not reader.done:
            changed.clear()
            if reader.lost_writers:
                reader.lost_writers = False
                self._tier.start(sourced)
                self._pulls.start(sourced)
            match delivery.next_action(clock()):
                case Send(max_bytes, patience_s):
                    async with sender.permit(patience_s) as is_granted:
                        frames = reader.take(outlet.limit(max_bytes)) if is_granted else []
                        if frames:
                            await self._send(frames, outlet)
                            served.num_entries += len(frames)
                    sender.sent(frames)
                    if not frames:
                        continue  # no permit in time, or another stream of the share was quicker
                    del frames  # their slots are others', once evicted, while this waits
                case Missing(blocks):
                    num_missing = sum(block.layers.bit_count() for block in blocks)
                    self._metrics.fetched.labels("miss").inc(num_missing)
                    served.num_missing += num_missing
                    await context.write(pb.FetchReply(missing=pb.FetchMissing(blocks=entries_to_messages(blocks))))
                case Beat():
                    await context.write(pb.FetchReply())
                case Wait(limit_s):
                    await _wait(changed, limit_s)
                    continue
            delivery.spoke(clock())
        wake_others()  # they have nothing to wait for any more

    async def _send(self, frames: Sequence[Frame], outlet: Outlet) -> None:
        await outlet.send(frames)
        self._metrics.fetched.labels("hit").inc(len(frames))
        num_bytes = sum(len(frame.payload) for frame in frames)
        self._metrics.fetched_bytes.inc(num_bytes)
        self._metrics.lane_sent.labels(outlet.name).inc(num_bytes)


async def _wait(changed: asyncio.Event, limit_s: float | None) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await changed.wait()
