"""Mooncake's KVCache-centric scheduling (Algorithm 1, FAST'25): the worker of the least estimated TTFT.

For each prefill worker, which has `prefix_len` of the prompt cached, while `best_len` is the longest cached anywhere:

    best_len / prefix_len > kvcache_balancing_threshold:  transfer the difference first, then compute behind best_len
    otherwise:                                            compute behind prefix_len
    TTFT = EstTransfer + EstQueue + EstPrefill
"""

from dataclasses import dataclass

import numpy as np

from services.gateway.routing.costs.steps import prefill_s, step_s
from services.gateway.routing.costs.transfer import Transfers, everybody
from services.gateway.routing.facts import Facts
from services.gateway.routing.policy import Decision, drawn, ranked, turn


@dataclass(frozen=True, slots=True)
class MooncakeTtft:
    """Prefills where queue, transfer of the cached prefix and computation take the least time together.

    The estimates come from the workers' own profiles and from the links' reports. As in the algorithm, the way of the
    KV from prefill to decode counts for nothing. Decode is the worker of the shortest step. Nobody is rejected here:
    that is admission's.
    """

    kvcache_balancing_threshold: float = 1.5

    def decide(self, facts: Facts) -> Decision:
        decoding = facts.decode.rows
        decode = ranked(step_s(decoding, 1, facts.request.num_tokens), decoding["requests"])[0]
        if not len(facts.prefill):
            return Decision(decode)
        rows, prefix = facts.prefill.rows, facts.longest_prefix
        best = facts.num_usable
        is_moved = best > self.kvcache_balancing_threshold * prefix
        transfers, whole = Transfers(facts), everybody(facts)  # the longest prefix that is cached anywhere
        transfer = np.array([transfers.gathering(dc, whole).seconds for dc in facts.dcs]).take(rows["dc"])
        end = facts.num_enough * facts.layout.block_tokens
        first = np.where(is_moved, best, prefix) * facts.layout.block_tokens
        computing = prefill_s(rows, np.minimum(first, end).astype(float), end)
        cost = np.where(is_moved, transfer, 0.0) + rows["queued_s"] + computing
        order = ranked(cost, turn(len(rows), drawn(facts.request.draw, len(rows))[0]))
        if is_moved[order[0]]:
            return Decision(decode, order)
        return Decision(decode, order, frozenset({facts.prefill[order[0]].dc}))
