"""The cost of NVIDIA Dynamo's KV router, and its conditional disaggregation (ai-dynamo 1.6, routing concepts).

    cost = scale * max(active_prefill + incoming - overlap_credit, 0) + decode_blocks      in blocks, the lowest wins

The credit is the cached overlap, weighed by where it lies: on the device 1.0, in host memory 0.75, on disk 0.25.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.gateway.cluster.workers import Rows
from services.gateway.routing.datacenters import Credit
from services.gateway.routing.facts import Facts
from services.gateway.routing.policy import Decision, drawn, ranked, turn
from shared.kv.layout import KvLayout
from shared.kv.resume import longest_resume


@dataclass(frozen=True, slots=True)
class DynamoTerms:
    """What Dynamo's policies have in common: the terms of a cost, and when a prompt stays with decode."""

    prefill_load_scale: float = 1.0
    device_credit: float = 1.0
    host_credit: float = 0.75
    disk_credit: float = 0.25
    isl_threshold: int = 2048  # tokens
    isl_ratio: float = 0.7

    def stays_with_decode(self, facts: Facts) -> bool:
        """Return whether `isl_bounding` lets decode prefill: few uncached tokens, and few of all.

        Cached is what decode's own datacenter holds.
        """
        credit = facts.credits.get(facts.home)
        num_cached = credit.longest * facts.layout.block_tokens if credit else 0
        uncached = max(0, facts.request.num_tokens - num_cached)
        return uncached < self.isl_threshold and uncached < self.isl_ratio * facts.request.num_tokens

    def adjusted_prefill(self, facts: Facts) -> NDArray[np.float64]:
        """Return the prompt blocks that each prefill worker would have to compute, credits subtracted."""
        active = facts.prefill.rows["queued_tokens"] / facts.layout.block_tokens
        incoming = facts.request.num_tokens / facts.layout.block_tokens
        left = np.maximum(active + incoming - self._overlap_credit(facts), 0.0)
        return np.asarray(self.prefill_load_scale * left)

    def decode_blocks(self, facts: Facts, rows: Rows) -> NDArray[np.float64]:
        """Return the blocks of running requests on each worker, with this one."""
        return np.asarray((rows["context_tokens"] + facts.request.num_tokens) / facts.layout.block_tokens)

    def decode_row(self, facts: Facts) -> int:
        """Return the decode worker of least cost: without prefill work, that is the one with the fewest blocks."""
        rows = facts.decode.rows
        return ranked(self.decode_blocks(facts, rows), _by_chance(facts, len(rows)))[0]

    def prefill_order(self, facts: Facts, cost: NDArray[np.float64]) -> list[int]:
        """Return prefill workers by their cost; chance orders equal ones."""
        return ranked(cost, _by_chance(facts, len(cost)))

    def _overlap_credit(self, facts: Facts) -> NDArray[np.float64]:
        in_pools = [self._pool_credit(facts.layout, facts.credits.get(dc)) for dc in facts.dcs]
        by_worker = np.array(in_pools, np.float64).take(facts.prefill.rows["dc"])
        return np.asarray(np.maximum(by_worker, self.device_credit * facts.following))

    def _pool_credit(self, layout: KvLayout, credit: Credit | None) -> float:
        if credit is None:
            return 0.0
        if credit.on_tier is None:
            return self.host_credit * credit.longest
        in_memory = int(longest_resume(layout, credit.groups & ~credit.on_tier))
        return self.host_credit * in_memory + self.disk_credit * (credit.longest - in_memory)


@dataclass(frozen=True, slots=True)
class DynamoCost(DynamoTerms):
    """Prefills where the sum of prompt blocks to compute and of running requests' blocks is lowest.

    It knows neither links nor the speed of workers. A pool's memory counts as host memory, its object tier as disk, and
    blocks that a worker computes for another request as its device's.
    """

    def decide(self, facts: Facts) -> Decision:
        decode = self.decode_row(facts)
        if self.stays_with_decode(facts):
            return Decision(decode)
        cost = self.adjusted_prefill(facts) + self.decode_blocks(facts, facts.prefill.rows)
        return Decision(decode, self.prefill_order(facts, cost))


def _by_chance(facts: Facts, num_rows: int) -> NDArray[np.intp]:
    return turn(num_rows, drawn(facts.request.draw, num_rows)[0])
