"""The paper's rule for abundant bandwidth: long prompts go away, short ones stay (arXiv 2604.15039, routing).

Below it lies a second threshold that other systems have, too (NVIDIA Dynamo's conditional disaggregation): what is
computed sooner than handed over is computed where it is decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.gateway.cluster.registry import Member
from services.gateway.routing.facts import Facts
from services.gateway.routing.policy import least_loaded_at_home
from shared.ids import Datacenter


@dataclass(frozen=True, slots=True)
class Threshold:
    """Prefills in the other, compute-dense datacenter what has more uncached tokens than a fixed threshold, and on the
    decode worker what has no more than another.

    A prompt whose prefix is being computed for another request follows that one wherever it is: each block is computed
    once. Within the preferred datacenter the longest cached prefix decides, then the least load.
    """

    offload_threshold_tokens: int
    decode_threshold_tokens: int = 0

    def pick_decode(self, able: Sequence[Member], home: Datacenter) -> Member:
        return least_loaded_at_home(able, home)

    def rank_prefill(self, facts: Facts) -> Sequence[Member]:
        follows = any(facts.num_following(member) for member in facts.prefill)
        if facts.num_uncached_tokens <= self.decode_threshold_tokens and not follows:
            return ()
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
