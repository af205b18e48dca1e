"""llm-d's weighted scorers, and its decider between decode alone and a prefill worker.

    score = 2 * prefix + 1 * queue + 1 * kv_cache_utilization      each from 0 to 1, the highest wins

prefix: the cached part of the prompt. queue: (max - q) / (max - min) of the waiting requests q; 1 if all have as many.
kv_cache_utilization: the free part of the KV memory. Source: llm-d's router, its scorers and `prefix-based-pd-decider`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.gateway.cluster.workers import Rows
from services.gateway.routing.facts import Facts
from services.gateway.routing.policy import Decision, drawn, ranked, turn


@dataclass(frozen=True, slots=True)
class WeightedScores:
    """Scores decode workers and prefill workers alike. A prompt with few uncached tokens stays with decode.

    A worker's cached prefix is what the pool of its datacenter has, or what the worker computes for another request.
    """

    prefix_weight: float = 2.0
    queue_weight: float = 1.0
    kv_weight: float = 1.0
    non_cached_tokens: int = 16  # from so many on a prefill worker computes them; cached is what home has

    def decide(self, facts: Facts) -> Decision:
        credit = facts.credits.get(facts.home)
        cached = credit.longest if credit else 0
        decode = self._order(facts, facts.decode.rows, np.full(len(facts.decode), cached, np.intp))[0]
        if facts.request.num_tokens - cached * facts.layout.block_tokens < self.non_cached_tokens:
            return Decision(decode)
        return Decision(decode, self._order(facts, facts.prefill.rows, facts.longest_prefix))

    def _order(self, facts: Facts, rows: Rows, cached_blocks: NDArray[np.intp]) -> list[int]:
        num_blocks = max(1, len(facts.request.keys) or facts.num_enough)
        score = (
            self.prefix_weight * np.minimum(1.0, cached_blocks / num_blocks)
            + self.queue_weight * _queue_score(np.maximum(0.0, rows["requests"] - rows["running"]))
            + self.kv_weight * (1 - rows["kv_usage"])
        )
        first, _ = drawn(facts.request.draw, len(rows))
        return ranked(-score, turn(len(rows), first))


def _queue_score(waiting: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = np.ptp(waiting) if len(waiting) else 0.0
    return (waiting.max() - waiting) / spread if spread else np.ones(len(waiting))
