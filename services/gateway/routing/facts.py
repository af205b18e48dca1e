"""What follows from a request, placements and members before anything is decided: computed once for each plan."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.gateway.cluster.links import Links
from services.gateway.cluster.view import RegistryView
from services.gateway.cluster.workers import Member, Workers
from services.gateway.routing.calibration import NO_CORRECTIONS, Corrections
from services.gateway.routing.codec import Way, way_between
from services.gateway.routing.datacenters import Credit, credits_by_dc
from services.gateway.routing.plan import RequestFacts
from services.gateway.settings import AUTO
from shared.ids import Datacenter
from shared.kv.hashing import num_prefix_blocks
from shared.kv.layout import KvLayout
from shared.kv.resume import longest_resume

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Facts:
    """The state of the world for one request, as seen from the datacenter that decodes it."""

    request: RequestFacts
    layout: KvLayout
    home: Datacenter  # where the request is decoded
    dcs: Sequence[Datacenter]  # by number, as the tables have them
    decode: Workers  # at home, at least one
    prefill: Workers  # that can prefill: their blocks would reach home
    links: Links
    suspects: frozenset[str]  # addresses of pool nodes that home's pool pulls nothing from
    credits: Mapping[Datacenter, Credit]  # what each datacenter's pool can be counted on for, suspects left out
    num_usable: int  # leading blocks that some pool holds
    num_enough: int  # leading blocks that a cache or a prefill worker may provide: all that a token comes after
    tier_bytes_per_s: Mapping[Datacenter, float] = field(default_factory=dict)  # of object tiers, where known
    codec: str = AUTO  # the setting
    corrections: Corrections = field(default_factory=lambda: NO_CORRECTIONS)  # of forecasts, as measured
    worked_out: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What policies and forecasts have made of these facts, for whoever asks again: see `once`."""

    def once(self, key: Hashable, work_out: Callable[[], T]) -> T:
        """Return what `work_out` does, which follows from the facts alone; it is called once for each key."""
        if key not in self.worked_out:
            self.worked_out[key] = work_out()
        found: T = self.worked_out[key]
        return found

    @property
    def home_number(self) -> int:
        return self.dcs.index(self.home)

    @property
    def is_cached(self) -> bool:
        """Whether nothing is left for a prefill worker."""
        return self.num_usable >= self.num_enough

    @property
    def num_uncached_tokens(self) -> int:
        """Tokens of the prompt that no cache has."""
        return self.request.num_tokens - self.num_usable * self.layout.block_tokens

    @property
    def is_away(self) -> NDArray[np.bool_]:
        """Whether a prefill worker is in another datacenter: a value a row."""
        return np.asarray(self.prefill.rows["dc"] != self.home_number)

    @property
    def on_device(self) -> NDArray[np.intp]:
        """How many leading blocks lie on each decode worker's device, as far as is known."""
        blocks = np.zeros(len(self.decode), np.intp)
        there = self.request.on_device
        if there is not None and (row := self.decode.row_of(there.worker)) is not None:
            blocks[row] = there.num_blocks
        return blocks

    @property
    def following(self) -> NDArray[np.intp]:
        """How many leading blocks each prefill worker is computing for another request, if more than caches have."""
        promised = self._promised()
        return np.where(promised > self.num_usable, promised, 0)

    @property
    def longest_prefix(self) -> NDArray[np.intp]:
        """After how many blocks each prefill worker could resume, from its own datacenter's pool and its promises."""
        longest = np.array([self.credits[dc].longest if dc in self.credits else 0 for dc in self.dcs], np.intp)
        return np.maximum(longest.take(self.prefill.rows["dc"]), self._promised())

    def usable_from(self, dcs: frozenset[Datacenter]) -> int:
        """Return how many leading blocks the pools of these datacenters hold together."""
        credits = [credit for dc, credit in self.credits.items() if dc in dcs]
        return self.num_usable if len(credits) == len(self.credits) else num_usable(self.layout, credits)

    def restricted_to(self, dcs: frozenset[Datacenter]) -> "Facts":
        """Return the same facts with the caches of these datacenters alone."""
        if self.credits.keys() <= dcs:
            return self
        credits = {dc: credit for dc, credit in self.credits.items() if dc in dcs}
        return replace(self, credits=credits, num_usable=num_usable(self.layout, list(credits.values())))

    def way(self, source: Datacenter, target: Datacenter) -> Way:
        """Return what is known of the way of blocks from engines of one datacenter to those of another."""
        engines, numbers = self.once("engines", self._engines), (self.dcs.index(source), self.dcs.index(target))
        maker, user = (engines.get(number) for number in numbers)
        if maker is None or user is None:
            return Way(source, target, float(self.links.goodput_bytes_per_s[numbers]))
        return way_between(self.dcs, self.links, maker, user)

    def _engines(self) -> Mapping[int, Member]:
        """Return one engine of each datacenter that has some, by its number: the first prefill worker, or decode's."""
        found: dict[int, Member] = {}
        for workers in (self.decode, self.prefill):
            dcs, numbers = (workers.rows[name][::-1].tolist() for name in ("dc", "number"))
            found |= {dc: workers.members[number] for dc, number in dict(zip(dcs, numbers, strict=True)).items()}
        return found

    def _promised(self) -> NDArray[np.intp]:
        promised = np.zeros(len(self.prefill), np.intp)
        for worker, num_blocks in self.request.promised.items():
            if (row := self.prefill.row_of(worker)) is not None:
                promised[row] = num_blocks
        return promised


def num_usable(layout: KvLayout, credits: Sequence[Credit]) -> int:
    """Return after how many blocks a request could resume from all that these have."""
    if not credits:
        return 0
    if len(credits) == 1:
        return credits[0].longest
    combined = credits[0].groups
    for credit in credits[1:]:
        combined = combined | credit.groups
    return int(longest_resume(layout, combined))


def facts_of(
    request: RequestFacts,
    members: RegistryView,
    home: Datacenter,
    layout: KvLayout,
    codec: str = AUTO,
    corrections: Corrections = NO_CORRECTIONS,
) -> Facts:
    """Return what is known of a request that is decoded in `home`, which has a decode worker for it."""
    suspects = members.suspects(home)
    credits = credits_by_dc(request.keys, request.held, members, layout, suspects)
    decode, prefill = (workers.without(request.excluded) for workers in (members.decode, members.prefill))
    if suspects:
        # What is made where home's pool suspects a node would not come: a prefix is worth no more than its first hole.
        is_reachable = np.array([suspects.isdisjoint(members.nodes(dc)) for dc in members.dcs], bool)
        prefill = prefill.where(is_reachable.take(prefill.rows["dc"]))
    if request.is_scored:
        prefill = prefill.where(np.zeros(len(prefill), np.bool_))
    return Facts(
        request=request,
        layout=layout,
        home=home,
        dcs=members.dcs,
        decode=decode.where(decode.rows["dc"] == members.dcs.index(home)),
        prefill=prefill,
        links=members.links,
        suspects=suspects,
        credits=credits,
        num_usable=num_usable(layout, list(credits.values())),
        # A block that ends the prompt is taken where it is held, and then decode computes the last token alone. It is
        # not computed ahead: decode has to run that token in any case.
        num_enough=num_prefix_blocks(request.num_tokens, layout.block_tokens),
        tier_bytes_per_s=members.pools.tier_bytes_per_s,
        codec=codec,
        corrections=corrections,
    )
