"""The emptiest prefill worker anywhere: what load balancers without an eye for caches do."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.gateway.cluster.registry import Member
from services.gateway.routing.facts import Facts
from services.gateway.routing.policy import least_loaded_at_home
from shared.ids import Datacenter


@dataclass(frozen=True, slots=True)
class LeastLoad:
    """Prefills on the worker with the fewest requests, in whichever datacenter; the cached prefix breaks ties.

    A prompt whose prefix is being computed for another request follows that one all the same.
    """

    def pick_decode(self, able: Sequence[Member], home: Datacenter) -> Member:
        return least_loaded_at_home(able, home)

    def rank_prefill(self, facts: Facts) -> Sequence[Member]:
        def merit(member: Member) -> tuple[int, int, int, str]:
            return -facts.num_following(member), member.load, -facts.longest_prefix(member), member.worker

        return sorted(facts.prefill, key=merit)
