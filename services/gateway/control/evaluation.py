"""The long timescale: what the fleet sustains, how it would best be divided, how many workers are wanted. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from services.gateway.cluster.view import RegistryView
from services.gateway.control.case import Fleet, PlanningTerms, assumptions, doubts, fleet_of, obstacles, planning_case
from services.gateway.control.observed import Observed
from services.gateway.control.settled import Settled
from services.gateway.control.sizing import Replicas, resized, thresholds
from services.gateway.control.ways import WideWay
from services.gateway.routing.planning.capacity import CapacityPlan, Stage, plan_of
from services.gateway.routing.planning.search import rate_surface


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One look. Plans are None where none can be made; `reasons` then say why, or why nothing was decided."""

    requests_per_s: float  # that the plans are compared with
    present: Replicas
    current: CapacityPlan | None = None  # of the workers as they are, at their best threshold
    best: CapacityPlan | None = None  # of as many workers, divided anew
    wanted: Settled[Replicas] | None = None  # None: nothing was decided yet
    utilisation: Mapping[Stage, float] = field(default_factory=lambda: MappingProxyType({}))  # of `current`
    reasons: tuple[str, ...] = ()

    @property
    def desired(self) -> Replicas:
        """The instances to publish: those that are there until something was decided."""
        return self.present if self.wanted is None else self.wanted.value


def evaluate(
    view: RegistryView,
    observed: Observed,
    ways: tuple[WideWay, ...],
    terms: PlanningTerms,
    wanted: Settled[Replicas] | None = None,
) -> Evaluation:
    """Plan for the workers of a cluster and the requests of late. `wanted`: what the look before has led to."""
    fleet = fleet_of(view, terms.home)
    rate_per_s = arrivals_per_s(fleet, observed)
    present = Replicas(len(fleet.away), len(fleet.prefill), len(fleet.decode))
    if missing := obstacles(fleet, observed, terms.home):
        return Evaluation(rate_per_s, present, wanted=wanted, reasons=tuple(missing))
    try:
        case = planning_case(fleet, observed, ways, terms)
    except ValueError as error:
        return Evaluation(rate_per_s, present, wanted=wanted, reasons=(f"measurements make no plan: {error}",))
    grid = thresholds(case, terms.layout.block_tokens)
    current = plan_of(case, rate_surface(case, grid, (present.prefill,)).best())
    reasons = doubts(fleet, observed, terms.home)
    if not reasons:
        needed_per_s = rate_per_s / terms.target_utilisation
        wanted = resized(case, wanted or Settled(present), needed_per_s, grid)
    return Evaluation(
        requests_per_s=rate_per_s,
        present=present,
        current=current,
        best=plan_of(case, rate_surface(case, grid).best()),
        wanted=wanted,
        utilisation=stage_utilisation(current, rate_per_s),
        reasons=(*reasons, *assumptions(fleet, observed, ways, terms.home)),
    )


def arrivals_per_s(fleet: Fleet, observed: Observed) -> float:
    """Return the rate of requests: this gateway's, or what home's decode workers report of all gateways, if more."""
    return max(observed.requests_per_s, float(fleet.decode["arrivals_per_s"].sum()))


def stage_utilisation(plan: CapacityPlan, requests_per_s: float) -> dict[Stage, float]:
    """Return what share of each stage a rate of requests takes; stages that serve nobody are left out."""
    rates = {
        Stage.PRFAAS: (plan.prfaas_compute_per_s, plan.long_share),
        Stage.LINK: (plan.link_per_s, plan.long_share),
        Stage.PD_PREFILL: (plan.pd_prefill_per_s, 1 - plan.long_share),
        Stage.PD_DECODE: (plan.pd_decode_per_s, 1.0),
    }
    return {stage: requests_per_s * share / rate for stage, (rate, share) in rates.items() if rate}
