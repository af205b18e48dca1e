"""What each datacenter's pool can be counted on for: a block counts where readers will look for it. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from services.gateway.cluster.view import RegistryView
from services.gateway.placement.held import HeldPrefix
from shared.ids import BlockKey, Datacenter, WorkerId
from shared.kv.layout import KvLayout
from shared.kv.rendezvous import KeyHeads, heads_of, owned
from shared.kv.resume import GroupMasks, longest_resume, no_groups


class Credit(NamedTuple):
    """What the nodes of one datacenter hold of a request's prefix, each of the blocks that are its own."""

    groups: GroupMasks
    longest: int  # blocks after which a request could resume from this datacenter alone
    on_tier: GroupMasks | None = None  # of `groups`, what has to be read from the object tier; None: nothing


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
    by_dc: dict[Datacenter, dict[str, HeldPrefix]] = {}
    for holder, held_by_node in held.items():
        pool = members.pools.get(holder)
        if pool is not None and pool.address not in suspects:
            by_dc.setdefault(pool.dc, {})[pool.address] = held_by_node
    heads = heads_of(keys)
    return {dc: _credit(heads, of_dc, members.nodes(dc), layout) for dc, of_dc in by_dc.items()}


def _credit(heads: KeyHeads, held: Mapping[str, HeldPrefix], nodes: Sequence[str], layout: KvLayout) -> Credit:
    """Return what these nodes hold together, by address; `nodes` are all that blocks are spread over."""
    masks = no_groups(layout, 2, len(heads))
    groups, in_memory = masks
    end = max(_end(one.groups) for one in held.values())
    if not end:
        return Credit(groups, 0)
    own_of = owned(heads[:end], nodes).astype(masks.dtype)
    for address, one in held.items():
        masks[:, :end] |= one.masks[:, :end] * own_of[nodes.index(address)]
    on_tier = groups & ~in_memory
    return Credit(groups, int(longest_resume(layout, groups)), on_tier if on_tier.any() else None)


def _end(groups: GroupMasks) -> int:
    """Return behind which block nothing is held."""
    return -(-len(groups.tobytes().rstrip(b"\0")) // groups.itemsize)
