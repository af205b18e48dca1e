"""Which tails wait for another one that computes what they begin with: each block is computed once. Pure."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from shared.ids import BlockKey

R = TypeVar("R")


class TailBlocks(NamedTuple):
    """What a tail computes."""

    keys: Sequence[BlockKey]  # of its full blocks, from its beginning to its end
    has_begun: bool  # it computes them itself, whoever else does


def leaders(tails: Sequence[tuple[R, TailBlocks]]) -> dict[R, R]:
    """Return who waits for whom: tails whose first block another computes, which has begun or comes before them.

    `tails` stand in the order of their turns. Nobody waits for one that waits.
    """
    computing: dict[BlockKey, R] = {}
    for request, (keys, has_begun) in tails:
        if has_begun:
            computing |= dict.fromkeys(keys, request)
    found: dict[R, R] = {}
    for request, (keys, has_begun) in tails:
        if has_begun:
            continue
        if keys and keys[0] in computing:
            found[request] = computing[keys[0]]
        else:
            computing |= dict.fromkeys((key for key in keys if key not in computing), request)
    return found


def in_turn(turns: Sequence[R], waits_for: dict[R, R]) -> list[R]:
    """Return those of `turns` who wait for nobody, each as early as the first of those who wait for it."""
    return list(dict.fromkeys(waits_for.get(request, request) for request in turns))
