"""What each datacenter's pool can be counted on for: a block counts where readers will look for it. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.gateway.index import Held
from services.gateway.registry import RegistryView
from shared.ids import BlockKey, Datacenter, WorkerId
from shared.kv.layout import KvLayout
from shared.kv.rendezvous import owner_indices

GroupMasks = NDArray[np.uint32]
"""Of each block of a prefix, the layer groups that are held (or wanted) wholly: bit g for group g."""


class Credit(NamedTuple):
    """What the nodes of one datacenter hold of a request's prefix, each of the blocks that are its own."""

    groups: GroupMasks
    longest: int  # blocks after which a request could resume from this datacenter alone


def credits_by_dc(
    keys: Sequence[BlockKey], held: Mapping[WorkerId, Held], members: RegistryView, layout: KvLayout
) -> dict[Datacenter, Credit]:
    """Return the credit of every datacenter with a live node whose placements can be trusted.

    What lies on a node that rendezvous hashing over the live nodes does not name counts for nothing: it was moved
    away by a node that has joined or left, and nobody will ask for it there.
    """
    combined: dict[Datacenter, GroupMasks] = {}
    nodes_of: dict[Datacenter, tuple[str, ...]] = {}
    owners_of: dict[Datacenter, NDArray[np.intp]] = {}
    for holder, held_by_node in held.items():
        pool = members.pools.get(holder)
        if pool is None:
            continue
        if pool.dc not in combined:
            combined[pool.dc] = np.zeros(len(keys), np.uint32)
            nodes_of[pool.dc] = members.nodes(pool.dc)
            owners_of[pool.dc] = owner_indices(keys, nodes_of[pool.dc])
        groups = _groups(held_by_node, layout)
        is_own = owners_of[pool.dc] == nodes_of[pool.dc].index(pool.address)
        combined[pool.dc] |= np.where(is_own, groups, np.uint32(0))
    return {dc: Credit(groups, longest_resume(layout, groups)) for dc, groups in combined.items()}


def longest_resume(layout: KvLayout, groups: GroupMasks) -> int:
    """Return what `KvLayout.longest_resume` does, of group masks."""
    blocks = np.arange(len(groups))
    usable = np.ones(len(groups), bool)  # position k - 1: a resume after k blocks
    for bit, group in enumerate(layout.groups):
        last_absent = np.maximum.accumulate(np.where(groups >> np.uint32(bit) & np.uint32(1), -1, blocks))
        usable &= last_absent < _first_needed(layout, group.window, blocks + 1)
    resumes = np.flatnonzero(usable)
    return int(resumes[-1]) + 1 if len(resumes) else 0


def needed_groups(layout: KvLayout, num_blocks: int) -> GroupMasks:
    """Return the groups of each block that a resume after `num_blocks` blocks needs."""
    needed = np.zeros(num_blocks, np.uint32)
    for bit, group in enumerate(layout.groups):
        needed[layout.first_block_needed(group.window, num_blocks) :] |= np.uint32(1 << bit)
    return needed


def _first_needed(layout: KvLayout, window: int | None, num_blocks: NDArray[np.intp]) -> NDArray[np.intp]:
    """`KvLayout.first_block_needed` of many prefixes."""
    if window is None:
        return np.zeros_like(num_blocks)
    first_token = np.maximum(0, num_blocks * layout.block_tokens - (window - 1))
    needed: NDArray[np.intp] = np.minimum(num_blocks, first_token // layout.block_tokens)
    return needed


def _groups(held: Held, layout: KvLayout) -> GroupMasks:
    masks = {layers: layout.group_mask(layers) for layers in set(held.layers)}
    return np.fromiter((masks[layers] for layers in held.layers), np.uint32, len(held.layers))
