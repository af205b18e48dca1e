"""Where a request can resume, given the layer groups of each block of its prefix: `KvLayout`'s rules on arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.kv.layout import KvLayout

GroupMasks = NDArray[np.unsignedinteger[Any]]
"""One bitmask of layer groups (`KvLayout.groups`) for each block; the last axis is the blocks of a chain."""


def no_groups(layout: KvLayout, *shape: int) -> GroupMasks:
    """Return masks of nothing, in the smallest type that has a bit for each of the layout's groups."""
    return np.zeros(shape, np.min_scalar_type((1 << len(layout.groups)) - 1))


def needed_groups(layout: KvLayout, num_blocks: int) -> GroupMasks:
    """Return, for each of the first `num_blocks` blocks, the groups that a resume after all of them needs."""
    masks = no_groups(layout, num_blocks)
    for g, group in enumerate(layout.groups):
        masks[layout.first_block_needed(group.window, num_blocks) :] |= 1 << g
    return masks


def longest_resume(layout: KvLayout, masks: GroupMasks) -> NDArray[np.int64]:
    """Return `KvLayout.longest_resume` of each row: `masks[..., n]` gives as many results as it has leading axes."""
    num_blocks = masks.shape[-1]
    blocks = np.arange(num_blocks)
    usable = np.ones(masks.shape, np.bool_)
    for g, group in enumerate(layout.groups):
        lacking = np.where(masks >> g & 1, -1, blocks)
        # A resume after k blocks needs all from `first[k - 1]` on: the last block lacking before k lies before it.
        usable &= np.maximum.accumulate(lacking, axis=-1) < _first_needed(layout, group.window, num_blocks)
    resumes: NDArray[np.int64] = np.where(usable, blocks + 1, 0).max(axis=-1, initial=0)
    return resumes


def _first_needed(layout: KvLayout, window: int | None, num_blocks: int) -> NDArray[np.int64]:
    """Return `KvLayout.first_block_needed` for resumes after 1, 2, … `num_blocks` blocks."""
    after = np.arange(1, num_blocks + 1)
    if window is None:
        return np.zeros_like(after)
    first_token = np.maximum(0, after * layout.block_tokens - (window - 1))
    first: NDArray[np.int64] = np.minimum(after, first_token // layout.block_tokens)
    return first
