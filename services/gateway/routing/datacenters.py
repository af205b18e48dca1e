"""What each datacenter's pool can be counted on for: a block counts where readers will look for it. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.gateway.cluster.registry import RegistryView
from services.gateway.placement.held import HeldPrefix
from shared.ids import BlockKey, Datacenter, WorkerId
from shared.kv.layout import KvLayout
from shared.kv.rendezvous import owner_indices
from shared.kv.resume import GroupMasks, longest_resume, no_groups


class Credit(NamedTuple):
    """What the nodes of one datacenter hold of a request's prefix, each of the blocks that are its own."""

    groups: GroupMasks
    longest: int  # blocks after which a request could resume from this datacenter alone
    in_memory: GroupMasks | None = None  # of `groups`, what needs no read from the object tier; None: all


def credits_by_dc(
    keys: Sequence[BlockKey],
    held: Mapping[WorkerId, HeldPrefix],
    members: RegistryView,
    layout: KvLayout,
    suspects: frozenset[str] = frozenset(),
) -> dict[Datacenter, Credit]:
    """Return the credit of every datacenter with a live node whose placements can be trusted.

    What lies on a node that rendezvous hashing over the live nodes does not name counts for nothing: a node that has
    joined or left made it another's, and nobody will ask for it there. Nor do readers ask their suspects.
    """
    combined: dict[Datacenter, GroupMasks] = {}
    in_memory: dict[Datacenter, GroupMasks] = {}
    owners: dict[Datacenter, NDArray[np.intp]] = {}
    for holder, held_by_node in held.items():
        pool = members.pools.get(holder)
        if pool is None or pool.address in suspects:
            continue
        nodes = members.nodes(pool.dc)
        if pool.dc not in combined:
            combined[pool.dc], in_memory[pool.dc] = no_groups(layout, 2, len(keys))
            owners[pool.dc] = owner_indices(keys, nodes)
        is_own = owners[pool.dc] == nodes.index(pool.address)
        nothing = held_by_node.groups.dtype.type(0)
        combined[pool.dc] |= np.where(is_own, held_by_node.groups, nothing)
        in_memory[pool.dc] |= np.where(is_own, held_by_node.memory_groups, nothing)
    return {dc: Credit(groups, int(longest_resume(layout, groups)), in_memory[dc]) for dc, groups in combined.items()}
