"""The lanes that this pool offers, and what of them belongs to one stream."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc.aio

from services.cachepool.serving.ends import LaneEnds
from services.cachepool.serving.intakes import LinkedIntake, MappedIntake, RoomBudget
from services.cachepool.serving.outlets import LinkedOutlet, MappedOutlet, MessageOutlet
from shared.errors import LaneBroken
from shared.lanes.shared_memory.client import AttachedClient
from shared.lanes.sockets.batch import Received
from shared.lanes.sockets.link import SocketLink
from shared.proto import prfaas_pb2 as pb

Context = grpc.aio.ServicerContext[Any, Any]

ROOM_SHARE = 4
"""Writers have one part in so many of the budget at most as room that they have not written into yet."""
WRITER_ROOM_BYTES = 128 * 1024 * 1024


class OfferedLanes:
    """Finds the lane that a stream says it uses. Does not own the ends."""

    def __init__(self, ends: LaneEnds, budget_bytes: int) -> None:
        self._ends = ends
        self._room = RoomBudget(budget_bytes // ROOM_SHARE, WRITER_ROOM_BYTES)

    def reply(self) -> pb.LanesReply:
        """Return what is offered."""
        reply = pb.LanesReply()
        if self._ends.door is not None:
            reply.shared_memory.CopyFrom(self._ends.door.offer)
        if self._ends.server is not None:
            port, token, max_connections = self._ends.server.offer
            reply.socket.CopyFrom(pb.SocketOffer(port=port, token=token, max_connections=max_connections))
        return reply

    def outlet(
        self,
        use: pb.LaneUse,
        context: Context,
        permit: Callable[[], AbstractAsyncContextManager[bool]],
        *,
        is_background: bool,
    ) -> MessageOutlet | MappedOutlet | LinkedOutlet:
        """Return where the payloads of a Fetch stream go. Raises `LaneBroken` when there is no such lane (any more)."""
        match use.kind:
            case pb.LANE_KIND_SHARED_MEMORY:
                return MappedOutlet(context, self._ends.memory, self._client(use.attachment), use.stream)
            case pb.LANE_KIND_SOCKET:
                return LinkedOutlet(
                    context, self._link(use.attachment), use.stream, permit, is_background=is_background
                )
            case _:
                return MessageOutlet(context)

    def intake(
        self, use: pb.LaneUse, ingest: Callable[[Received], None], on_failed: Callable[[], None]
    ) -> MappedIntake | LinkedIntake | None:
        """Return where the payloads of a Publish stream come from; None: its messages. Raises `LaneBroken`."""
        match use.kind:
            case pb.LANE_KIND_SHARED_MEMORY:
                return MappedIntake(self._ends.memory, self._room, self._client(use.attachment), use.stream)
            case pb.LANE_KIND_SOCKET:
                return LinkedIntake(self._link(use.attachment), use.stream, ingest, on_failed)
            case _:
                return None

    def _client(self, number: int) -> AttachedClient:
        client = self._ends.door.attachment(number) if self._ends.door is not None else None
        if client is None:
            raise LaneBroken(f"no process is attached to this pool's memory as {number:x}")
        return client

    def _link(self, number: int) -> SocketLink:
        link = self._ends.server.link(number) if self._ends.server is not None else None
        if link is None:
            raise LaneBroken(f"no link {number:x} leads to this pool")
        return link
