"""What routing sees of the cluster at one moment. Data only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from services.gateway.cluster.links import Links
from services.gateway.cluster.workers import NOBODY, Workers
from shared.bus.events import LinkLoad
from shared.ids import Datacenter, WorkerId


@dataclass(frozen=True, slots=True)
class PoolMember:
    dc: Datacenter
    address: str
    links: tuple[LinkLoad, ...] = ()  # from the datacenters that it pulls from, as it last reported
    suspects: tuple[str, ...] = ()  # addresses of pool nodes that it pulls nothing from, as it last reported
    tier_bytes_per_s: float = 0.0  # reads from its object tier; 0: not known


@dataclass(frozen=True, slots=True)
class RegistryView:
    """What the router sees: only members that are alive and serve exactly our model and KV layout.

    Its tables are the registry's own: a view is good until the registry changes.
    """

    dcs: Sequence[Datacenter] = ()  # by number
    decode: Workers = NOBODY
    prefill: Workers = NOBODY
    pools: Mapping[WorkerId, PoolMember] = field(default_factory=dict)
    links: Links = field(default_factory=lambda: Links.unknown(0))
    problems: tuple[str, ...] = ()  # why known workers are not among them, for the message of `NoWorker`

    def nodes(self, dc: Datacenter) -> tuple[str, ...]:
        """Return the addresses of a datacenter's pool nodes: what its blocks are spread over."""
        return tuple(sorted({pool.address for pool in self.pools.values() if pool.dc == dc}))

    def suspects(self, dc: Datacenter) -> frozenset[str]:
        """Return the addresses of other datacenters' nodes that some node of `dc` pulls nothing from.

        Suspicion is between two pools: for its own datacenter, and for third ones, a suspect is a node like any other.
        """
        suspected = (pool.suspects for pool in self.pools.values() if pool.dc == dc)
        return frozenset(chain.from_iterable(suspected)).difference(self.nodes(dc))


def no_decode_worker(members: RegistryView) -> str:
    """Return the sentence that tells a user why nothing can be served."""
    reasons = f" ({'; '.join(members.problems)})" if members.problems else ""
    return f"no decode worker is available{reasons}"
