"""Where a request can resume, given the layer groups of each block of its prefix: `KvLayout`'s rules on arrays."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.kv.layout import KvLayout

GroupMasks = NDArray[np.unsignedinteger[Any]]
"""One bitmask of layer groups (`KvLayout.groups`) for each block; the last axis is the blocks of a chain."""


def no_groups(layout: KvLayout, *shape: int) -> GroupMasks:
    """Return masks of nothing, in the smallest type that has a bit for each of the layout's groups."""
    return np.zeros(shape, _mask_type(len(layout.groups)))


@lru_cache(maxsize=64)
def _mask_type(num_groups: int) -> np.dtype[Any]:
    return np.min_scalar_type((1 << num_groups) - 1)


def by_group(layout: KvLayout, masks: GroupMasks) -> NDArray[np.bool_]:
    """Return for each group which of the blocks have it: `[groups, blocks]`, of each row if `masks` have rows."""
    bits = np.array([1 << g for g in range(len(layout.groups))], masks.dtype)
    return np.asarray(masks[..., np.newaxis, :] & bits[:, np.newaxis] != 0)


def needed_groups(layout: KvLayout, num_blocks: int) -> GroupMasks:
    """Return, for each of the first `num_blocks` blocks, the groups that a resume after all of them needs."""
    masks = no_groups(layout, num_blocks)
    for g, group in enumerate(layout.groups):
        masks[layout.first_block_needed(group.window, num_blocks) :] |= 1 << g
    return masks


def longest_resume(layout: KvLayout, masks: GroupMasks) -> NDArray[np.int64]:
    """Return `KvLayout.longest_resume` of one chain, `masks[blocks]`, or of each row of `masks[rows, blocks]`."""
    if masks.ndim == 1:
        return np.asarray(_longest(layout, masks), np.int64)
    return np.array([_longest(layout, row) for row in masks], np.int64)


def _longest(layout: KvLayout, masks: GroupMasks) -> int:
    full = sum(1 << g for g, group in enumerate(layout.groups) if group.window is None)
    # Most pools of many lack the very first block: no resume lies behind one that lacks a full group.
    if not len(masks) or int(masks[0]) & full != full:
        return 0
    lacking = (masks & full == full).tobytes().find(0)
    return _longest_before(layout, masks, len(masks) if lacking < 0 else lacking)


def _longest_before(layout: KvLayout, masks: GroupMasks, after: int) -> int:
    """Return the longest resume of a chain after at most so many blocks, all of which have the full groups."""
    windows = [
        (group.window, (masks[:after] & (1 << g) != 0).tobytes())
        for g, group in enumerate(layout.groups)
        if group.window is not None
    ]
    while after:
        for window, has in windows:
            lacking = has.find(0, layout.first_block_needed(window, after), after)
            if lacking >= 0:
                # Each shorter resume behind the lacking block needs it too, and any needs the block that it is behind.
                after = has.rfind(1, 0, lacking) + 1
                break
        else:
            return after
    return 0
