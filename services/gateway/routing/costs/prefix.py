"""What of a cached prefix is used, and how many bytes of KV that moves."""

from typing import NamedTuple

import numpy as np

from services.gateway.routing.facts import Facts
from shared.ids import Datacenter
from shared.kv.layout import KvLayout
from shared.kv.resume import needed_groups


class PrefixUse(NamedTuple):
    """One way to use what caches hold: the leading blocks that these datacenters have together."""

    num_blocks: int
    pull_from: frozenset[Datacenter]


def prefix_uses(facts: Facts, maker: Datacenter) -> list[PrefixUse]:
    """Return the ways worth comparing: all that anybody has, and what home and the maker have.

    The second moves fewer bytes, the first computes fewer tokens.
    """
    everybody = PrefixUse(facts.num_usable, frozenset(facts.credits))
    near = frozenset({facts.home, maker})
    if everybody.pull_from <= near or not facts.num_usable:
        return [everybody]
    own = PrefixUse(facts.usable_from(near), near)
    return [everybody] if own.num_blocks == everybody.num_blocks else [everybody, own]


def kv_bytes(layout: KvLayout, first: int, end: int) -> float:
    """Return the bytes that a resume after `end` blocks needs of the blocks `[first, end)`."""
    total = 0.0
    for group in layout.groups:
        needed = end - max(first, layout.first_block_needed(group.window, end))
        total += max(0, needed) * layout.mask_bytes(group.layers)
    return total


def lacking_bytes(facts: Facts, dc: Datacenter, num_blocks: int) -> float:
    """Return the bytes that a resume after `num_blocks` blocks needs and the pool of `dc` lacks."""
    credit = facts.credits.get(dc)
    if credit is None:
        return kv_bytes(facts.layout, 0, num_blocks)
    if credit.longest >= num_blocks:
        return 0.0
    needed = needed_groups(facts.layout, num_blocks)
    return _bytes_of(facts.layout, needed & ~credit.groups[:num_blocks])


def tier_bytes(facts: Facts, dc: Datacenter, num_blocks: int) -> float:
    """Return the bytes that such a resume reads from the object tier of `dc`."""
    credit = facts.credits.get(dc)
    if credit is None or credit.in_memory is None:
        return 0.0
    needed = needed_groups(facts.layout, num_blocks)
    return _bytes_of(facts.layout, needed & credit.groups[:num_blocks] & ~credit.in_memory[:num_blocks])


def _bytes_of(layout: KvLayout, masks: np.ndarray) -> float:
    if not masks.any():
        return 0.0
    groups = enumerate(layout.groups)
    return float(sum(np.count_nonzero(masks & (1 << g)) * layout.mask_bytes(group.layers) for g, group in groups))
