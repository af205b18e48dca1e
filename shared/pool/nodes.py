"""A datacenter's pool as one: the nodes that a plan names, blocks spread over them by rendezvous hashing."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Protocol

from shared.deadline import Deadline
from shared.errors import DeadlineExceeded, PrfaasError
from shared.ids import BlockKey
from shared.kv.entries import BlockEntries, Source, reindexed
from shared.kv.frame import Frame
from shared.kv.layout import KvLayout
from shared.kv.rendezvous import partition
from shared.log import get_logger
from shared.pool.client import Arrived, Grant, PoolClient
from shared.pool.merge import merged
from shared.pool.spread import SpreadPublication
from shared.rpc.client import Channels
from shared.tenant import NO_TENANT, Tenant

log = get_logger()


class Publishing(Protocol):
    """An open publication; see `shared.pool.client.Publication`."""

    async def open(self, layout: KvLayout, blocks: Sequence[BlockEntries]) -> Grant: ...

    async def room(self, keys: Sequence[BlockKey], num_bytes: int) -> list[memoryview | None]: ...

    async def send(self, frames: Sequence[Frame]) -> None: ...


class Pool(Protocol):
    """What an engine reads and writes; see `shared.pool.client.PoolClient`."""

    @property
    def address(self) -> str: ...

    def fetch(
        self,
        layout: KvLayout,
        blocks: Sequence[BlockEntries],
        sources: Iterable[Source],
        wait_s: float,
        deadline: Deadline,
    ) -> AsyncGenerator[Arrived, None]: ...

    def publish(self, deadline: Deadline) -> AbstractAsyncContextManager[Publishing]: ...


def pool_at(channels: Channels, nodes: Sequence[str], tenant: Tenant = NO_TENANT) -> Pool:
    """Return the pool whose blocks are spread over `nodes`, at least one, as `tenant` uses it."""
    return PoolClient(channels, nodes[0], tenant=tenant) if len(nodes) == 1 else SpreadPool(channels, nodes, tenant)


class SpreadPool:
    """Several pool nodes. Each block is asked for and written at the node that owns it, and nowhere else.

    A node that is down costs misses, never errors: what it should have is reported missing, what it should take is
    granted and dropped. Holds no state: channels belong to `Channels`.
    """

    def __init__(self, channels: Channels, nodes: Sequence[str], tenant: Tenant = NO_TENANT) -> None:
        self._channels = channels
        self._tenant = tenant
        self._nodes = tuple(nodes)

    @property
    def address(self) -> str:
        return ",".join(self._nodes)

    async def fetch(
        self,
        layout: KvLayout,
        blocks: Sequence[BlockEntries],
        sources: Iterable[Source],
        wait_s: float,
        deadline: Deadline,
    ) -> AsyncGenerator[Arrived, None]:
        """Yield what the nodes send, lowest layer first among what is here. Raises `DeadlineExceeded`, nothing else."""
        shares, sources = partition([block.key for block in blocks], self._nodes), list(sources)
        streams = [
            self._fetch_from(node, layout, [blocks[i] for i in share], reindexed(sources, share), wait_s, deadline)
            for node, share in shares.items()
        ]
        async with aclosing(merged(streams)) as arrivals:
            async for arrived in arrivals:
                yield arrived

    async def _fetch_from(
        self,
        node: str,
        layout: KvLayout,
        blocks: Sequence[BlockEntries],
        sources: Sequence[Source],
        wait_s: float,
        deadline: Deadline,
    ) -> AsyncGenerator[Arrived, None]:
        """Yield what one node sends; when it is lost, what it has not sent is missing."""
        left = {block.key: block.layers for block in blocks}
        client = PoolClient(self._channels, node, tenant=self._tenant)
        try:
            async with aclosing(client.fetch(layout, blocks, sources, wait_s, deadline)) as arrivals:
                async for arrived in arrivals:
                    for frame in arrived.frames:
                        left[frame.key] = left.get(frame.key, 0) & ~(1 << frame.layer)
                    for denied in arrived.missing:
                        left[denied.key] = left.get(denied.key, 0) & ~denied.layers
                    yield arrived
        except DeadlineExceeded:
            raise
        except PrfaasError as error:
            lost = [BlockEntries(key, layers) for key, layers in left.items() if layers]
            log.warning("pool_node_lost", node=node, num_blocks=len(lost), code=error.code, error=str(error))
            yield Arrived([], lost)

    @asynccontextmanager
    async def publish(self, deadline: Deadline) -> AsyncIterator[SpreadPublication]:
        """As `PoolClient.publish`, over all nodes that own something of what is opened."""
        clients = [PoolClient(self._channels, node, tenant=self._tenant) for node in self._nodes]
        publication = SpreadPublication(clients, deadline)
        try:
            yield publication
            await publication.close()
        finally:
            await publication.abandon()
