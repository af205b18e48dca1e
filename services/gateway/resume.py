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
    return np.zeros(shape, np.min_scalar_type((1 << len(layout.groups)) - 1))


def needed_groups(layout: KvLayout, num_blocks: int) -> GroupMasks:
    """Return, for each of the first `num_blocks` blocks, the groups that a resume after all of them needs."""
    masks = no_groups(layout, num_blocks)
    for g, group in enumerate(layout.groups):
        masks[layout.first_block_needed(group.window, num_blocks) :] |= 1 << g
    return masks


def longest_resume(layout: KvLayout, masks: GroupMasks) -> NDArray[np.int64]:
    """Return `KvLayout.longest_resume` of one chain, `masks[blocks]`, or of each row of `masks[rows, blocks]`."""
    if masks.ndim == 1:
        return longest_resume(layout, masks[np.newaxis]).reshape(())
    resumes = np.zeros(len(masks), np.int64)
    if not masks.size:
        return resumes
    full = sum(1 << g for g, group in enumerate(layout.groups) if group.window is None)
    lacks_full = masks & full != full
    # No resume lies behind the first block that lacks a full group: most pools of many lack one of the first.
    ends = np.where(lacks_full.any(axis=1), lacks_full.argmax(axis=1), masks.shape[1])
    chosen = np.flatnonzero(ends)
    if len(chosen):
        resumes[chosen] = _longest_before(layout, masks[chosen, : ends.max()], ends[chosen])
    return resumes


def _longest_before(layout: KvLayout, masks: GroupMasks, ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the longest resume of each row after at most `ends` blocks, all of which have the full groups."""
    num_blocks = masks.shape[1]
    blocks = np.arange(num_blocks, dtype=np.int32)
    usable = blocks < ends[:, np.newaxis]
    for g, group in enumerate(layout.groups):
        if group.window is not None:
            first = _first_needed(layout, group.window, 1 << num_blocks.bit_length())[:num_blocks]
            lacking = np.where(masks & (1 << g), np.int32(-1), blocks)
            # A resume after k blocks needs all from `first[k - 1]` on: the last one lacking before k lies before it.
            usable &= np.maximum.accumulate(lacking, axis=1) < first
    any_usable, longest = usable.any(axis=1), num_blocks - usable[:, ::-1].argmax(axis=1)
    resumes: NDArray[np.int64] = np.where(any_usable, longest, 0)
    return resumes


@lru_cache
def _first_needed(layout: KvLayout, window: int, num_blocks: int) -> NDArray[np.int32]:
    """Return `KvLayout.first_block_needed` for resumes after 1, 2, … `num_blocks` blocks."""
    after = np.arange(1, num_blocks + 1, dtype=np.int32)
    first_token = np.maximum(0, after * layout.block_tokens - (window - 1))
    first: NDArray[np.int32] = np.minimum(after, first_token // layout.block_tokens)
    first.setflags(write=False)
    return first
