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
from shared.pool.client import PoolClient
from shared.pool.lanes.chosen import PoolLanes
from shared.pool.lanes.lane import Arrived
from shared.pool.merge import merged
from shared.pool.outstanding import Outstanding
from shared.pool.publication import Grant
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
        *,
        doubted: bool = False,
    ) -> AsyncGenerator[Arrived, None]: ...

    def publish(self, deadline: Deadline) -> AbstractAsyncContextManager[Publishing]: ...


def pool_at(
    channels: Channels,
    nodes: Sequence[str],
    tenant: Tenant = NO_TENANT,
    lanes: PoolLanes | None = None,
    dc: str = "",
) -> Pool:
    """Return the pool whose blocks are spread over `nodes`, at least one, as `tenant` uses it.

    `dc`: where all of them should be, if that is known.
    """
    for node in nodes:
        channels.expect(node, dc)
    clients = [PoolClient(channels, node, tenant=tenant, lanes=lanes) for node in nodes]
    return clients[0] if len(clients) == 1 else SpreadPool(clients)


class SpreadPool:
    """Several pool nodes. Each block is asked for and written at the node that owns it, and nowhere else.

    A node that is down costs misses, never errors: what it should have is reported missing, what it should take is
    granted and dropped.
    """

    def __init__(self, clients: Sequence[PoolClient]) -> None:
        """Each client is of a node with another address."""
        self._clients = {client.address: client for client in clients}
        self._nodes = tuple(self._clients)

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
        *,
        doubted: bool = False,
    ) -> AsyncGenerator[Arrived, None]:
        """Yield what the nodes send, lowest layer first among what is here. Raises `DeadlineExceeded`, nothing else."""
        shares, sources = partition([block.key for block in blocks], self._nodes), list(sources)
        streams = [
            self._fetch_from(
                self._clients[node],
                layout,
                [blocks[i] for i in share],
                reindexed(sources, share),
                wait_s,
                deadline,
                doubted,
            )
            for node, share in shares.items()
        ]
        async with aclosing(merged(streams)) as arrivals:
            async for arrived in arrivals:
                yield arrived
                del arrived  # the caller's alone: this waits for the next one

    async def _fetch_from(
        self,
        client: PoolClient,
        layout: KvLayout,
        blocks: Sequence[BlockEntries],
        sources: Sequence[Source],
        wait_s: float,
        deadline: Deadline,
        doubted: bool,
    ) -> AsyncGenerator[Arrived, None]:
        """Yield what one node sends; when it is lost, what it has not sent is missing."""
        left = Outstanding(blocks)
        try:
            async with aclosing(client.fetch(layout, blocks, sources, wait_s, deadline, doubted=doubted)) as arrivals:
                async for arrived in arrivals:
                    left.remove(arrived)
                    yield arrived
                    del arrived
        except DeadlineExceeded:
            raise
        except PrfaasError as error:
            lost = left.lacking()
            log.warning("pool_node_lost", node=client.address, num_blocks=len(lost), code=error.code, error=str(error))
            yield Arrived([], lost)

    @asynccontextmanager
    async def publish(self, deadline: Deadline) -> AsyncIterator[SpreadPublication]:
        """As `PoolClient.publish`, over all nodes that own something of what is opened."""
        publication = SpreadPublication(list(self._clients.values()), deadline)
        try:
            yield publication
            await publication.close()
        finally:
            await publication.abandon()
