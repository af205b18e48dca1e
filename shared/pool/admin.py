"""What is asked of single pool nodes beside fetching and publishing: pins, and snapshots of what they hold."""

from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from shared.bus.events import StoredBlocks, stored_from_messages
from shared.ids import Epoch, WorkerId
from shared.kv.entries import BlockEntries
from shared.kv.layout import KvLayout
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import CachePoolStub
from shared.rpc.client import Channels, rpc_errors
from shared.rpc.convert import entries_to_messages, layout_to_message
from shared.tenant import Tenant

if TYPE_CHECKING:
    from shared.proto.prfaas_pb2_grpc import CachePoolAsyncStub  # exists in the stubs only

PIN_TIMEOUT_S = 5.0
SNAPSHOT_TIMEOUT_S = 20.0


class SnapshotPart(NamedTuple):
    """Some of the blocks that a pool node held at `sequence` of `epoch`."""

    epoch: Epoch
    sequence: int
    stored: Sequence[StoredBlocks]


class PoolAdmin:
    """Calls pool nodes by their addresses; owns nothing, channels belong to `Channels`."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def pin(
        self, node: str, name: str, layout: KvLayout, blocks: Iterable[BlockEntries], ttl_s: int, tenant: Tenant
    ) -> None:
        """Keep entries from eviction for `ttl_s` seconds, those that are still to come too.

        Raises `Overloaded` when the node has pinned what it may, `WorkerLost`.
        """
        request = pb.PinRequest(
            pin=name,
            layout=layout_to_message(layout),
            blocks=entries_to_messages(blocks),
            ttl_s=ttl_s,
            tenant=tenant,
        )
        with rpc_errors(node):
            await self._stub(node).Pin(request, timeout=PIN_TIMEOUT_S)

    async def unpin(self, node: str, name: str) -> None:
        """Let go of a pin; nothing happens when the node has none of that name. Raises `WorkerLost`."""
        with rpc_errors(node):
            await self._stub(node).Unpin(pb.UnpinRequest(pin=name), timeout=PIN_TIMEOUT_S)

    async def snapshot(self, holder: WorkerId, node: str) -> AsyncGenerator[SnapshotPart, None]:
        """Yield all that a node holds, some thousand blocks at a time. Raises `WorkerLost`, `BadEvent`."""
        call = self._stub(node).Snapshot(pb.SnapshotRequest(), timeout=SNAPSHOT_TIMEOUT_S)
        try:
            with rpc_errors(holder):
                async for reply in call:
                    yield SnapshotPart(Epoch(reply.epoch), reply.sequence, stored_from_messages(reply.stored))
        finally:
            call.cancel()

    def _stub(self, node: str) -> "CachePoolAsyncStub":
        return CachePoolStub(self._channels.get(node))
