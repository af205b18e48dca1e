"""Numbers that stand for what a holder holds, for as long as that is true, and how many pairs each has. Pure."""

import numpy as np

NO_HOLDER = -1
MAX_OWNERS = 1 << 20
_FIRST_OWNERS = 64


class Owners:
    """A holder whose content is void gets a new owner, which takes no time, however much it held.

    Pairs of a dropped owner are garbage, left behind when the table moves; its number is free again when a move that
    began afterwards is over, for only then has no table a pair of it.
    """

    def __init__(self) -> None:
        self.holder_of = np.full(_FIRST_OWNERS, NO_HOLDER)  # by owner, like the next two
        self.num_pairs = np.zeros(_FIRST_OWNERS, np.int64)
        self.is_live = np.zeros(_FIRST_OWNERS, np.bool_)
        self.num_garbage = 0
        self._free = list(reversed(range(_FIRST_OWNERS)))
        self._dropped: list[int] = []  # since the last move began
        self._leaving: list[int] = []  # dropped before it began: gone when it is over

    @property
    def num_dropped(self) -> int:
        return len(self._dropped)

    def new(self, holder: int = NO_HOLDER) -> int:
        """Return an owner; without a holder its pairs are not found until it is given one."""
        if not self._free:
            self._add()
        owner = self._free.pop()
        self.is_live[owner] = True
        self.holder_of[owner] = holder
        return owner

    def give(self, owner: int, holder: int) -> None:
        """Let an owner's pairs be found as the holder's."""
        self.holder_of[owner] = holder

    def drop(self, owner: int) -> None:
        """Forget an owner and all its pairs, at once."""
        self.is_live[owner] = False
        self.holder_of[owner] = NO_HOLDER
        self.num_garbage += int(self.num_pairs[owner])
        self._dropped.append(owner)

    def begin_move(self) -> None:
        self._leaving, self._dropped = self._dropped, []

    def end_move(self) -> None:
        self.num_pairs[self._leaving] = 0
        self._free += self._leaving
        self._leaving = []

    def _add(self) -> None:
        num_owners = len(self.is_live)
        assert num_owners < MAX_OWNERS, "owners are dropped, not lost"
        self.holder_of = np.concatenate([self.holder_of, np.full(num_owners, NO_HOLDER)])
        self.num_pairs = np.concatenate([self.num_pairs, np.zeros(num_owners, np.int64)])
        self.is_live = np.concatenate([self.is_live, np.zeros(num_owners, np.bool_)])
        self._free = list(reversed(range(num_owners, 2 * num_owners)))
