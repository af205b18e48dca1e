"""The writers' side of the pool: a stream is a lease, what it asks for is granted, what it sends is checked."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio

from services.cachepool.metrics import WRITER, PoolMetrics
from services.cachepool.serving.asked import wanted
from services.cachepool.serving.intakes import LinkedIntake, MappedIntake
from services.cachepool.serving.offers import OfferedLanes
from services.cachepool.serving.tier import Tier
from services.cachepool.settings import PoolSettings
from services.cachepool.store.block import Writer
from services.cachepool.store.store import Store
from shared.errors import BadRequest, CorruptFrame, LeaseExpired, Overloaded
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame, verify, verify_all
from shared.lanes.settings import LaneName
from shared.lanes.sockets.batch import Received
from shared.log import get_logger
from shared.patience import Patience
from shared.pool.wire import Unreadable
from shared.proto import prfaas_pb2 as pb
from shared.rpc.convert import mask_to_bytes
from shared.telemetry.spans import current_span, named
from shared.tenant import Tenant

Context = grpc.aio.ServicerContext[Any, Any]
PublishMessage = pb.PublishRequest | list[Frame] | Unreadable

log = get_logger()

DEFAULT_LEASE_S = 10.0


@dataclass(slots=True)
class _Lease:
    """How long a writer may be silent, and what it has stored so far."""

    writer: Writer
    silence_s: float
    on_life: Callable[[], None] = lambda: None  # the writer was heard of
    on_failed: Callable[[], None] = lambda: None  # its link brings nothing more
    num_stored: int = 0
    intake: MappedIntake | LinkedIntake | None = None  # None: payloads come in messages only

    def close(self) -> None:
        """End the intake."""
        if self.intake is not None:
            self.intake.close()


class PublishHandler:
    """Serves writers, each for as long as its stream lives and is not silent for longer than its lease."""

    def __init__(
        self, settings: PoolSettings, store: Store, tier: Tier, lanes: OfferedLanes, metrics: PoolMetrics
    ) -> None:
        self._settings = settings
        self._store = store
        self._lanes = lanes
        self._tier = tier
        self._metrics = metrics
        self._num_writers = 0

    async def serve(self, messages: Any, context: Context) -> None:
        """Serve one Publish stream. Raises `LeaseExpired`, `CorruptFrame`, `BadRequest`, `Overloaded`."""
        with self._place():
            lease = _Lease(self._store.open_writer(), min(DEFAULT_LEASE_S, self._settings.max_lease_s))
            finished = False
            try:
                async with Patience(lease.silence_s) as silence:
                    lease.on_life = lambda: silence.renew(lease.silence_s)
                    lease.on_failed = silence.give_up
                    async for message in messages:
                        await self._on_message(message, lease, context)
                        del message  # or its memory would not be the next one's, warm as it is
                        lease.on_life()
                finished = True
            except TimeoutError:
                if isinstance(lease.intake, LinkedIntake) and lease.intake.error is not None:
                    raise lease.intake.error from None
                raise LeaseExpired(f"the writer was silent for {lease.silence_s:g} s") from None
            finally:
                lease.close()
                num_abandoned = self._store.abandon(lease.writer)
                self._metrics.lost.inc(num_abandoned)
                log.info("publish_served", num_entries=lease.num_stored, num_abandoned=num_abandoned, finished=finished)
                current_span().set(named(num_entries=lease.num_stored, num_abandoned=num_abandoned, finished=finished))
            await context.write(pb.PublishReply(stored=pb.PublishStored(num_entries=lease.num_stored)))

    async def _on_message(self, message: PublishMessage, lease: _Lease, context: Context) -> None:
        if isinstance(message, list):
            self._ingest(message, lease, "grpc")
            return
        if isinstance(message, Unreadable):
            self._metrics.corrupt.labels(WRITER).inc()
            raise message.error
        match message.WhichOneof("message"):
            case "open":
                await context.write(pb.PublishReply(grant=self._grant(message.open, lease)))
            case "renew":
                pass  # it has come: that is all it says
            case "room":
                await context.write(pb.PublishReply(room=self._mapped(lease).room(message.room)))
            case "placed":
                self._ingest(self._mapped(lease).placed(message.placed), lease, "shared_memory")
            case "sent":
                if not isinstance(lease.intake, LinkedIntake):
                    raise BadRequest("this stream has no link")
                await lease.intake.until(message.sent.num_entries)
            case _:
                raise BadRequest("an empty publish message")

    def _grant(self, message: pb.PublishOpen, lease: _Lease) -> pb.PublishGrant:
        layout, blocks = wanted(message.layout, message.blocks, self._settings.max_blocks)
        lease.writer.tenant = Tenant(message.tenant)
        if message.lease_ms:
            lease.silence_s = min(message.lease_ms / 1000, self._settings.max_lease_s)
        if message.HasField("lane") and lease.intake is None:
            lease.intake = self._lanes.intake(
                message.lane, lambda received: self._on_received(received, lease), lease.on_failed
            )
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

    def _mapped(self, lease: _Lease) -> MappedIntake:
        if not isinstance(lease.intake, MappedIntake):
            raise BadRequest("this stream has no room in shared memory")
        return lease.intake

    def _on_received(self, received: Received, lease: _Lease) -> None:
        """Store what came on the writer's link, verified there."""
        lease.on_life()
        self._metrics.refused.inc(sum(block.layers.bit_count() for block in received.lost))
        self._ingest(received.frames, lease, "socket")
        if received.corrupt:
            self._metrics.corrupt.labels(WRITER).inc(len(received.corrupt))
            raise CorruptFrame(f"{len(received.corrupt)} entries on the writer's link were not what it sealed")

    def _ingest(self, frames: Sequence[Frame], lease: _Lease, lane: LaneName) -> None:
        """Store a writer's frames. A corrupt one ends the stream: whatever follows cannot be trusted.

        Frames from messages are verified here. Those from a link were, and what lies in shared memory is not read here
        at all: its readers verify what they use. A payload that lies in a slot of this pool's memory stays where it is.
        Any other is copied right after its message was hashed, while it is in the processor's cache. Not in a thread:
        hashing takes less time than the copy, and less than it takes to hand it over.
        """
        intact = verify_all(frames) if lane == "grpc" else ()
        good = frames[: intact.index(False)] if False in intact else frames
        result = self._store.put_all(lease.writer, good)
        lease.num_stored += result.num_stored
        metrics = self._metrics
        # A full pool is no fault of the writer's: it goes on, its readers wait for another or compute.
        metrics.refused.inc(len(result.refused))
        metrics.published.inc(result.num_stored)
        metrics.published_bytes.inc(result.num_bytes)
        metrics.lane_received.labels(lane).inc(result.num_bytes)
        try:
            if result.error is not None:
                raise result.error
            if len(good) < len(frames):
                verify(frames[len(good)])  # says what is wrong with it
        except CorruptFrame:
            metrics.corrupt.labels(WRITER).inc()
            raise

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._num_writers >= self._settings.max_streams:
            raise Overloaded(f"the pool serves {self._settings.max_streams} writers already")
        self._num_writers += 1
        try:
            yield
        finally:
            self._num_writers -= 1
