"""The paper's rule: long prompts go away, short ones stay (arXiv 2604.15039, routing).

    abundant bandwidth:  home if l_total - max(l_prfaas, l_pd) <= t, else away; the longer prefix is moved first
    scarce bandwidth:    home if l_total - l_pd <= t, else away; each side uses its own cache

Below t lies a second threshold that other systems have, too (NVIDIA Dynamo's conditional disaggregation): what is
computed sooner than handed over is computed where it is decoded.
"""

from dataclasses import dataclass
from typing import Literal

from services.gateway.routing.facts import Facts
from services.gateway.routing.policy import Decision, least_loaded, ranked
from shared.ids import Datacenter

Bandwidth = Literal["abundant", "scarce"]


@dataclass(frozen=True, slots=True)
class Threshold:
    """Prefills in the other, compute-dense datacenter what has more uncached tokens than a fixed threshold, and on the
    decode worker what has no more than another.

    A prompt whose prefix is being computed for another request follows that one wherever it is: each block is computed
    once. Within the preferred datacenter the longest cached prefix decides, then the least load.
    """

    offload_threshold_tokens: int = 512  # t
    decode_threshold_tokens: int = 0
    bandwidth: Bandwidth = "abundant"

    def decide(self, facts: Facts) -> Decision:
        decode, following = least_loaded(facts), facts.following
        uncached = self._uncached_tokens(facts)
        if uncached <= self.decode_threshold_tokens and not following.any():
            return Decision(decode, (), self._caches(facts, facts.home))
        prefers_home = uncached <= self.offload_threshold_tokens
        is_where_it_should_not = facts.is_away == prefers_home
        order = ranked(-following, is_where_it_should_not, -facts.longest_prefix, facts.prefill.rows["requests"])
        maker = facts.prefill[order[0]].dc if order else facts.home
        return Decision(decode, order, self._caches(facts, maker))

    def _uncached_tokens(self, facts: Facts) -> int:
        if self.bandwidth == "abundant":
            return facts.num_uncached_tokens
        credit = facts.credits.get(facts.home)
        return facts.request.num_tokens - (credit.longest if credit else 0) * facts.layout.block_tokens

    def _caches(self, facts: Facts, maker: Datacenter) -> frozenset[Datacenter] | None:
        return None if self.bandwidth == "abundant" else frozenset({maker, facts.home})
