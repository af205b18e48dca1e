"""Hysteresis: a value that changes only for a reason that lasts. Pure."""

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settled(Generic[T]):
    """What is shown of something that is looked at again and again."""

    value: T
    num_against: int = 0  # looks in a row that asked for another value

    def after(self, proposed: T, *, is_other: bool, looks: int) -> "Settled[T]":
        """Return what is shown after one more look. `is_other` says that `proposed` is different enough.

        The value changes to the latest proposal when so many looks in a row have asked for another one.
        """
        if not is_other:
            return Settled(self.value)
        if self.num_against + 1 >= looks:
            return Settled(proposed)
        return Settled(self.value, self.num_against + 1)
