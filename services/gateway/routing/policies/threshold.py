"""The paper's rule for abundant bandwidth: long prompts go away, short ones stay (arXiv 2604.15039, routing).

Below it lies a second threshold that other systems have, too (NVIDIA Dynamo's conditional disaggregation): what is
computed sooner than handed over is computed where it is decoded.
"""

from dataclasses import dataclass

from services.gateway.routing.facts import Facts
from services.gateway.routing.policy import Decision, least_loaded, ranked


@dataclass(frozen=True, slots=True)
class Threshold:
    """Prefills in the other, compute-dense datacenter what has more uncached tokens than a fixed threshold, and on the
    decode worker what has no more than another.

    A prompt whose prefix is being computed for another request follows that one wherever it is: each block is computed
    once. Within the preferred datacenter the longest cached prefix decides, then the least load.
    """

    offload_threshold_tokens: int
    decode_threshold_tokens: int = 0

    def decide(self, facts: Facts) -> Decision:
        decode, following = least_loaded(facts), facts.following
        if facts.num_uncached_tokens <= self.decode_threshold_tokens and not following.any():
            return Decision(decode)
        prefers_home = facts.num_uncached_tokens <= self.offload_threshold_tokens
        is_where_it_should_not = facts.is_away == prefers_home
        order = ranked(-following, is_where_it_should_not, -facts.longest_prefix, facts.prefill.rows["requests"])
        return Decision(decode, order)
