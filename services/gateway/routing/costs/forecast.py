"""The forecast of a decision, whichever policy has taken it: metrics, admission and bookkeeping rest on it."""

import numpy as np

from services.gateway.routing.costs.candidates import handed_over, on_decode
from services.gateway.routing.costs.prefix import PrefixUse
from services.gateway.routing.facts import Facts
from services.gateway.routing.plan import Forecast
from services.gateway.routing.policy import Decision


def forecast_of(facts: Facts, decision: Decision) -> Forecast:
    """Return what is expected of a decision. `facts` have the caches that the decision uses."""
    use = PrefixUse(facts.num_usable, frozenset(facts.credits))
    if facts.is_cached or not decision.prefill:
        return on_decode(facts, use).forecast(facts, decision.decode)
    row = decision.prefill[0]
    ways = handed_over(facts, facts.prefill[row].dc, use, decision.decode)
    return ways.forecast(facts, int(np.flatnonzero(ways.rows == row)[0]))
