"""What a pool holds of a prefix: the index's answer, and what routing reasons about. Data only."""

from typing import NamedTuple

from shared.kv.resume import GroupMasks


class HeldPrefix(NamedTuple):
    """What one pool holds of a request's prefix. Arrays are shared and read-only."""

    masks: GroupMasks  # [2, blocks]: see the properties

    @property
    def groups(self) -> GroupMasks:
        """For each block, the layer groups that the pool holds wholly, in any tier."""
        return self.masks[0]

    @property
    def memory_groups(self) -> GroupMasks:
        """Of these, the ones in memory."""
        return self.masks[1]
