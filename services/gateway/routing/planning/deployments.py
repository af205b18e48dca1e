"""The three deployments that the paper compares, each at its best division."""

from dataclasses import dataclass, replace

import numpy as np

from services.gateway.routing.planning.capacity import CapacityPlan, plan_of
from services.gateway.routing.planning.case import PlanningCase
from services.gateway.routing.planning.search import RateSurface, rate_surface


@dataclass(frozen=True, slots=True)
class Deployments:
    """Plans for the same requests."""

    prfaas_pd: CapacityPlan  # selective offload
    homogeneous_pd: CapacityPlan  # one larger PD cluster, no offload
    naive_heterogeneous: CapacityPlan  # all prefill in the PrfaaS cluster, all decode in the PD cluster


def compare_deployments(
    case: PlanningCase, surface: RateSurface, homogeneous_instances: int | None = None
) -> Deployments:
    """Plan all three. The homogeneous cluster has, unless told, a PD instance for each PrfaaS instance of the plan."""
    selective = plan_of(case, surface.best())
    num_homogeneous = homogeneous_instances or case.pd.instances + selective.prfaas_instances
    return Deployments(selective, homogeneous(case, num_homogeneous), naive(case))


def homogeneous(case: PlanningCase, instances: int) -> CapacityPlan:
    """Plan a PD cluster of so many instances alone: only N_p is searched."""
    alone = replace(case, prfaas=replace(case.prfaas, instances=(0,)), pd=replace(case.pd, instances=instances))
    return plan_of(alone, rate_surface(alone, np.array([case.lengths.max_tokens])).best())


def naive(case: PlanningCase) -> CapacityPlan:
    """Plan with every prompt offloaded: t = 0, N_p = 0."""
    return plan_of(case, rate_surface(case, np.array([0.0]), prefill_instances=(0,)).best())
