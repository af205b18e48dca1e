"""What a pool holds of a prefix: the index's answer, and what routing reasons about. Data only."""

from typing import NamedTuple

from shared.kv.resume import GroupMasks


class HeldPrefix(NamedTuple):
    """What one pool holds of a request's prefix. Arrays are shared and read-only."""

    groups: GroupMasks  # for each block, the layer groups that it holds wholly, in any tier
    memory_groups: GroupMasks  # of these, the ones in memory
