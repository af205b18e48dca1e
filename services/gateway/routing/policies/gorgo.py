"""GORGO's cost of a replica across regions (arXiv 2602.11688): everything in milliseconds, the network's included.

cost = queued tokens * ms/token + 0.5 * running tokens * ms/token + uncached tokens * ms/token + network latency
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.gateway.routing.costs.transfer import Transfers
from services.gateway.routing.facts import Facts
from services.gateway.routing.policy import Decision, drawn, least_loaded, ranked, turn


@dataclass(frozen=True, slots=True)
class Gorgo:
    """Prefills where queue, own prompt and network latency cost the least.

    A replica of the paper serves a whole request; here it is a prefill worker, and the latency is the round trip
    between its datacenter and decode's. The time of a token is the worker's own, without what grows with the square of
    the length. The paper knows no bytes on the link, and neither does this.
    """

    running_weight: float = 0.5
    network_weight: float = 1.0

    def decide(self, facts: Facts) -> Decision:
        rows = facts.prefill.rows
        token_s = rows["token_s"] + rows["base_s"] / np.maximum(1.0, rows["step_tokens"])
        uncached = facts.request.num_tokens - facts.longest_prefix * facts.layout.block_tokens
        tokens = rows["queued_tokens"] + self.running_weight * rows["context_tokens"] + np.maximum(uncached, 0)
        cost = tokens * token_s + self.network_weight * self._latency_s(facts)
        return Decision(least_loaded(facts), ranked(cost, turn(len(rows), drawn(facts.request.draw, len(rows))[0])))

    def _latency_s(self, facts: Facts) -> NDArray[np.float64]:
        """Return the round trip between each prefill worker and home; 0 at home."""
        way = Transfers(facts).way
        trips = [0.0 if dc == facts.home else way(dc, facts.home).round_trip_s for dc in facts.dcs]
        return np.array(trips).take(facts.prefill.rows["dc"])
