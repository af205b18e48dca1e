"""The pool that an engine reads from and writes to: the nodes that a request's plan names, or the engine's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.pool.nodes import Pool
from shared.tenant import NO_TENANT, Tenant


@dataclass(frozen=True)
class PoolAccess:
    """An engine's way to its pool."""

    nodes: Sequence[str]  # addresses, at least one: the pool of requests whose plan names none
    pool_at: Callable[[Sequence[str], Tenant], Pool]

    def at(self, nodes: Sequence[str] = (), tenant: Tenant = NO_TENANT) -> Pool:
        """Return the pool of one request, whose plan names these nodes; none: the engine's own."""
        return self.pool_at(nodes or self.nodes, tenant)
