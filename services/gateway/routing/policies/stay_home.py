"""Prefill beside decode: for links that are slow, or dear, or not trusted with KV."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.gateway.cluster.registry import Member
from services.gateway.routing.facts import Facts
from services.gateway.routing.policy import least_loaded_at_home
from shared.ids import Datacenter


@dataclass(frozen=True, slots=True)
class StayHome:
    """Prefills in decode's datacenter, however long the prompt; elsewhere only while nobody at home can.

    At home a prompt follows the worker that computes its prefix already, then the longest cached prefix, then the least
    load.
    """

    def pick_decode(self, able: Sequence[Member], home: Datacenter) -> Member:
        return least_loaded_at_home(able, home)

    def rank_prefill(self, facts: Facts) -> Sequence[Member]:
        def merit(member: Member) -> tuple[bool, int, int, int, str]:
            is_away = member.dc != facts.decode.dc
            return is_away, -facts.num_following(member), -facts.longest_prefix(member), member.load, member.worker

        return sorted(facts.prefill, key=merit)
