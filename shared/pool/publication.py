"""An open Publish stream of one pool node: the lease on every entry granted on it."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from shared.errors import WorkerLost
from shared.ids import BlockKey
from shared.kv.entries import BlockEntries
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout
from shared.pool.lanes.lane import PublishLane
from shared.pool.lanes.messages import IN_MESSAGES
from shared.proto import prfaas_pb2 as pb
from shared.rpc.client import rpc_errors
from shared.rpc.convert import entries_to_messages, layout_to_message, masks_from_bytes
from shared.tenant import NO_TENANT, Tenant

LEASE_S = 15.0


class Grant(NamedTuple):
    """The pool's answer to a writer, parallel to the blocks that were asked for; bitmasks of layers."""

    granted: list[int]  # ours to write
    present: list[int]  # stored already; the rest is being written by somebody else


class Publication:
    """An open Publish stream. `PoolClient.publish` opens and closes it."""

    def __init__(self, call: Any, peer: str, tenant: Tenant = NO_TENANT, lane: PublishLane = IN_MESSAGES) -> None:
        """`call` is an open `Publish` made by `publish_call`; `peer` names the pool in errors."""
        self._tenant = tenant
        self._call = call
        self._peer = peer
        self._lane = lane
        self._writing = asyncio.Lock()  # grpc.aio allows one write at a time
        self._num_to_come = 0  # entries that were granted and not sent
        self._asking = asyncio.Lock()  # answers come in the order of the questions

    async def open(self, layout: KvLayout, blocks: Sequence[BlockEntries]) -> Grant:
        """Ask for entries and return what was granted. May be called again for more."""
        message = pb.PublishOpen(
            layout=layout_to_message(layout),
            blocks=entries_to_messages(blocks),
            lease_ms=int(LEASE_S * 1000),
            tenant=self._tenant,
            lane=self._lane.use,
        )
        with rpc_errors(self._peer):
            grant = (await self._ask(pb.PublishRequest(open=message))).grant
        granted = masks_from_bytes(grant.granted)
        self._num_to_come += sum(map(int.bit_count, granted))
        return Grant(granted, masks_from_bytes(grant.present))

    async def room(self, keys: Sequence[BlockKey], num_bytes: int) -> list[memoryview | None]:
        """Return for each block a slot of exactly `num_bytes` in the pool's own memory, to write an entry into.

        None: this entry has to be sent with bytes of its own. `send` places what was written into a slot.
        """
        with rpc_errors(self._peer):
            slots = await self._lane.room(self._ask_room, len(keys), num_bytes, self._num_to_come)
        return [*slots, *[None] * (len(keys) - len(slots))]

    async def send(self, frames: Sequence[Frame]) -> None:
        """Hand over frames of granted entries, in messages of at most about `MAX_BATCH_BYTES` where they travel in any.

        Waits while the pool takes no more.
        """
        self._num_to_come -= len(frames)
        with rpc_errors(self._peer):
            await self._lane.send(frames, self._write)

    async def renew_forever(self) -> None:
        """Keep the lease while there is nothing to send, for as long as the stream lives."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            with rpc_errors(self._peer):
                await self._write(pb.PublishRequest(renew=pb.PublishRenew()))

    async def close(self) -> None:
        """Say that nothing more comes and wait until the pool has stored all of it."""
        with rpc_errors(self._peer):
            await self._lane.finish(self._write)
            async with self._writing:
                await self._call.done_writing()
            await self._read()

    def cancel(self) -> None:
        self._call.cancel()

    async def _ask_room(self, request: pb.RoomRequest) -> pb.Room:
        return (await self._ask(pb.PublishRequest(room=request))).room

    async def _ask(self, message: pb.PublishRequest) -> pb.PublishReply:
        async with self._asking:
            await self._write(message)
            return await self._read()

    async def _write(self, message: "pb.PublishRequest | Sequence[Frame]") -> None:
        async with self._writing:
            await self._call.write(message)

    async def _read(self) -> pb.PublishReply:
        reply = await self._call.read()
        if not isinstance(reply, pb.PublishReply):  # grpc.aio.EOF: a failed status would have raised
            raise WorkerLost(f"{self._peer} ended a publication early")
        return reply
