"""Client of a cache pool: fetch entries in layer order, publish entries under a writer's lease."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import NamedTuple

from shared.deadline import Deadline
from shared.errors import LaneBroken
from shared.ids import BlockKey
from shared.kv.entries import BlockEntries, Source
from shared.kv.layout import KvLayout
from shared.log import get_logger
from shared.pool.calls import fetch_call, lookup_call, probe_call, publish_call
from shared.pool.lanes.chosen import PoolLanes
from shared.pool.lanes.lane import Arrived, FetchLane, Lane, PublishLane
from shared.pool.lanes.messages import IN_MESSAGES
from shared.pool.outstanding import Outstanding
from shared.pool.publication import Publication
from shared.proto import prfaas_pb2 as pb
from shared.rpc.client import Channels, rpc_errors
from shared.rpc.convert import entries_to_messages, layout_to_message, lookup_from_message, sources_to_messages
from shared.rpc.options import SHARED_CHANNEL, ChannelId
from shared.tenant import NO_TENANT, Tenant

log = get_logger()

SHARE_ID_BYTES = 16


class Crossing(NamedTuple):
    """How another pool asks; the default is an engine at home."""

    dc: str = ""  # the asking pool's, when it is another datacenter
    is_background: bool = False  # any foreground stream to that datacenter goes first
    share: bytes = b""  # streams that name the same one divide among them what is sent
    heartbeat_s: float = 0.0  # a message without anything comes when there is nothing for so long; 0: never


AT_HOME = Crossing()


class PoolClient:
    """One cache pool as its clients see it. Holds no state: channels belong to `Channels`."""

    def __init__(
        self,
        channels: Channels,
        address: str,
        channel_id: ChannelId = SHARED_CHANNEL,
        *,
        tenant: Tenant = NO_TENANT,
        lanes: PoolLanes | None = None,
    ) -> None:
        """`tenant` pays for what is stored and pulled. Without `lanes` payloads travel in messages."""
        self._tenant = tenant
        self._lanes = lanes
        self._channels = channels
        self.address = address
        self._channel_id = channel_id

    async def fetch(
        self,
        layout: KvLayout,
        blocks: Sequence[BlockEntries],
        sources: Iterable[Source],
        wait_s: float,
        deadline: Deadline,
        crossing: Crossing = AT_HOME,
        *,
        doubted: bool = False,
    ) -> AsyncGenerator[Arrived, None]:
        """Yield entries as they become available, lowest layer first, until all came or were reported missing.

        A payload is a view: the caller's until it closes the iterator, which ends the reader's lease. What a lane does
        not bring, for it breaks or finds no memory here, comes in messages. `doubted`: these entries have come corrupt
        before, and the pool checks its own. Raises `WorkerLost`, `DeadlineExceeded`, `CorruptFrame` (a frame that
        cannot be a frame of ours at all).
        """
        request = pb.FetchRequest(
            layout=layout_to_message(layout),
            blocks=entries_to_messages(blocks),
            sources=sources_to_messages(sources),
            wait_ms=int(wait_s * 1000),
            tenant=self._tenant,
            dc=crossing.dc,
            share=crossing.share,
            heartbeat_ms=int(crossing.heartbeat_s * 1000),
            urgency=pb.URGENCY_BACKGROUND if crossing.is_background else pb.URGENCY_FOREGROUND,
            doubted=doubted,
        )
        lane: Lane = IN_MESSAGES
        if self._lanes is not None and not crossing.share:
            lane = await self._lanes.to(self.address)
        if lane is not IN_MESSAGES:
            left = Outstanding(blocks)
            try:
                async with aclosing(self._fetch_over(lane.fetching(), request, deadline)) as arrivals:
                    async for arrived in arrivals:
                        left.remove(arrived)
                        yield arrived
                        del arrived  # the caller's alone: this waits for the next one
            except LaneBroken as error:
                log.warning("lane_broken", pool=self.address, lane=lane.name, error=str(error))
                if self._lanes is not None:
                    self._lanes.broke(self.address, lane)
            if left.is_empty:
                return
            del request.blocks[:]
            request.blocks.extend(entries_to_messages(left.blocks()))
        async with aclosing(self._fetch_over(IN_MESSAGES, request, deadline)) as arrivals:
            async for arrived in arrivals:
                yield arrived
                del arrived

    async def probe(self, num_bytes: int, dc: str, deadline: Deadline) -> AsyncGenerator[Arrived, None]:
        """Yield so many bytes of entries that mean nothing, in messages; fewer when others have more need of the link.

        `dc` is the asking pool's. No bytes are a question that is answered at once. Raises `WorkerLost`,
        `DeadlineExceeded`, `BadRequest` (too many bytes), `Overloaded`.
        """
        request = pb.ProbeRequest(num_bytes=num_bytes, dc=dc)
        call = probe_call(self._channels.get(self.address, self._channel_id))(request, timeout=deadline.remaining())
        try:
            with rpc_errors(self.address):
                async with aclosing(IN_MESSAGES.arrivals(aiter(call))) as arrivals:
                    async for arrived in arrivals:
                        yield arrived
        finally:
            call.cancel()

    async def _fetch_over(
        self, lane: FetchLane, request: pb.FetchRequest, deadline: Deadline
    ) -> AsyncGenerator[Arrived, None]:
        if lane.use is None:
            request.ClearField("lane")
        else:
            request.lane.CopyFrom(lane.use)
        call = fetch_call(self._channels.get(self.address, self._channel_id))(request, timeout=deadline.remaining())
        try:
            with rpc_errors(self.address):
                async with aclosing(lane.arrivals(aiter(call))) as arrivals:
                    async for arrived in arrivals:
                        yield arrived
                        del arrived  # as in `fetch`
        finally:
            call.cancel()
            lane.end()

    async def lookup(self, keys: Sequence[BlockKey], deadline: Deadline) -> list[int]:
        """Return the layers of each block that the pool has in memory, as bitmasks."""
        lookup = lookup_call(self._channels.get(self.address))
        with rpc_errors(self.address):
            reply = await lookup(keys, timeout=deadline.remaining())
        return lookup_from_message(reply, len(keys))

    async def writing(self) -> PublishLane:
        """Return how payloads of a publication go. Whoever asks ends it, when nothing is written into its room."""
        return IN_MESSAGES if self._lanes is None else (await self._lanes.to(self.address)).publishing()

    @asynccontextmanager
    async def publish(self, deadline: Deadline) -> AsyncIterator[Publication]:
        """Open a Publish stream. A clean exit waits until everything is stored, an exception gives up the lease.

        When the block ends nothing is written any more into the room that the publication gave.
        """
        writing = await self.writing()
        try:
            async with self.publish_over(writing, deadline) as publication:
                yield publication
        finally:
            writing.end()

    @asynccontextmanager
    async def publish_over(self, writing: PublishLane, deadline: Deadline) -> AsyncIterator[Publication]:
        """As `publish`, for who outlives the stream: the caller ends `writing`."""
        call = publish_call(self._channels.get(self.address))(timeout=deadline.remaining())
        publication = Publication(call, self.address, self._tenant, writing)
        renewal = asyncio.create_task(publication.renew_forever(), name="publication renewal")
        try:
            yield publication
            await publication.close()
        finally:
            publication.cancel()
            renewal.cancel()
            await asyncio.wait({renewal})
            if not renewal.cancelled():
                renewal.exception()  # a broken stream has failed the body too: say it once
