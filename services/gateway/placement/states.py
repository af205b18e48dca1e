"""Small numbers for the few ways in which a block is held, so that a table of millions keeps one number each."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.gateway.placement.table.changes import MAX_STATES
from shared.kv.layout import KvLayout
from shared.kv.resume import GroupMasks, no_groups

NOTHING = 0


class _State(NamedTuple):
    groups: int  # bitmask of layer groups, in any tier
    memory_groups: int
    is_assumed: bool


class States:
    """Numbers for combinations of group masks. Groups that the layout does not have are ignored.

    A layout with so many groups that the numbers run out has `NOTHING` for the rest: a plan that is not the best, and
    with fewer than eight groups impossible.
    """

    def __init__(self, layout: KvLayout) -> None:
        self._layout = layout
        self._known = (1 << len(layout.groups)) - 1
        self._numbers: dict[_State, int] = {}
        self.masks: GroupMasks = no_groups(layout, 0, 2)  # by number, like the next: groups, and groups in memory
        self.is_assumed: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self.number(0, 0)

    def number(self, groups: int, memory_groups: int, *, is_assumed: bool = False) -> int:
        state = _State(groups & self._known, memory_groups & groups & self._known, is_assumed)
        known = self._numbers.get(state)
        if known is not None or len(self._numbers) == MAX_STATES:
            return NOTHING if known is None else known
        self._numbers[state] = len(self._numbers)
        self.masks = no_groups(self._layout, len(self._numbers), 2)
        self.masks[:] = [(s.groups, s.memory_groups) for s in self._numbers]
        self.is_assumed = np.array([s.is_assumed for s in self._numbers])
        return self._numbers[state]
