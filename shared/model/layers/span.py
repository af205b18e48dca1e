"""What one sequence brings to a step."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Span:
    """Consecutive new tokens of one sequence. Everything before `start` that they see is in its pages already."""

    tables: Sequence[Sequence[int]]  # per page group, the sequence's pages; -1 where none is held
    start: int  # position of the first new token
    num_tokens: int
    stores: bool = True  # False: K and V of these tokens are in the pages already, and are only read

    @property
    def end(self) -> int:
        """The sequence's length after this step."""
        return self.start + self.num_tokens
