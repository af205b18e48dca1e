"""What each pool holds of one prefix, from the pairs that were found of it. Pure."""

from typing import NamedTuple

import numpy as np

from services.gateway.pairs import Found
from services.gateway.resume import GroupMasks, longest_resume, no_groups
from services.gateway.states import States
from shared.kv.layout import KvLayout


class Held(NamedTuple):
    """What one pool holds of a request's prefix. Arrays are shared and read-only."""

    groups: GroupMasks  # for each block, the layer groups that it holds wholly, in any tier
    memory_groups: GroupMasks  # of these, the ones in memory
    longest: int  # blocks after which a request could resume from this pool alone


def held_by_number(
    layout: KvLayout, states: States, found: Found, num_blocks: int, num_holders: int, *, has_credits: bool
) -> list[Held]:
    """Return what each holder has of the blocks, by its number; those who have nothing share one.

    Only with credits may two pairs tell of one block of a holder: then their groups are joined.
    """
    present = np.bincount(found.holders, minlength=num_holders).nonzero()[0]
    rows = np.zeros(num_holders, np.intp)
    rows[present] = np.arange(1, len(present) + 1)
    # Row 0 is that of everybody who has nothing. Both masks of a block, 32 bits at most as on the wire, are set as one
    # number of twice the size.
    masks = no_groups(layout, len(present) + 1, num_blocks, 2)
    both = np.dtype(f"u{2 * masks.itemsize}")
    flat, cells = masks.reshape(-1).view(both), (rows * num_blocks).take(found.holders) + found.blocks
    values = states.masks.view(both)[:, 0].take(found.states)
    flat[cells] = values
    if has_credits and states.is_assumed.take(found.states).any():
        np.bitwise_or.at(flat, cells, values)
    masks.setflags(write=False)
    groups, memory_groups = masks[..., 0], masks[..., 1]
    held = list(map(Held, groups, memory_groups, longest_resume(layout, groups).tolist()))
    return [held[row] for row in rows.tolist()]
