"""The pool's gRPC face: streams are leases, masks and keys are checked here, frames pass through by reference."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio

from services.cachepool.block import Writer
from services.cachepool.integrity import check
from services.cachepool.links import Links, Outlet
from services.cachepool.metrics import WRITER, PoolMetrics
from services.cachepool.peers import PeerPulls
from services.cachepool.pins import Pins
from services.cachepool.placement import PlacementLog
from services.cachepool.settings import PoolSettings
from services.cachepool.shares import SHARE_ID_BYTES, Place, Shares
from services.cachepool.sources import SourcedReader
from services.cachepool.store import Store
from services.cachepool.tiers.tier import NoTier, ObjectTier
from shared.bus.events import stored_to_messages
from shared.errors import BadRequest, CorruptFrame, LeaseExpired, Overloaded
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import CachePoolServicer
from shared.rpc.convert import (
    MAX_BATCH_BYTES,
    entries_from_messages,
    entries_to_messages,
    keys_from_bytes,
    layout_from_message,
    lookup_to_message,
    mask_to_bytes,
    sources_from_messages,
)
from shared.rpc.wire import Unreadable

Context = grpc.aio.ServicerContext[Any, Any]
PublishMessage = pb.PublishRequest | list[Frame] | Unreadable

DEFAULT_LEASE_S = 10.0
FIRST_BATCH_BYTES = 64 * 1024
"""The first message of a stream is small: it is there within a millisecond, and its reader can begin."""
MIN_HEARTBEAT_S = 0.05
"""Heartbeats that a reader may ask for: one of a stream takes some 50 µs here."""
SNAPSHOT_BLOCKS = 8192
"""Blocks in one snapshot message: 256 KiB of keys."""


@dataclass(slots=True)
class _Lease:
    """How long a writer may be silent, and what it has stored so far."""

    writer: Writer
    silence_s: float
    num_stored: int = 0


class PoolServicer(CachePoolServicer):
    """Serves one store. Every lease ends with its stream, however that ends."""

    def __init__(
        self,
        settings: PoolSettings,
        store: Store,
        pins: Pins,
        placement: PlacementLog,
        tier: ObjectTier | NoTier,
        pulls: PeerPulls,
        links: Links,
        metrics: PoolMetrics,
    ) -> None:
        self._settings = settings
        self._store = store
        self._pins = pins
        self._placement = placement
        self._tier = tier
        self._pulls = pulls
        self._links = links
        self._shares: Shares[SourcedReader] = Shares()
        self._metrics = metrics
        self._num_publishing = 0

    async def Publish(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]
        with self._publishing():
            lease = _Lease(self._store.open_writer(), min(DEFAULT_LEASE_S, self._settings.max_lease_s))
            try:
                async with asyncio.timeout(lease.silence_s) as silence:
                    async for message in request_iterator:
                        await self._on_publish(message, lease, context)
                        silence.reschedule(asyncio.get_running_loop().time() + lease.silence_s)
            except TimeoutError:
                raise LeaseExpired(f"the writer was silent for {lease.silence_s:g} s") from None
            finally:
                self._metrics.lost.inc(self._store.abandon(lease.writer))
            await context.write(pb.PublishReply(stored=pb.PublishStored(num_entries=lease.num_stored)))

    async def Fetch(self, request: pb.FetchRequest, context: Context) -> None:  # type: ignore[override]
        layout, blocks = self._wanted(request.layout, request.blocks)
        sources = sources_from_messages(request.sources)
        if any(source.end > len(blocks) for source in sources):
            raise BadRequest("a source names blocks beyond those of the request")
        wait_s = min(request.wait_ms / 1000, self._settings.max_wait_s)
        is_background = request.urgency == pb.URGENCY_BACKGROUND
        outlet = self._links.outlet(request.dc, is_background=is_background)
        if len(request.share) not in (0, SHARE_ID_BYTES):
            raise BadRequest(f"the id of a share has {SHARE_ID_BYTES} bytes")

        def opening(notify: Callable[[], None]) -> SourcedReader:
            if self._store.stats.num_readers >= self._settings.max_streams:
                raise Overloaded(f"the pool serves {self._settings.max_streams} readers already")
            reader = self._store.subscribe(layout, blocks, wait_s, notify, request.tenant)
            sourced = SourcedReader(reader, layout, sources, wait_s, is_background=is_background)
            self._pulls.hasten(sourced)
            return sourced

        with self._shares.join(request.share, opening, self._closing) as place:
            if place is not None:
                heartbeat_s = max(request.heartbeat_ms / 1000, MIN_HEARTBEAT_S) if request.heartbeat_ms else None
                await self._deliver(place, outlet, context, heartbeat_s)

    def _closing(self, sourced: SourcedReader) -> None:
        self._store.close(sourced.reader)
        self._tier.cancel_unwanted()
        self._pulls.cancel_unwanted()

    async def Lookup(self, request: pb.LookupRequest, context: Context) -> pb.LookupReply:
        self._check_size(len(request.keys))
        keys = keys_from_bytes(request.keys)
        present = self._store.lookup_all(keys)
        if isinstance(self._tier, ObjectTier):
            present = [layers | self._tier.readable(key) for layers, key in zip(present, keys, strict=True)]
        return lookup_to_message(present)

    async def Pin(self, request: pb.PinRequest, context: Context) -> pb.PinReply:
        layout, blocks = self._wanted(request.layout, request.blocks)
        present = self._pins.pin(request.pin, layout, blocks, request.ttl_s, request.tenant)
        return pb.PinReply(present=[mask_to_bytes(layers) for layers in present])

    async def Unpin(self, request: pb.UnpinRequest, context: Context) -> pb.UnpinReply:
        return pb.UnpinReply(found=self._pins.unpin(request.pin))

    async def Snapshot(self, request: pb.SnapshotRequest, context: Context) -> AsyncIterator[pb.SnapshotReply]:
        snapshot = self._placement.snapshot()
        for part in snapshot.parts(SNAPSHOT_BLOCKS):
            stored = stored_to_messages(part)
            yield pb.SnapshotReply(epoch=snapshot.epoch, sequence=snapshot.sequence, stored=stored)

    async def _on_publish(self, message: PublishMessage, lease: _Lease, context: Context) -> None:
        if isinstance(message, list):
            self._ingest(message, lease)
            return
        if isinstance(message, Unreadable):
            self._metrics.corrupt.labels(WRITER).inc()
            raise message.error
        match message.WhichOneof("message"):
            case "open":
                await context.write(pb.PublishReply(grant=self._grant(message.open, lease)))
            case "renew":
                pass  # it has come: that is all it says
            case _:
                raise BadRequest("an empty publish message")

    def _grant(self, message: pb.PublishOpen, lease: _Lease) -> pb.PublishGrant:
        layout, blocks = self._wanted(message.layout, message.blocks)
        lease.writer.tenant = message.tenant
        if message.lease_ms:
            lease.silence_s = min(message.lease_ms / 1000, self._settings.max_lease_s)
        objects = [self._tier.readable(key, layout) & layers for key, layers in blocks]
        lacking = [BlockEntries(key, layers & ~held) for (key, layers), held in zip(blocks, objects, strict=True)]
        grants = self._store.grant(lease.writer, layout, lacking)
        presents = [grant.present | held for grant, held in zip(grants, objects, strict=True)]
        num_present = sum(present.bit_count() for present in presents)
        answered = sum(layers.bit_count() for _, layers in blocks) - sum(g.granted.bit_count() for g in grants)
        self._metrics.skipped.labels("present").inc(num_present)
        self._metrics.skipped.labels("filling").inc(answered - num_present)
        return pb.PublishGrant(
            granted=[mask_to_bytes(grant.granted) for grant in grants],
            present=[mask_to_bytes(present) for present in presents],
        )

    def _ingest(self, frames: Sequence[Frame], lease: _Lease) -> None:
        """Store a writer's frames. One corrupt frame ends the stream: whatever it carried cannot be trusted."""
        checked = check(frames, self._store.memory.keep)
        num_stored = num_bytes = 0
        try:
            for frame in checked.intact:
                try:
                    self._store.put(lease.writer, frame)
                except Overloaded:
                    # A full pool is no fault of the writer's: it goes on, its readers wait for another or compute.
                    self._metrics.refused.inc()
                else:
                    num_stored += 1
                    num_bytes += len(frame.payload)
            if checked.corrupt:
                bad = checked.corrupt[0]
                raise CorruptFrame(f"the checksum of block {bad.key.hex()[:12]} layer {bad.layer} does not match")
        except CorruptFrame:
            self._metrics.corrupt.labels(WRITER).inc()
            raise
        finally:
            lease.num_stored += num_stored
            self._metrics.published.inc(num_stored)
            self._metrics.published_bytes.inc(num_bytes)

    async def _deliver(
        self, place: Place[SourcedReader], outlet: Outlet, context: Context, heartbeat_s: float | None
    ) -> None:
        """Send what is ready, lowest layer first, until every wanted entry was sent or reported missing."""
        sourced, changed, wake_others = place
        reader = sourced.reader
        limit = FIRST_BATCH_BYTES
        while not reader.done:
            changed.clear()
            if reader.lost_writers:
                reader.lost_writers = False
                self._tier.start(sourced)
                self._pulls.start(sourced)
            is_time_for_heartbeat = False
            if reader.has_ready:
                # Whatever is ready goes at once; a batch fills only while the last one is being sent.
                async with outlet.turn(heartbeat_s) as is_ours:
                    frames = reader.take(min(limit, outlet.max_batch_bytes)) if is_ours else []
                    if frames:  # else another stream of the share was quicker
                        await self._send(frames, context)
                outlet.sent(frames)
                limit = MAX_BATCH_BYTES
                is_time_for_heartbeat = not is_ours
            elif missing := reader.take_missing(self._store.clock()):
                self._metrics.fetched.labels("miss").inc(sum(block.layers.bit_count() for block in missing))
                await context.write(pb.FetchReply(missing=pb.FetchMissing(blocks=entries_to_messages(missing))))
            else:
                is_time_for_heartbeat = not await _wait(changed, reader.next_deadline(), heartbeat_s)
            if is_time_for_heartbeat:
                await context.write(pb.FetchReply())
        wake_others()  # they have nothing to wait for any more

    async def _send(self, frames: Sequence[Frame], context: Context) -> None:
        await context.write(frames)
        self._metrics.fetched.labels("hit").inc(len(frames))
        self._metrics.fetched_bytes.inc(sum(len(frame.payload) for frame in frames))

    def _wanted(self, layout: pb.Layout, blocks: Sequence[pb.BlockEntries]) -> tuple[KvLayout, list[BlockEntries]]:
        self._check_size(len(blocks))
        return layout_from_message(layout), entries_from_messages(blocks)

    def _check_size(self, num_blocks: int) -> None:
        if num_blocks > self._settings.max_blocks:
            raise BadRequest(f"a request names at most {self._settings.max_blocks} blocks, not {num_blocks}")

    @contextmanager
    def _publishing(self) -> Iterator[None]:
        if self._num_publishing >= self._settings.max_streams:
            raise Overloaded(f"the pool serves {self._settings.max_streams} writers already")
        self._num_publishing += 1
        try:
            yield
        finally:
            self._num_publishing -= 1


async def _wait(changed: asyncio.Event, deadline: float | None, patience_s: float | None) -> bool:
    """Wait until the reader may have something new or gives up on something; False when neither is within patience."""
    left_s = math.inf if deadline is None else max(0.0, deadline - time.monotonic())
    patience_s = math.inf if patience_s is None else patience_s
    limit_s = min(left_s, patience_s)
    try:
        async with asyncio.timeout(None if limit_s == math.inf else limit_s):
            await changed.wait()
    except TimeoutError:
        return left_s <= patience_s  # the deadline of some entries: the caller reports them
    return True
