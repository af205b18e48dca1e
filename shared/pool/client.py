"""Client of a cache pool: fetch entries in layer order, publish entries under a writer's lease."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from shared.deadline import Deadline
from shared.errors import WorkerLost
from shared.ids import BlockKey
from shared.kv.entries import BlockEntries, Source
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout
from shared.pool.calls import fetch_call, lookup_call, publish_call
from shared.pool.wire import Unreadable
from shared.proto import prfaas_pb2 as pb
from shared.rpc.client import Channels, rpc_errors
from shared.rpc.convert import (
    entries_from_messages,
    entries_to_messages,
    layout_to_message,
    lookup_from_message,
    masks_from_bytes,
    sources_to_messages,
)
from shared.rpc.options import SHARED_CHANNEL, ChannelId
from shared.tenant import NO_TENANT, Tenant

LEASE_S = 15.0
SHARE_ID_BYTES = 16


class Arrived(NamedTuple):
    """What one message of a fetch brought."""

    frames: list[Frame]  # not verified
    missing: list[BlockEntries]  # will not come on this stream


class Crossing(NamedTuple):
    """How another pool asks; the default is an engine at home."""

    dc: str = ""  # the asking pool's, when it is another datacenter
    is_background: bool = False  # any foreground stream to that datacenter goes first
    share: bytes = b""  # streams that name the same one divide among them what is sent
    heartbeat_s: float = 0.0  # a message without anything comes when there is nothing for so long; 0: never


AT_HOME = Crossing()


class Grant(NamedTuple):
    """The pool's answer to a writer, parallel to the blocks that were asked for; bitmasks of layers."""

    granted: list[int]  # ours to write
    present: list[int]  # stored already; the rest is being written by somebody else


class Publication:
    """An open Publish stream: the lease on every entry granted on it. `PoolClient.publish` opens and closes it."""

    def __init__(self, call: Any, peer: str, tenant: Tenant = NO_TENANT) -> None:
        """`call` is an open `Publish` made by `publish_call`; `peer` names the pool in errors."""
        self._tenant = tenant
        self._call = call
        self._peer = peer
        self._writing = asyncio.Lock()  # grpc.aio allows one write at a time

    async def open(self, layout: KvLayout, blocks: Sequence[BlockEntries]) -> Grant:
        """Ask for entries and return what was granted. May be called again for more."""
        message = pb.PublishOpen(
            layout=layout_to_message(layout),
            blocks=entries_to_messages(blocks),
            lease_ms=int(LEASE_S * 1000),
            tenant=self._tenant,
        )
        with rpc_errors(self._peer):
            await self._write(pb.PublishRequest(open=message))
            grant = (await self._read()).grant
        return Grant(masks_from_bytes(grant.granted), masks_from_bytes(grant.present))

    async def send(self, frames: Sequence[Frame]) -> None:
        """Write frames of granted entries in one message, at most about `MAX_BATCH_BYTES` of them.

        Waits while the pool's flow-control window is full.
        """
        with rpc_errors(self._peer):
            await self._write(frames)

    async def renew_forever(self) -> None:
        """Keep the lease while there is nothing to send, for as long as the stream lives."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            with rpc_errors(self._peer):
                await self._write(pb.PublishRequest(renew=pb.PublishRenew()))

    async def close(self) -> None:
        """Say that nothing more comes and wait until the pool has stored all of it."""
        with rpc_errors(self._peer):
            async with self._writing:
                await self._call.done_writing()
            await self._read()

    def cancel(self) -> None:
        self._call.cancel()

    async def _write(self, message: "pb.PublishRequest | Sequence[Frame]") -> None:
        async with self._writing:
            await self._call.write(message)

    async def _read(self) -> pb.PublishReply:
        reply = await self._call.read()
        if not isinstance(reply, pb.PublishReply):  # grpc.aio.EOF: a failed status would have raised
            raise WorkerLost(f"{self._peer} ended a publication early")
        return reply


class PoolClient:
    """One cache pool as its clients see it. Holds no state: channels belong to `Channels`."""

    def __init__(
        self, channels: Channels, address: str, channel_id: ChannelId = SHARED_CHANNEL, *, tenant: Tenant = NO_TENANT
    ) -> None:
        """Fetched payloads are views that keep their message alive. `tenant` pays for what is stored and pulled."""
        self._tenant = tenant
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
    ) -> AsyncGenerator[Arrived, None]:
        """Yield entries as they become available, lowest layer first, until all came or were reported missing.

        Closing the iterator ends the readers' lease. Raises `WorkerLost`, `DeadlineExceeded`, `CorruptFrame` (a frame
        that cannot be a frame of ours at all).
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
        )
        call = fetch_call(self._channels.get(self.address, self._channel_id))(request, timeout=deadline.remaining())
        try:
            with rpc_errors(self.address):
                async for reply in call:
                    yield _arrived(reply)
        finally:
            call.cancel()

    async def lookup(self, keys: Sequence[BlockKey], deadline: Deadline) -> list[int]:
        """Return the layers of each block that the pool has in memory, as bitmasks."""
        lookup = lookup_call(self._channels.get(self.address))
        with rpc_errors(self.address):
            reply = await lookup(keys, timeout=deadline.remaining())
        return lookup_from_message(reply, len(keys))

    @asynccontextmanager
    async def publish(self, deadline: Deadline) -> AsyncIterator[Publication]:
        """Open a Publish stream. A clean exit waits until everything is stored, an exception gives up the lease."""
        call = publish_call(self._channels.get(self.address))(timeout=deadline.remaining())
        publication = Publication(call, self.address, self._tenant)
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


def _arrived(reply: "pb.FetchReply | list[Frame] | Unreadable") -> Arrived:
    match reply:
        case list():
            return Arrived(reply, [])
        case Unreadable():
            raise reply.error
        case _:
            return Arrived([], entries_from_messages(reply.missing.blocks))
