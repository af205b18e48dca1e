"""What a pool holds of a prefix: the index's answer, and what routing reasons about. Data only."""

from typing import NamedTuple

from shared.kv.resume import GroupMasks


class HeldPrefix(NamedTuple):
    """What one pool holds of a request's prefix. Arrays are shared and read-only."""

    masks: GroupMasks  # [2, blocks]: see the properties

    @property
    def groups(self) -> GroupMasks:
        """For each block, the layer groups that the pool holds wholly, in any tier."""
        groups: GroupMasks = self.masks[0]
        return groups

    @property
    def memory_groups(self) -> GroupMasks:
        """Of these, the ones in memory."""
        memory_groups: GroupMasks = self.masks[1]
        return memory_groups
