"""What of a cached prefix is used, how many bytes of KV that moves, and how long they take."""

from typing import NamedTuple

import numpy as np

from services.gateway.routing.codec import choose_codec, kv_bytes_per_s
from services.gateway.routing.facts import Facts
from services.gateway.routing.plan import LinkUse
from shared.ids import Datacenter
from shared.kv.layout import KvLayout
from shared.kv.resume import needed_groups

UNKNOWN_LINK_BYTES_PER_S = 1.25e9
"""Of a link that nobody has measured: 10 Gbit/s. A link is measured by its first transfer; one that is believed to be
slow would never be tried."""

UNKNOWN_ROUND_TRIP_S = 0.02

UNKNOWN_TIER_BYTES_PER_S = 2e8
"""Of an object tier that has not read anything yet: a disk, or a bucket over a few connections."""


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


class WayCost(NamedTuple):
    """One way from a datacenter to another."""

    bytes_per_s: float  # of KV, through the codec that would be chosen
    backlog_s: float  # until what was asked for before has crossed
    round_trip_s: float

    def crossing_s(self, num_bytes: float) -> float:
        """Return when so many bytes, all of them there already, have crossed."""
        return self.backlog_s + self.round_trip_s + num_bytes / self.bytes_per_s if num_bytes else 0.0


def way_cost(facts: Facts, source: Datacenter, target: Datacenter) -> WayCost:
    """Return what the way between two different datacenters costs."""
    way, numbers = facts.way(source, target), (facts.dcs.index(source), facts.dcs.index(target))
    known = way if way.goodput_bytes_per_s else way._replace(goodput_bytes_per_s=UNKNOWN_LINK_BYTES_PER_S)
    bytes_per_s = kv_bytes_per_s(choose_codec(facts.codec, facts.request.fidelity, way), known)
    backlog_s = float(facts.links.backlog_bytes[numbers]) / bytes_per_s
    return WayCost(bytes_per_s, backlog_s, float(facts.links.round_trip_s[numbers]) or UNKNOWN_ROUND_TRIP_S)


class Gathering(NamedTuple):
    """A prefix that a pool lacks parts of, until it has them all."""

    seconds: float
    crossings: tuple[LinkUse, ...]


def gathering(facts: Facts, target: Datacenter, num_blocks: int, pull_from: frozenset[Datacenter]) -> Gathering:
    """Return what it takes until the pool of `target` has a prefix that it and `pull_from` hold together, in memory.

    What it lacks comes from whoever has the longest prefix.
    """
    tier_s = _tier_s(facts, target, num_blocks)
    others = [dc for dc in pull_from if dc != target]
    num_bytes = lacking_bytes(facts, target, num_blocks) if others else 0.0
    if not num_bytes:
        return Gathering(tier_s, ())
    source = max(others, key=lambda dc: (facts.credits[dc].longest if dc in facts.credits else 0, dc))
    crossing_s = way_cost(facts, source, target).crossing_s(num_bytes)
    there_s = _tier_s(facts, source, num_blocks)
    return Gathering(max(tier_s, there_s + crossing_s), (LinkUse(source, target, num_bytes),))


def _tier_s(facts: Facts, dc: Datacenter, num_blocks: int) -> float:
    return tier_bytes(facts, dc, num_blocks) / (facts.tier_bytes_per_s.get(dc) or UNKNOWN_TIER_BYTES_PER_S)
