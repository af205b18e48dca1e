"""Dynamo's `lmetric`: a product in place of a sum, so that neither term needs a weight (ai-dynamo 1.6).

cost = adjusted_prefill * (decode + 1)
"""

from dataclasses import dataclass

from services.gateway.routing.facts import Facts
from services.gateway.routing.policies.dynamo import DynamoTerms
from services.gateway.routing.policy import Decision


@dataclass(frozen=True, slots=True)
class Lmetric(DynamoTerms):
    """Prefills where the product of prompt blocks to compute and of requests, this one included, is lowest.

    The terms and conditional disaggregation are those of `DynamoCost`.
    """

    def decide(self, facts: Facts) -> Decision:
        decode = self.decode_row(facts)
        if self.stays_with_decode(facts):
            return Decision(decode)
        cost = self.adjusted_prefill(facts) * (facts.prefill.rows["requests"] + 1)
        return Decision(decode, self.prefill_order(facts, cost))
