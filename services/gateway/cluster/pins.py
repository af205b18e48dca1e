"""Prefixes that are kept in the pools of the home datacenter: pinned, and pinned again before pools can forget them."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.gateway.cluster.registry import Registry
from shared.errors import NotFound, NoWorker, Overloaded, PrfaasError
from shared.ids import BlockKey, Datacenter
from shared.kv.entries import BlockEntries
from shared.kv.layout import KvLayout
from shared.kv.rendezvous import partition
from shared.log import get_logger
from shared.pool.admin import PoolAdmin
from shared.tenant import Tenant

log = get_logger()

RENEW_EVERY_S = 10.0
"""How long a pool that has restarted, or a node that has joined, may be without the pins."""

MAX_PREFIXES = 1000


@dataclass(frozen=True)
class Prefix:
    """What one id keeps."""

    id: str
    name: str
    keys: Sequence[BlockKey]
    num_tokens: int  # that the client has sent; the full blocks among them are kept
    tenant: Tenant  # on whose account they are kept
    created_at: float  # seconds since 1970
    ends_at: float


class Prefixes:
    """The prefixes that this gateway was asked to keep: others keep their own, a restart forgets them.

    Pools keep a pin for its whole time on their own; what is renewed here are pins of pools that restarted or joined.
    """

    def __init__(
        self,
        layout: KvLayout,
        registry: Registry,
        pools: PoolAdmin,
        dc: Datacenter,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._layout = layout
        self._registry = registry
        self._pools = pools
        self._dc = dc
        self._clock = clock
        self._prefixes: dict[str, Prefix] = {}

    def current(self) -> list[Prefix]:
        """Return what is kept now, the oldest first."""
        now = self._clock()
        self._prefixes = {name: prefix for name, prefix in self._prefixes.items() if prefix.ends_at > now}
        return list(self._prefixes.values())

    async def keep(self, keys: Sequence[BlockKey], num_tokens: int, tenant: Tenant, ttl_s: float, name: str) -> Prefix:
        """Pin the blocks wherever they belong, here or still to come. The same blocks again: their time starts anew.

        Raises `Overloaded` when a pool has pinned what it may, `NoWorker` without a pool, `WorkerLost`; then nothing
        new is pinned.
        """
        now, prefix_id = self._clock(), f"prefix-{keys[-1].hex()[:24]}"
        old = next((prefix for prefix in self.current() if prefix.id == prefix_id), None)
        if old is None and len(self._prefixes) >= MAX_PREFIXES:
            raise Overloaded(f"this gateway keeps {MAX_PREFIXES} prefixes already; delete one")
        prefix = Prefix(prefix_id, name, keys, num_tokens, tenant, old.created_at if old else now, now + ttl_s)
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
        num_blocks = len(prefix.keys)
        nodes = self._registry.view().nodes(self._dc)
        if not nodes:
            raise NoWorker(f"no cache pool is known in {self._dc}")
        ttl_s = max(1, math.ceil(prefix.ends_at - self._clock()))
        for node, positions in partition(prefix.keys, nodes).items():
            needed = [BlockEntries(prefix.keys[i], self._layout.needed_layers(i, num_blocks)) for i in positions]
            blocks = [block for block in needed if block.layers]
            if blocks:
                await self._pools.pin(node, prefix.id, self._layout, blocks, ttl_s, prefix.tenant)

    async def _unpin(self, prefix_id: str) -> None:
        for node in self._registry.view().nodes(self._dc):
            try:
                await self._pools.unpin(node, prefix_id)
            except PrfaasError as error:
                log.warning("prefix_not_unpinned", prefix=prefix_id, node=node, code=error.code, error=str(error))
