"""The exhaustive search over t, N_p and N_prfaas that stands for equations (7) and (8).

Lambda is highest where neither prefill stage waits for the other, (7), and both together feed decode, (8). Instances
are whole, so that the search compares all divisions instead of solving the equations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.gateway.routing.planning.case import Division, PlanningCase
from services.gateway.routing.planning.equations import (
    decode_rate_per_s,
    instances_rate_per_s,
    link_rate_per_s,
    request_rate_per_s,
)
from services.gateway.routing.planning.loads import stage_loads

TIED = 1e-9
"""Divisions whose Lambda differs by no more than this part are equally good: rounding does not choose."""


@dataclass(frozen=True, slots=True)
class RateSurface:
    """Lambda over all divisions of a case."""

    thresholds: NDArray[np.float64]  # [T]
    prfaas_instances: tuple[int, ...]  # [R]
    prefill_instances: tuple[int, ...]  # [P]
    requests_per_s: NDArray[np.float64]  # [R, P, T]
    pd_instances: int  # N_p + N_d

    def best(self) -> Division:
        """Return the division with the highest Lambda.

        Of equally good ones the one with the fewest PrfaaS instances, then with the highest threshold, which loads the
        link least, then with the fewest prefill instances.
        """
        rates = self.requests_per_s
        r, p, t = np.nonzero(rates >= rates.max() * (1 - TIED))
        num_prfaas, num_prefill = np.array(self.prfaas_instances)[r], np.array(self.prefill_instances)[p]
        first = np.lexsort((num_prefill, -self.thresholds[t], num_prfaas))[0]
        prefill = int(num_prefill[first])
        return Division(float(self.thresholds[t[first]]), int(num_prfaas[first]), prefill, self.pd_instances - prefill)


def rate_surface(
    case: PlanningCase, thresholds: NDArray[np.float64], prefill_instances: Sequence[int] | None = None
) -> RateSurface:
    """Compute (6) for every threshold, every N_prfaas of the case and every N_p, from 0 to all unless given."""
    num_pd = case.pd.instances
    splits = tuple(range(num_pd + 1)) if prefill_instances is None else tuple(prefill_instances)
    loads, point = stage_loads(case, thresholds), case.pd.decode
    link = link_rate_per_s(case.link.usable_bytes_per_s, loads.link_kv_bytes)
    rates = np.empty((len(case.prfaas.instances), len(splits), len(thresholds)))
    for r, num_prfaas in enumerate(case.prfaas.instances):
        prfaas = np.minimum(instances_rate_per_s(num_prfaas, loads.prfaas_s), link)  # (3)
        for p, num_prefill in enumerate(splits):
            at_home = instances_rate_per_s(num_prefill, loads.pd_prefill_s)  # (4)
            decode = decode_rate_per_s(num_pd - num_prefill, point.batch, point.step_s, case.output_tokens)  # (5)
            rates[r, p] = request_rate_per_s(prfaas, at_home, decode, loads.long_share, loads.short_share)
    return RateSurface(thresholds, case.prfaas.instances, splits, rates, num_pd)
