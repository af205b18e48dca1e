"""Routing by predicted cost: the way that serves the request soonest, and lets others wait least."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.gateway.routing.costs.candidates import Candidates, every_way
from services.gateway.routing.facts import Facts
from services.gateway.routing.plan import Slo
from services.gateway.routing.policy import Decision, ranked

AWAY_MARGIN = 0.05
"""By what part a way over a link has to be better than one at home. Forecasts of links are less certain than those of
workers, and bytes that need not cross leave the link to those that must."""

EQUAL = 0.02
"""Ways whose cost differs by no more than this part are equally good: chance takes one of them, so that gateways with
the same news do not all send to the same worker."""

RISKY_FROM, MISSED_FROM = 0.8, 1.2
"""From which part of an SLO on it may be missed, and from which it will be: forecasts err by that much."""

MISS_S = 2.0
"""What a missed SLO costs, in seconds before a first token."""


class _Scored(NamedTuple):
    candidates: Candidates
    cost_s: NDArray[np.float64]  # one for each candidate

    @property
    def best_s(self) -> float:
        return float(self.cost_s.min())


@dataclass(frozen=True, slots=True)
class ByCost:
    """Compares decode alone and every prefill worker, with each use of the cached prefix that is worth it.

    The cost is the time to the request's first token, what others wait longer for it, and what a missed SLO costs.
    """

    def decide(self, facts: Facts) -> Decision:
        best = min((_scored(facts, candidates) for candidates in every_way(facts)), key=lambda scored: scored.best_s)
        ways, order = best.candidates, _in_order(best.cost_s, facts.request.draw)
        first = order[0]
        return Decision(
            decode=int(ways.decode[first]),
            prefill=order if ways.is_handed_over else (),
            pull_from=ways.use(first).pull_from,
            forecast=ways.forecast(facts, first),
        )


def _scored(facts: Facts, ways: Candidates) -> _Scored:
    crosses = [any(use.target == facts.home for use in crossings) for crossings in ways.crossings]
    margin = 1 + AWAY_MARGIN * np.array(crosses, float)[ways.dc]
    return _Scored(ways, ways.ttft_s * margin + ways.others_s + _risk_s(ways, facts.request.slo))


def _risk_s(candidates: Candidates, slo: Slo) -> NDArray[np.float64]:
    risk = np.zeros(len(candidates.dc))
    for target, forecast in (
        (slo.ttft_s, candidates.ttft_s),
        (slo.time_per_output_token_s, candidates.time_per_output_token_s),
    ):
        if target:
            risk += np.clip((forecast / target - RISKY_FROM) / (MISSED_FROM - RISKY_FROM), 0, 1)
    return MISS_S * risk


def _in_order(cost_s: NDArray[np.float64], draw: float) -> list[int]:
    """Return candidates from the best on, the first drawn from those that are as good as the best."""
    order = ranked(cost_s)
    num_equal = int(np.count_nonzero(cost_s <= cost_s[order[0]] * (1 + EQUAL)))
    first = order.pop(int(draw * num_equal))
    return [first, *order]
