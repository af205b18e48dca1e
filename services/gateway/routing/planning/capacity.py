"""A capacity plan: one threshold, one split of the instances, and what follows from them."""

import math
from dataclasses import asdict, dataclass
from enum import StrEnum

import numpy as np

from services.gateway.routing.planning.case import BYTES_PER_GBIT, Averaging, Division, PlanningCase
from services.gateway.routing.planning.equations import (
    decode_rate_per_s,
    egress_needed_bytes_per_s,
    instances_rate_per_s,
    link_rate_per_s,
)
from services.gateway.routing.planning.first_token import unloaded_ttft
from services.gateway.routing.planning.loads import stage_loads


class Stage(StrEnum):
    """What a request passes, and what can bind."""

    PRFAAS = "prfaas"
    LINK = "link"
    PD_PREFILL = "pd_prefill"
    PD_DECODE = "pd_decode"


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """The steady state that a division sustains. Flat: an attribute, a key of JSON and a gauge have the same name.

    None stands for a quantity of requests that there are none of. `requests_per_s` is the least of the bounds.
    """

    averaging: Averaging  # how the rates were computed
    threshold_tokens: float | None  # t; None: nothing is offloaded
    prfaas_instances: int  # N_prfaas
    prefill_instances: int  # N_p
    decode_instances: int  # N_d
    long_share: float  # p
    long_tokens: float | None  # l_long
    short_tokens: float | None  # l_short
    prfaas_compute_per_s: float | None  # (3), first term
    link_per_s: float | None  # (3), second term
    prfaas_per_s: float | None  # Th_prfaas
    pd_prefill_per_s: float | None  # Th_pdp
    pd_decode_per_s: float  # Th_pdd
    requests_per_s: float  # Lambda
    bound_by: Stage
    ttft_mean_s: float  # of an empty system
    ttft_p90_s: float
    egress_needed_gbit_s: float | None  # (2), of a PrfaaS cluster that is never idle
    egress_gbit_s: float  # mean, at Lambda
    link_share: float  # of the capacity that egress takes

    @property
    def prefill_to_decode(self) -> float:
        """Th_prfaas + Th_pdp over Th_pdd: (8) asks for 1. Far below it prefill is short of instances, above it decode.

        At the optimum of whole instances it is seldom 1. Without decode instances it is infinite.
        """
        prefill_per_s = (self.prfaas_per_s or 0.0) + (self.pd_prefill_per_s or 0.0)
        return prefill_per_s / self.pd_decode_per_s if self.pd_decode_per_s else math.inf

    def to_json(self) -> dict[str, float | str | None]:
        """Return all fields as JSON has them."""
        return asdict(self)


def plan_of(case: PlanningCase, division: Division) -> CapacityPlan:
    """Work out equations (3) to (6) for one division."""
    loads = stage_loads(case, np.array([division.threshold_tokens]))
    p, short_share = float(loads.long_share[0]), float(loads.short_share[0])
    compute = link = at_home = needed = None
    bounds: dict[Stage, float] = {}
    if p > 0:
        needed = egress_needed_bytes_per_s(
            division.prfaas_instances, float(loads.link_kv_bytes[0]), float(loads.prfaas_s[0])
        )
        compute = instances_rate_per_s(division.prfaas_instances, float(loads.prfaas_s[0]))
        link = link_rate_per_s(case.link.usable_bytes_per_s, float(loads.link_kv_bytes[0]))
        bounds |= {Stage.PRFAAS: compute / p, Stage.LINK: link / p}
    if short_share > 0:
        at_home = instances_rate_per_s(division.prefill_instances, float(loads.pd_prefill_s[0]))
        bounds[Stage.PD_PREFILL] = at_home / short_share
    point = case.pd.decode
    decode = decode_rate_per_s(division.decode_instances, point.batch, point.step_s, case.output_tokens)
    bounds[Stage.PD_DECODE] = decode
    bound_by = min(bounds, key=lambda stage: bounds[stage])
    requests_per_s = bounds[bound_by]
    ttft = unloaded_ttft(case, division.threshold_tokens)
    egress_gbit_s = requests_per_s * p * float(loads.long_kv_bytes[0]) / BYTES_PER_GBIT if p > 0 else 0.0
    return CapacityPlan(
        averaging=case.averaging,
        threshold_tokens=division.threshold_tokens if p > 0 else None,
        prfaas_instances=division.prfaas_instances,
        prefill_instances=division.prefill_instances,
        decode_instances=division.decode_instances,
        long_share=p,
        long_tokens=float(loads.long_tokens[0]) if p > 0 else None,
        short_tokens=float(loads.short_tokens[0]) if short_share > 0 else None,
        prfaas_compute_per_s=compute,
        link_per_s=link,
        prfaas_per_s=None if compute is None or link is None else min(compute, link),
        pd_prefill_per_s=at_home,
        pd_decode_per_s=decode,
        requests_per_s=requests_per_s,
        bound_by=bound_by,
        ttft_mean_s=ttft.mean_s,
        ttft_p90_s=ttft.p90_s,
        egress_needed_gbit_s=None if needed is None else needed / BYTES_PER_GBIT,
        egress_gbit_s=egress_gbit_s,
        link_share=egress_gbit_s / case.link.capacity_gbit_s,
    )
