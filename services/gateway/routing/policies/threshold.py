"""The paper's rule for abundant bandwidth: long prompts go away, short ones stay (arXiv 2604.15039, routing)."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.gateway.cluster.registry import Member
from services.gateway.routing.facts import Facts
from services.gateway.routing.policy import least_loaded_at_home
from shared.ids import Datacenter


@dataclass(frozen=True, slots=True)
class Threshold:
    """Prefills in the other, compute-dense datacenter what has more uncached tokens than a fixed threshold.

    A prompt whose prefix is being computed for another request follows that one wherever it is: each block is computed
    once. Within the preferred datacenter the longest cached prefix decides, then the least load.
    """

    offload_threshold_tokens: int

    def pick_decode(self, able: Sequence[Member], home: Datacenter) -> Member:
        return least_loaded_at_home(able, home)

    def rank_prefill(self, facts: Facts) -> Sequence[Member]:
        prefers_home = facts.num_uncached_tokens <= self.offload_threshold_tokens

        def merit(member: Member) -> tuple[int, bool, int, int, str]:
            is_where_it_should_not = (member.dc == facts.decode.dc) != prefers_home
            return (
                -facts.num_following(member),
                is_where_it_should_not,
                -facts.longest_prefix(member),
                member.load,
                member.worker,
            )

        return sorted(facts.prefill, key=merit)
