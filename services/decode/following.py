"""Which tails wait for another one that computes what they begin with: each block is computed once. Pure."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from shared.ids import BlockKey

R = TypeVar("R")


class Remainder(NamedTuple):
    """What a tail is going to compute."""

    keys: Sequence[BlockKey]  # of its full blocks
    has_begun: bool  # it computes them itself, whoever else does


def followers(tails: Iterable[tuple[R, Remainder]]) -> list[R]:
    """Return the tails whose first block a tail before them computes; they stand in the order of their turns.

    Who follows computes nothing meanwhile. A tail that has begun does not follow.
    """
    computed: set[BlockKey] = set()
    found = []
    for request, (keys, has_begun) in tails:
        if keys and keys[0] in computed and not has_begun:
            found.append(request)
        else:
            computed.update(keys)
    return found
