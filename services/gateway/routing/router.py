"""From facts to a plan: who decodes, who prefills, where blocks come from, how they travel. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.gateway.cluster.registry import Member, RegistryView, no_decode_worker
from services.gateway.routing.codec import choose_codec, way_between
from services.gateway.routing.datacenters import credits_by_dc
from services.gateway.routing.facts import Facts, facts_of
from services.gateway.routing.plan import Plan, PlanKind, RequestFacts
from services.gateway.routing.policy import RoutingPolicy
from services.gateway.routing.sources import decode_sources, prefill_sources
from services.gateway.settings import AUTO
from shared.errors import NoWorker
from shared.ids import Datacenter
from shared.kv.entries import Source
from shared.kv.layout import KvLayout


@dataclass(frozen=True, slots=True)
class Router:
    """Plans requests of one model. Holds no state: the same request, members and policy give the same plan."""

    home: Datacenter  # where requests shall be decoded: the gateway's own
    layout: KvLayout
    policy: RoutingPolicy
    codec: str = AUTO  # or the name of a lossless codec

    def plan(self, request: RequestFacts, members: RegistryView) -> Plan:
        """Plan a request. Raises `NoWorker` when nobody can decode."""
        decode = self._pick_decode(request, members)
        facts = facts_of(request, members, decode, self.layout)
        workers = self._pick_prefill(facts)
        prefill = workers[0] if workers else None
        kind = kind_of(facts, prefill)
        num_blocks = facts.num_usable if kind == "decode_only" else max(facts.num_usable, facts.num_enough)
        for_decode, for_prefill = self._sources(facts, members, prefill, num_blocks)
        fidelity = request.fidelity
        return Plan(
            kind=kind,
            home_dc=decode.dc,
            decode=decode,
            prefill=prefill,
            prefill_spares=tuple(workers[1:]),
            num_blocks=num_blocks,
            usable_blocks=facts.num_usable,
            decode_nodes=members.nodes(decode.dc),
            prefill_nodes=() if prefill is None else members.nodes(prefill.dc),
            decode_sources=for_decode,
            prefill_sources=for_prefill,
            prefill_codec=choose_codec(self.codec, fidelity, way_between(members, prefill or decode, decode)),
            decode_codec=choose_codec(self.codec, fidelity, way_between(members, decode, decode)),
        )

    def _pick_decode(self, request: RequestFacts, members: RegistryView) -> Member:
        able = [member for member in members.decode if member.worker not in request.excluded]
        if not able:
            raise NoWorker(no_decode_worker(members))
        return self.policy.pick_decode(able, self.home)

    def _pick_prefill(self, facts: Facts) -> Sequence[Member]:
        """Return the workers of the best one's datacenter, the best first: a plan holds for one datacenter."""
        if facts.is_cached or not facts.prefill:
            return ()
        ranked = self.policy.rank_prefill(facts)
        return [member for member in ranked if member.dc == ranked[0].dc]

    def _sources(
        self, facts: Facts, members: RegistryView, prefill: Member | None, num_blocks: int
    ) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
        """Return where decode's pool and the prefill worker's pool pull from."""
        if not num_blocks:
            return (), ()
        request, decode, credits = facts.request, facts.decode, facts.credits
        seen_there = credits  # as the prefill worker's pool sees it: each pool has suspects of its own
        if prefill is not None and (suspects := members.suspects(prefill.dc)) != facts.suspects:
            seen_there = credits_by_dc(request.keys, request.held, members, self.layout, suspects)
        nodes = {dc: members.nodes(dc) for dc in (*credits, *seen_there)}
        maker = None if prefill is None else prefill.dc
        if prefill is not None and prefill.dc not in nodes:  # its pool is not known, or not what it holds
            nodes[prefill.dc] = members.nodes(prefill.dc) or (prefill.pool_address,)
        for_decode = decode_sources(self.layout, decode.dc, maker, num_blocks, credits, nodes)
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
    return "local" if prefill.dc == facts.decode.dc else "remote"


def prefers_exact(exact: Plan, lossy: Plan) -> bool:
    """Return whether a request that allows loss does better in the lossless chain: the longer cached prefix wins.

    Of equal ones the lossless, unless blocks have to cross from another datacenter.
    """
    if exact.usable_blocks != lossy.usable_blocks:
        return exact.usable_blocks > lossy.usable_blocks
    return not exact.crosses
