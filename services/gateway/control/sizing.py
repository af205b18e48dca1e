"""How many instances a rate of requests takes, and when another number is worth a change. Pure."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.gateway.control.settled import Settled
from services.gateway.routing.planning.case import PlanningCase, threshold_grid
from services.gateway.routing.planning.loads import stage_loads
from services.gateway.routing.planning.search import rate_surface

NUM_THRESHOLDS = 256
"""Of a search: a step is less than half a percent of the longest request."""

WORTH = 0.1
"""A change of instances is worth it from a tenth of the rate on: measured profiles err by about as much, and what a
worker costs that starts or changes its role is not in the model."""

LOOKS_TO_RESIZE = 3
"""Plans in a row that must ask for a change: a minute and a half, longer than the memory of the arrival rate."""


class Replicas(NamedTuple):
    """Instances by their part in the paper's model."""

    prfaas: int  # prefill in other datacenters
    prefill: int  # at home
    decode: int

    @property
    def total(self) -> int:
        return sum(self)


def thresholds(case: PlanningCase, block_tokens: int) -> NDArray[np.float64]:
    """Return the grid of t for the lengths of a case: not finer than blocks."""
    return threshold_grid(case.lengths, max(block_tokens, case.lengths.max_tokens / NUM_THRESHOLDS))


def sustained_per_s(case: PlanningCase, replicas: Replicas, grid: NDArray[np.float64]) -> float:
    """Return Lambda of so many instances at their best threshold."""
    if not replicas.decode:
        return 0.0
    pd = replace(case.pd, instances=replicas.prefill + replicas.decode)
    sized = replace(case, prfaas=replace(case.prfaas, instances=(replicas.prfaas,)), pd=pd)
    return float(rate_surface(sized, grid, (replicas.prefill,)).requests_per_s.max())


def fewest_replicas(case: PlanningCase, requests_per_s: float, grid: NDArray[np.float64]) -> Replicas:
    """Return the fewest instances that sustain a rate: of equally few, those that load the link least.

    Equations (3) to (5) are solved for the instances, for each threshold whose KV the link carries. Where nobody
    prefills away, nothing is offloaded. Somebody always decodes.
    """
    loads = stage_loads(case, grid)
    is_offloaded, at_home = loads.long_share > 0, loads.short_share > 0
    prfaas = _instances(requests_per_s * np.where(is_offloaded, loads.long_share * loads.prfaas_s, 0.0))
    prefill = _instances(requests_per_s * np.where(at_home, loads.short_share * loads.pd_prefill_s, 0.0))
    crossing = requests_per_s * np.where(is_offloaded, loads.long_share * loads.link_kv_bytes, 0.0)
    is_possible = crossing <= case.link.usable_bytes_per_s
    if not max(case.prfaas.instances):
        is_possible &= ~is_offloaded
    total = np.where(is_possible, prfaas + prefill, math.inf)
    best = int(np.flatnonzero(total == total.min())[-1])
    point = case.pd.decode
    decode = _instances(np.array(requests_per_s * case.output_tokens * point.step_s / point.batch))
    return Replicas(int(prfaas[best]), int(prefill[best]), max(1, int(decode)))


def is_worth_it(
    case: PlanningCase, held: Replicas, proposed: Replicas, needed_per_s: float, grid: NDArray[np.float64]
) -> bool:
    """Return whether a change gains enough: the held instances are too few for the rate, or fewer do with a margin, or
    as many sustain more when they are divided otherwise."""
    held_per_s = sustained_per_s(case, held, grid)
    if held_per_s * (1 + WORTH) < needed_per_s:
        return True
    if proposed.total == held.total:
        return sustained_per_s(case, proposed, grid) > held_per_s * (1 + WORTH)
    return fewest_replicas(case, needed_per_s * (1 + WORTH), grid).total < held.total


def resized(
    case: PlanningCase, held: Settled[Replicas], needed_per_s: float, grid: NDArray[np.float64]
) -> Settled[Replicas]:
    """Return the instances that are asked for after one more look."""
    proposed = fewest_replicas(case, needed_per_s, grid)
    is_other = proposed != held.value and is_worth_it(case, held.value, proposed, needed_per_s, grid)
    return held.after(proposed, is_other=is_other, looks=LOOKS_TO_RESIZE)


def _instances(busy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return whole instances for so many that are always busy; rounding asks for none."""
    return np.asarray(np.ceil(busy - 1e-9))
