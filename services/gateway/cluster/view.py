"""What routing sees of the cluster at one moment. Data only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from services.gateway.cluster.links import Links
from services.gateway.cluster.workers import NOBODY, Workers
from shared.bus.events import LinkLoad, LoadEvent, MembershipEvent
from shared.ids import Datacenter, WorkerId


@dataclass(frozen=True, slots=True)
class PoolMember:
    dc: Datacenter
    address: str
    links: tuple[LinkLoad, ...] = ()  # from the datacenters that it pulls from, as it last reported
    suspects: tuple[str, ...] = ()  # addresses of pool nodes that it pulls nothing from, as it last reported
    tier_bytes_per_s: float = 0.0  # reads from its object tier; 0: not known


class KnownProcess(NamedTuple):
    """A process that was announced, and what was heard of it last."""

    event: MembershipEvent
    load: LoadEvent | None  # None: it has reported nothing yet
    silent_s: float  # since it was heard of, as compared with the newest message of the bus
    problem: str | None  # why it is not used


class PoolMembers(dict[WorkerId, PoolMember]):
    """Pool nodes, not to be changed any more: what follows from all of them is worked out once for many requests."""

    @cached_property
    def nodes(self) -> Mapping[Datacenter, tuple[str, ...]]:
        """The addresses of each datacenter's nodes, in order."""
        found: dict[Datacenter, set[str]] = {}
        for pool in self.values():
            found.setdefault(pool.dc, set()).add(pool.address)
        return {dc: tuple(sorted(addresses)) for dc, addresses in found.items()}

    @cached_property
    def suspects(self) -> Mapping[Datacenter, frozenset[str]]:
        """The addresses of other datacenters' nodes that some node of a datacenter pulls nothing from."""
        found: dict[Datacenter, set[str]] = {}
        for pool in self.values():
            found.setdefault(pool.dc, set()).update(pool.suspects)
        return {dc: frozenset(addresses).difference(self.nodes[dc]) for dc, addresses in found.items()}

    @cached_property
    def tier_bytes_per_s(self) -> Mapping[Datacenter, float]:
        """What each datacenter's object tiers read together; 0: not known."""
        found: dict[Datacenter, float] = {}
        for pool in self.values():
            found[pool.dc] = found.get(pool.dc, 0.0) + pool.tier_bytes_per_s
        return found


@dataclass(frozen=True, slots=True)
class RegistryView:
    """What the router sees: only members that are alive and serve exactly our model and KV layout.

    Its tables are the registry's own: a view is good until the registry changes.
    """

    dcs: Sequence[Datacenter] = ()  # by number
    decode: Workers = NOBODY
    prefill: Workers = NOBODY
    pools: PoolMembers = field(default_factory=PoolMembers)
    links: Links = field(default_factory=lambda: Links.unknown(0))
    find_problems: Callable[[], tuple[str, ...]] = tuple  # good for as long as the view is

    @property
    def problems(self) -> tuple[str, ...]:
        """Why known workers are not among them, for the message of `NoWorker`: looked for when somebody asks."""
        return self.find_problems()

    def nodes(self, dc: Datacenter) -> tuple[str, ...]:
        """Return the addresses of a datacenter's pool nodes: what its blocks are spread over."""
        return self.pools.nodes.get(dc, ())

    def suspects(self, dc: Datacenter) -> frozenset[str]:
        """Return the addresses of other datacenters' nodes that some node of `dc` pulls nothing from.

        Suspicion is between two pools: for its own datacenter, and for third ones, a suspect is a node like any other.
        """
        return self.pools.suspects.get(dc, frozenset())


def no_decode_worker(members: RegistryView) -> str:
    """Return the sentence that tells a user why nothing can be served."""
    problems = members.problems
    reasons = f" ({'; '.join(problems)})" if problems else ""
    return f"no decode worker is available{reasons}"
