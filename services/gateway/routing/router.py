"""From facts to a plan: who decodes, who prefills, where blocks come from, how they travel. Pure."""

import math
from dataclasses import dataclass
from itertools import islice

from services.gateway.cluster.view import RegistryView, no_decode_worker
from services.gateway.cluster.workers import Member
from services.gateway.routing.calibration import NO_CORRECTIONS, Corrections
from services.gateway.routing.codec import choose_codec, way_between
from services.gateway.routing.costs.candidates import alone_s, forecast_of
from services.gateway.routing.datacenters import credits_by_dc
from services.gateway.routing.facts import Facts, facts_of
from services.gateway.routing.plan import Plan, PlanKind, RequestFacts
from services.gateway.routing.policy import Decision, RoutingPolicy
from services.gateway.routing.sources import decode_sources, prefill_sources
from services.gateway.settings import AUTO
from shared.errors import NoWorker
from shared.ids import Datacenter
from shared.kv.entries import Source
from shared.kv.layout import KvLayout

MAX_SPARES = 3
"""Workers that a plan names besides the first."""


@dataclass(frozen=True, slots=True)
class Router:
    """Plans requests of one model. Holds no state: the same request, members and policy give the same plan."""

    home: Datacenter  # where requests shall be decoded: the gateway's own
    layout: KvLayout
    policy: RoutingPolicy
    codec: str = AUTO  # or the name of a lossless codec

    def plan(self, request: RequestFacts, members: RegistryView, corrections: Corrections = NO_CORRECTIONS) -> Plan:
        """Plan a request. Raises `NoWorker` when nobody can decode."""
        home = self._decoding_dc(request, members)
        everything = facts = facts_of(request, members, home, self.layout, self.codec, corrections)
        decision = self.policy.decide(facts)
        if decision.pull_from is not None:
            facts = facts.restricted_to(decision.pull_from | {home})
        decode, workers = facts.decode[decision.decode], self._prefill_workers(facts, decision)
        prefill = workers[0] if workers else None
        kind = kind_of(facts, prefill)
        num_blocks = facts.num_usable if kind == "decode_only" else max(facts.num_usable, facts.num_enough)
        for_decode, for_prefill = self._sources(facts, members, prefill, num_blocks)
        fidelity, dcs, links = request.fidelity, members.dcs, members.links
        return Plan(
            kind=kind,
            home_dc=home,
            decode=decode,
            prefill=prefill,
            prefill_spares=tuple(workers[1:]),
            num_blocks=num_blocks,
            usable_blocks=facts.num_usable,
            decode_nodes=members.nodes(home),
            prefill_nodes=() if prefill is None else members.nodes(prefill.dc),
            decode_sources=for_decode,
            prefill_sources=for_prefill,
            prefill_codec=choose_codec(self.codec, fidelity, way_between(dcs, links, prefill or decode, decode)),
            decode_codec=choose_codec(self.codec, fidelity, way_between(dcs, links, decode, decode)),
            forecast=decision.forecast or forecast_of(facts, decision),
            alone_s=alone_s(everything, decision) if prefill is not None or for_decode else math.inf,
            ways=decision.ways,
        )

    def _decoding_dc(self, request: RequestFacts, members: RegistryView) -> Datacenter:
        """Return home, or where else somebody can decode. There a request has its decode worker and its first pool."""
        able = members.decode.without(request.excluded)
        if not len(able):
            raise NoWorker(no_decode_worker(members))
        is_home = self.home in members.dcs and (able.rows["dc"] == members.dcs.index(self.home)).any()
        return self.home if is_home else able[0].dc

    def _prefill_workers(self, facts: Facts, decision: Decision) -> list[Member]:
        """Return the workers of the best one's datacenter, the best first: a plan holds for one datacenter."""
        if facts.is_cached or not decision.prefill:
            return []
        best = facts.prefill[decision.prefill[0]].dc
        dc = facts.dcs.index(best)
        there = (row for row in decision.prefill if facts.prefill.rows["dc"][row] == dc)
        return [facts.prefill[row] for row in islice(there, 1 + MAX_SPARES)]

    def _sources(
        self, facts: Facts, members: RegistryView, prefill: Member | None, num_blocks: int
    ) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
        """Return where decode's pool and the prefill worker's pool pull from."""
        if not num_blocks:
            return (), ()
        request, home, credits = facts.request, facts.home, facts.credits
        seen_there = credits  # as the prefill worker's pool sees it: each pool has suspects of its own
        if prefill is not None and (suspects := members.suspects(prefill.dc)) != facts.suspects:
            found = credits_by_dc(request.keys, request.held, members, self.layout, suspects)
            seen_there = {dc: credit for dc, credit in found.items() if dc in credits or dc == prefill.dc}
        nodes = {dc: members.nodes(dc) for dc in (*credits, *seen_there)}
        maker = None if prefill is None else prefill.dc
        if prefill is not None and prefill.dc not in nodes:  # its pool is not known, or not what it holds
            nodes[prefill.dc] = members.nodes(prefill.dc) or (prefill.pool_address,)
        for_decode = decode_sources(self.layout, home, maker, num_blocks, credits, nodes)
        if prefill is None:
            return for_decode, ()
        num_promised = request.promised.get(prefill.worker, 0)
        for_prefill = prefill_sources(self.layout, prefill.dc, facts.num_usable, num_promised, seen_there, nodes)
        return for_decode, for_prefill


def kind_of(facts: Facts, prefill: Member | None) -> PlanKind:
    """Return the place of prefill: nowhere, where decode is, in another datacenter, or on the decode worker itself."""
    if facts.is_cached:
        return "none"
    if prefill is None:
        return "decode_only"
    return "local" if prefill.dc == facts.home else "remote"


def prefers_exact(exact: Plan, lossy: Plan) -> bool:
    """Return whether a request that allows loss does better in the lossless chain: the longer cached prefix wins.

    Of equal ones the lossless, unless blocks have to cross from another datacenter.
    """
    if exact.usable_blocks != lossy.usable_blocks:
        return exact.usable_blocks > lossy.usable_blocks
    return not exact.crosses
