"""What of a cached prefix is used, how many bytes of KV that moves, and how long they take."""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import mul
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.gateway.routing.codec import choose_codec, kv_bytes_per_s
from services.gateway.routing.facts import Facts
from services.gateway.routing.plan import LinkUse
from shared.ids import Datacenter
from shared.kv.resume import GroupMasks, by_group

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


def everybody(facts: Facts) -> PrefixUse:
    """Return the use of all that any pool has."""
    return PrefixUse(facts.num_usable, frozenset(facts.credits))


def near(facts: Facts, maker: Datacenter) -> PrefixUse:
    """Return the use of what home and the datacenter that computes have."""
    dcs = frozenset({facts.home, maker})
    return PrefixUse(facts.usable_from(dcs), dcs)


class WayCost(NamedTuple):
    """One way from a datacenter to another."""

    bytes_per_s: float  # of KV, through the codec that would be chosen
    backlog_s: float  # until what was asked for before has crossed
    round_trip_s: float

    def crossing_s(self, num_bytes: float) -> float:
        """Return when so many bytes, all of them there already, have crossed."""
        return self.backlog_s + self.round_trip_s + num_bytes / self.bytes_per_s if num_bytes else 0.0


class Gathering(NamedTuple):
    """A prefix that a pool lacks parts of, until it has them all."""

    seconds: float
    crossings: tuple[LinkUse, ...]


NOTHING = Gathering(0.0, ())


@dataclass(frozen=True, slots=True)
class Transfers:
    """What moving KV costs for one request. All transfers of the same facts share what they have worked out."""

    facts: Facts

    def way(self, source: Datacenter, target: Datacenter) -> WayCost:
        """Return what the way between two different datacenters costs."""
        return self.facts.once(("way", source, target), lambda: self._way(source, target))

    def gathering(self, target: Datacenter, use: PrefixUse) -> Gathering:
        """Return what it takes until the pool of `target` has a prefix, in memory.

        What it lacks comes from whoever has the longest prefix.
        """
        if not use.num_blocks:
            return NOTHING
        tier_s = self.tier_s(target, use.num_blocks)
        others = [dc for dc in use.pull_from if dc != target]
        num_bytes = self.lacking_bytes(target, use.num_blocks) if others else 0.0
        if not num_bytes:
            return Gathering(tier_s, ())
        credits = self.facts.credits
        source = max(others, key=lambda dc: (credits[dc].longest if dc in credits else 0, dc))
        there_s = self.tier_s(source, use.num_blocks) + self.way(source, target).crossing_s(num_bytes)
        return Gathering(max(tier_s, there_s), (LinkUse(source, target, num_bytes),))

    def lacking_bytes(self, dc: Datacenter, num_blocks: int) -> float:
        """Return the bytes that a resume after `num_blocks` blocks needs and the pool of `dc` lacks."""
        return self.facts.once(("lacking", dc, num_blocks), lambda: self._lacking_bytes(dc, num_blocks))

    def tier_s(self, dc: Datacenter, num_blocks: int) -> float:
        """Return how long such a resume reads from the object tier of `dc`."""
        return self.facts.once(("tier", dc, num_blocks), lambda: self._tier_s(dc, num_blocks))

    def _way(self, source: Datacenter, target: Datacenter) -> WayCost:
        facts = self.facts
        way, numbers = facts.way(source, target), (facts.dcs.index(source), facts.dcs.index(target))
        known = way if way.goodput_bytes_per_s else way._replace(goodput_bytes_per_s=UNKNOWN_LINK_BYTES_PER_S)
        bytes_per_s = kv_bytes_per_s(choose_codec(facts.codec, facts.request.fidelity, way), known)
        backlog_s = float(facts.links.backlog_bytes[numbers]) / bytes_per_s
        return WayCost(bytes_per_s, backlog_s, float(facts.links.round_trip_s[numbers]) or UNKNOWN_ROUND_TRIP_S)

    def _lacking_bytes(self, dc: Datacenter, num_blocks: int) -> float:
        credit, needed = self.facts.credits.get(dc), self._resume_bytes(num_blocks)
        if credit is None:
            return float(needed)
        if credit.longest >= num_blocks:
            return 0.0
        return float(needed - self._resume_bytes_in(self.facts.once("groups", self._groups)[dc], num_blocks))

    def _tier_s(self, dc: Datacenter, num_blocks: int) -> float:
        credit = self.facts.credits.get(dc)
        if credit is None or credit.on_tier is None:
            return 0.0
        there = self.facts.once("groups on tiers", self._groups_on_tiers)[dc]
        bytes_per_s = self.facts.tier_bytes_per_s.get(dc) or UNKNOWN_TIER_BYTES_PER_S
        return self._resume_bytes_in(there, num_blocks) / bytes_per_s

    def _groups(self) -> Mapping[Datacenter, NDArray[np.bool_]]:
        """Return what each datacenter has, `[groups, blocks]`."""
        return self._by_group({dc: credit.groups for dc, credit in self.facts.credits.items()})

    def _groups_on_tiers(self) -> Mapping[Datacenter, NDArray[np.bool_]]:
        """Return the same of what has to be read from object tiers."""
        credits = self.facts.credits.items()
        return self._by_group({dc: credit.on_tier for dc, credit in credits if credit.on_tier is not None})

    def _by_group(self, masks: Mapping[Datacenter, GroupMasks]) -> Mapping[Datacenter, NDArray[np.bool_]]:
        return dict(zip(masks, by_group(self.facts.layout, np.array(list(masks.values()))), strict=True))

    def _resume_bytes_in(self, present: NDArray[np.bool_], num_blocks: int) -> int:
        """Return the bytes that a resume after `num_blocks` blocks needs of what is present: `[groups, blocks]`."""
        parts = self.facts.once(("parts", num_blocks), lambda: self._parts(num_blocks))
        counts = [int(np.count_nonzero(has[part])) for has, part in zip(present, parts, strict=True)]
        return sum(map(mul, self.facts.layout.group_bytes, counts))

    def _parts(self, num_blocks: int) -> list[slice]:
        """Return for each group which blocks a resume after `num_blocks` blocks needs."""
        layout = self.facts.layout
        return [slice(layout.first_block_needed(group.window, num_blocks), num_blocks) for group in layout.groups]

    def _resume_bytes(self, num_blocks: int) -> int:
        return self.facts.once(("bytes", num_blocks), lambda: self.facts.layout.resume_bytes(0, num_blocks))
