"""Prefixes that are kept in the pools of the home datacenter: pinned, and pinned again before pools can forget them."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.gateway.cluster.view import Cluster
from shared.errors import NotFound, NoWorker, Overloaded, PrfaasError
from shared.ids import BlockKey, Datacenter
from shared.kv.entries import BlockEntries
from shared.kv.rendezvous import partition
from shared.log import get_logger
from shared.proto import prfaas_pb2 as pb
from shared.proto.prfaas_pb2_grpc import CachePoolStub
from shared.rpc.client import rpc_errors
from shared.rpc.convert import entries_to_messages, layout_to_message
from shared.tenant import tenant_of

if TYPE_CHECKING:
    from shared.proto.prfaas_pb2_grpc import CachePoolAsyncStub  # exists in the stubs only

log = get_logger()

RENEW_EVERY_S = 10.0
"""How long a pool that has restarted, or a node that has joined, may be without the pins."""

PIN_TIMEOUT_S = 5.0
MAX_PREFIXES = 1000


@dataclass(frozen=True)
class Prefix:
    """What one id keeps."""

    id: str
    name: str
    keys: Sequence[BlockKey]
    num_tokens: int  # that the client has sent; the full blocks among them are kept
    salt: str
    created_at: float  # seconds since 1970
    ends_at: float


class Prefixes:
    """The prefixes that this gateway was asked to keep: others keep their own, a restart forgets them.

    Pools keep a pin for its whole time on their own; what is renewed here are pins of pools that restarted or joined.
    """

    def __init__(self, cluster: Cluster, dc: Datacenter, clock: Callable[[], float] = time.time) -> None:
        self._cluster = cluster
        self._dc = dc
        self._clock = clock
        self._prefixes: dict[str, Prefix] = {}

    def current(self) -> list[Prefix]:
        """Return what is kept now, the oldest first."""
        now = self._clock()
        self._prefixes = {name: prefix for name, prefix in self._prefixes.items() if prefix.ends_at > now}
        return list(self._prefixes.values())

    async def keep(self, keys: Sequence[BlockKey], num_tokens: int, salt: str, ttl_s: float, name: str) -> Prefix:
        """Pin the blocks wherever they belong, here or still to come. The same blocks again: their time starts anew.

        Raises `Overloaded` when a pool has pinned what it may, `NoWorker` without a pool, `WorkerLost`; then nothing
        new is pinned.
        """
        now, prefix_id = self._clock(), f"prefix-{keys[-1].hex()[:24]}"
        old = next((prefix for prefix in self.current() if prefix.id == prefix_id), None)
        if old is None and len(self._prefixes) >= MAX_PREFIXES:
            raise Overloaded(f"this gateway keeps {MAX_PREFIXES} prefixes already; delete one")
        prefix = Prefix(prefix_id, name, keys, num_tokens, salt, old.created_at if old else now, now + ttl_s)
        try:
            await self._pin(prefix)
        except PrfaasError:
            if old is None:
                await self._unpin(prefix_id)
            raise
        self._prefixes[prefix_id] = prefix
        return prefix

    async def drop(self, prefix_id: str) -> None:
        """Raises `NotFound`. A pool that cannot be reached lets go when the time is over."""
        if all(prefix.id != prefix_id for prefix in self.current()):
            raise NotFound(f"there is no prefix {prefix_id!r} here")
        del self._prefixes[prefix_id]
        await self._unpin(prefix_id)

    async def run(self) -> None:
        """Renew pins until cancelled."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            await self.renew()

    async def renew(self) -> None:
        for prefix in self.current():
            try:
                await self._pin(prefix)
            except PrfaasError as error:
                log.warning("prefix_not_renewed", prefix=prefix.id, code=error.code, error=str(error))
            if prefix.id not in self._prefixes:  # deleted meanwhile
                await self._unpin(prefix.id)

    async def _pin(self, prefix: Prefix) -> None:
        """Pin at each node what it owns and a resume behind the prefix needs."""
        layout, num_blocks = self._cluster.model.layout, len(prefix.keys)
        nodes = self._cluster.registry.view().nodes(self._dc)
        if not nodes:
            raise NoWorker(f"no cache pool is known in {self._dc}")
        ttl_s = max(1, math.ceil(prefix.ends_at - self._clock()))
        for node, positions in partition(prefix.keys, nodes).items():
            blocks = [BlockEntries(prefix.keys[i], layout.needed_layers(i, num_blocks)) for i in positions]
            request = pb.PinRequest(
                pin=prefix.id,
                layout=layout_to_message(layout),
                blocks=entries_to_messages(block for block in blocks if block.layers),
                ttl_s=ttl_s,
                tenant=tenant_of(prefix.salt),
            )
            if request.blocks:
                with rpc_errors(node):
                    await self._stub(node).Pin(request, timeout=PIN_TIMEOUT_S)

    async def _unpin(self, prefix_id: str) -> None:
        for node in self._cluster.registry.view().nodes(self._dc):
            try:
                with rpc_errors(node):
                    await self._stub(node).Unpin(pb.UnpinRequest(pin=prefix_id), timeout=PIN_TIMEOUT_S)
            except PrfaasError as error:
                log.warning("prefix_not_unpinned", prefix=prefix_id, node=node, code=error.code, error=str(error))

    def _stub(self, node: str) -> "CachePoolAsyncStub":
        return CachePoolStub(self._cluster.channels.get(node))
