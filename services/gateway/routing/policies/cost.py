"""Routing by predicted cost: the way that serves the request soonest, and lets others wait least."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.gateway.routing.costs.candidates import Candidates, every_way
from services.gateway.routing.costs.others import MOST_BUSY
from services.gateway.routing.costs.steps import Seconds, longest_step_s
from services.gateway.routing.facts import Facts
from services.gateway.routing.plan import ComparedWay, PlanKind
from services.gateway.routing.policy import Decision, ranked

AWAY_MARGIN = 0.05
"""By what part a way over a link has to be better than one at home. Forecasts of links are less certain than those of
workers, and bytes that need not cross leave the link to those that must."""

EQUAL = 0.02
"""Ways whose cost differs by no more than this part are equally good: chance takes one of them, so that gateways with
the same news do not all send to the same worker."""

RISKY_FROM, MISSED_FROM = 0.8, 1.2
"""From which part of an SLO on it may be missed, and from which it will be: forecasts err by that much."""

MISS_S = 5.0
"""What a missed SLO costs, in seconds before a first token."""

LATE_WEIGHT = 0.03
"""What a second behind the SLO of the first token weighs against one before it. A request that is late everywhere takes
the way that is least in the way of those that are not."""


MAX_WAYS = 6
"""Ways that a decision tells of."""


class _Scored(NamedTuple):
    candidates: Candidates
    cost_s: Seconds  # one for each candidate

    @property
    def best_s(self) -> float:
        return float(self.cost_s.min())


@dataclass(frozen=True, slots=True)
class ByCost:
    """Compares decode alone and every prefill worker, with each use of the cached prefix that is worth it.

    The cost is the time to the request's first token, what others wait longer for it, and what a missed SLO costs.
    """

    def decide(self, facts: Facts) -> Decision:
        found = [_scored(facts, candidates) for candidates in every_way(facts)]
        best = min(found, key=lambda scored: scored.best_s)
        ways, order = best.candidates, _in_order(best.cost_s, facts.request.draw)
        first = order[0]
        return Decision(
            decode=int(ways.decode[first]),
            prefill=order if ways.is_handed_over else (),
            pull_from=ways.use(first).pull_from,
            forecast=ways.forecast(facts, first),
            ways=_told(facts, found, best, first),
        )


def _scored(facts: Facts, ways: Candidates) -> _Scored:
    slo = facts.request.slo
    crosses = [any(use.target == facts.home for use in crossings) for crossings in ways.crossings]
    margin = 1 + AWAY_MARGIN * np.array(crosses, float)[ways.dc]
    cost_s = _weighed(ways.ttft_s, slo.ttft_s) * margin + ways.others_s
    if slo.ttft_s:
        cost_s += MISS_S * _risk(ways.ttft_s, slo.ttft_s)
    if slo.time_per_output_token_s:
        own = _risk(ways.time_per_output_token_s, slo.time_per_output_token_s)
        cost_s += MISS_S * (own + _risk_of_others(facts, ways, slo.time_per_output_token_s))
    return _Scored(ways, cost_s)


def _told(facts: Facts, found: Sequence[_Scored], best: _Scored, first: int) -> tuple[ComparedWay, ...]:
    """Return the way that was taken and the cheapest others, in the order of their cost."""
    cheapest = nsmallest(MAX_WAYS, ((cost_s, i, row) for i, one in enumerate(found) for cost_s, row in _least(one)))
    taken = next(i for i, one in enumerate(found) if one is best)
    if all((i, row) != (taken, first) for _, i, row in cheapest):  # chance has drawn it from equally good ones
        cheapest[-1:] = [(float(best.cost_s[first]), taken, first)]
    told: dict[tuple[object, ...], ComparedWay] = {}
    for cost_s, i, row in sorted(cheapest):
        way = _way(facts, found[i].candidates, row, cost_s)
        is_chosen = (i, row) == (taken, first)
        key = way[:-1]  # uses of a prefix that nobody has are the same way
        if is_chosen or key not in told:
            told[key] = way._replace(is_chosen=is_chosen)
    return tuple(told.values())


def _least(scored: _Scored) -> Iterator[tuple[float, int]]:
    """Yield the cost and the row of the cheapest candidates, in any order."""
    cost_s = scored.cost_s
    if len(cost_s) <= MAX_WAYS:
        return zip(cost_s.tolist(), range(len(cost_s)), strict=True)
    rows = np.argpartition(cost_s, MAX_WAYS)[:MAX_WAYS]
    return zip(cost_s[rows].tolist(), rows.tolist(), strict=True)


def _way(facts: Facts, ways: Candidates, row: int, cost_s: float) -> ComparedWay:
    num_cached = ways.use(row).num_blocks
    kind: PlanKind = "none" if num_cached >= facts.num_enough else "decode_only"
    member = facts.decode[int(ways.decode[row])]
    if ways.is_handed_over:
        member = facts.prefill[row]
        kind = "local" if member.dc == facts.home else "remote"
    return ComparedWay(kind, member, num_cached, cost_s, float(ways.ttft_s[row]))


def _weighed(ttft_s: Seconds, slo_s: float | None) -> Seconds:
    in_time = np.minimum(ttft_s, slo_s or np.inf)
    return np.asarray(in_time + LATE_WEIGHT * (ttft_s - in_time))


def _risk_of_others(facts: Facts, ways: Candidates, slo_s: float) -> NDArray[np.float64]:
    """Return how many running requests more are to miss their time per output token, if their SLO is this one's.

    Prompts take the share `busy` of their worker's time already; this one adds its own, spread over an answer. Workers
    that cut their steps to a latency target (`PRFAAS_INTER_TOKEN_S`) within the SLO keep it in any case.
    """
    rows, step_s = facts.decode.rows[ways.decode], ways.time_per_output_token_s
    num_tokens = np.minimum(facts.request.output_tokens or np.inf, rows["answer_tokens"])
    shares = rows["busy"], rows["busy"] + ways.decode_s / (step_s * num_tokens)
    before, after = (_risk(step_s / (1 - np.minimum(share, MOST_BUSY)), slo_s) for share in shares)
    return np.where(longest_step_s(rows) <= slo_s, 0.0, rows["running"] * (after - before))


def _risk(forecast: Seconds, slo_s: float) -> NDArray[np.float64]:
    """Return the probability to miss an SLO: linear between the two shares of it."""
    return np.asarray(np.clip((forecast / slo_s - RISKY_FROM) / (MISSED_FROM - RISKY_FROM), 0, 1))


def _in_order(cost_s: NDArray[np.float64], draw: float) -> list[int]:
    """Return candidates from the best on, the first drawn from those that are as good as the best."""
    order = ranked(cost_s)
    num_equal = int(np.count_nonzero(cost_s <= cost_s[order[0]] * (1 + EQUAL)))
    first = order.pop(int(draw * num_equal))
    return [first, *order]
