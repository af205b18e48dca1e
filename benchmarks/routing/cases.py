"""The cases that policies are compared in. Loads, SLOs and the split of instances follow from the planner's answer."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.harness import ROOT
from benchmarks.routing.recorded import (
    SHORT_BLOCK_TOKENS,
    SlicedTrace,
    azure_trace,
    conversation_trace,
    uncached_lengths,
)
from benchmarks.routing.wide import wide_scenario
from benchmarks.simulator.planner import deployments
from services.gateway.routing.plan import Slo
from services.gateway.routing.planning.capacity import CapacityPlan, plan_of
from services.gateway.routing.planning.case import Division, PlanningCase, threshold_grid
from services.gateway.routing.planning.lengths import EmpiricalLengths
from services.gateway.routing.planning.search import rate_surface
from simulator.network.capacity import ScheduledCapacity
from simulator.planned import AWAY, HOME, planned_scenario
from simulator.scenario import DatacenterSpec, Scenario
from simulator.workload.arrivals import ArrivalProcess, BurstArrivals, PoissonArrivals
from simulator.workload.traces import TracedRequest

PAPER = ROOT / "examples" / "plans" / "paper.toml"
LOAD = 0.8
"""Of the rate that the planner says is sustained: busy, but with room for a good policy to show."""
BURSTY_LOAD = 0.45
"""The mean of bursts: in one, which lasts 20 s on average, a third more comes than is sustained."""
AZURE_LOAD = 0.6
"""Of the mean: its rate changes within minutes."""
CUT_LOAD = 0.6
"""Where four of seven prefill instances cannot be reached for a while: the backlog can be worked off afterwards."""
TTFT_FACTOR, STEP_FACTOR = 2.0, 1.5
"""An SLO is so many times the planner's P90 of TTFT in an empty system, and so many times its decode step."""
GATEWAYS = 2
SLICE_REQUESTS = 700  # of a trace
DIP = (60.0, 180.0, 0.1)  # from, until, share of the capacity
CUT = (90.0, 150.0, 0.0)


@dataclass(frozen=True)
class RoutingCase:
    """One case. `scenario` makes it from a number of requests; its policy and seed are set by who runs it."""

    letter: str
    title: str
    num_requests: int
    requests_per_s: float
    threshold_tokens: int  # the planner's t
    scenario: Callable[[int], Scenario]
    has_prefixes: bool = False


@dataclass(frozen=True)
class PlannedCase:
    """A case of the planner with its answer."""

    case: PlanningCase
    plan: CapacityPlan

    @property
    def division(self) -> Division:
        threshold = self.plan.threshold_tokens
        longest = self.case.lengths.max_tokens
        plan = self.plan
        split = (plan.prfaas_instances, plan.prefill_instances, plan.decode_instances)
        return Division(longest if threshold is None else threshold, *split)

    @property
    def slo(self) -> Slo:
        return Slo(TTFT_FACTOR * self.plan.ttft_p90_s, STEP_FACTOR * self.case.pd.decode.step_s)

    def scenario(self, arrivals: ArrivalProcess, num_requests: int) -> Scenario:
        """Return the case with two gateways and pools that hold nothing: its prompts share nothing."""
        made = planned_scenario(self.case, self.division, arrivals, num_requests)
        places = (DatacenterSpec(HOME, GATEWAYS, pool_blocks=0), DatacenterSpec(AWAY, 0, pool_blocks=0))
        return _with_target(replace(made, slo=self.slo, datacenters=places))


def routing_cases(traces: Path | None) -> Mapping[str, RoutingCase]:
    """Return all cases by their letters; `traces` is a folder of public traces, None: synthetic twins."""
    paper = _paper()
    rate = paper.plan.requests_per_s

    def of_paper(
        letter: str, title: str, load: float, changes: ScheduledCapacity | None = None, *, is_bursty: bool = False
    ) -> RoutingCase:
        arrivals = BurstArrivals(load * rate) if is_bursty else PoissonArrivals(load * rate)

        def scenario(num_requests: int) -> Scenario:
            return _with_links(paper.scenario(arrivals, num_requests), changes)

        return RoutingCase(letter, title, 600, load * rate, round(paper.division.threshold_tokens), scenario)

    recorded = "recorded" if traces else "synthetic twin"
    cases = [
        of_paper("a", "the paper's case", LOAD),
        of_paper("b", "bursts of three times the mean", BURSTY_LOAD, is_bursty=True),
        of_paper("c", "a tenth of the bandwidth for two minutes", LOAD, ScheduledCapacity.dip(*DIP)),
        _of_trace(
            "d",
            f"conversations with reuse, {recorded}",
            paper.case,
            conversation_trace(traces),
            LOAD,
            has_prefixes=True,
        ),
        _of_trace(
            "e",
            f"Azure's arrivals and lengths, {recorded}",
            paper.case,
            azure_trace(traces),
            AZURE_LOAD,
            has_prefixes=False,
        ),
        RoutingCase("f", "2,000 workers in four datacenters", *wide_scenario()),
        of_paper("g", "the remote datacenter cut off for a minute", CUT_LOAD, ScheduledCapacity.dip(*CUT)),
    ]
    return {case.letter: case for case in cases}


def _with_target(scenario: Scenario) -> Scenario:
    """Return the scenario with decode workers that are told the SLO, as `PRFAAS_INTER_TOKEN_S` does."""
    target_s = scenario.slo.time_per_output_token_s
    assert target_s is not None
    engines = (replace(one, inter_token_s=target_s) if one.role == "decode" else one for one in scenario.engines)
    return replace(scenario, engines=tuple(engines))


def _paper() -> PlannedCase:
    selective = deployments(PAPER)[0]
    return PlannedCase(selective.case, selective.plan)


def _with_links(scenario: Scenario, changes: ScheduledCapacity | None) -> Scenario:
    if changes is None:
        return scenario
    return replace(scenario, links=tuple(replace(link, capacity=changes) for link in scenario.links))


def _of_trace(
    letter: str, title: str, case: PlanningCase, trace: Sequence[TracedRequest], load: float, *, has_prefixes: bool
) -> RoutingCase:
    """Return a trace on the paper's clusters, which are divided for its uncached lengths; sped up to the load."""
    lengths = EmpiricalLengths.of(uncached_lengths(trace, SLICE_REQUESTS))
    output = statistics.fmean(prompt.num_output for _, prompt in trace)
    case = replace(case, lengths=lengths, output_tokens=output)
    surface = rate_surface(case, threshold_grid(lengths, max(100, lengths.max_tokens / 500)))
    planned = PlannedCase(case, plan_of(case, surface.best()))
    per_s, num = load * planned.plan.requests_per_s, SLICE_REQUESTS
    speedup = per_s / (len(trace) / trace[-1].at_s)

    def scenario(num_requests: int) -> Scenario:
        made = planned.scenario(PoissonArrivals(per_s), num_requests)
        if has_prefixes:
            made = replace(made, datacenters=(DatacenterSpec(HOME, GATEWAYS), DatacenterSpec(AWAY, 0)))
        else:
            made = replace(made, kv=replace(made.kv, block_tokens=SHORT_BLOCK_TOKENS))
        return replace(made, requests=SlicedTrace(trace, HOME, num, num_requests, speedup))

    threshold = round(min(planned.division.threshold_tokens, lengths.max_tokens))
    return RoutingCase(letter, title, num, per_s, threshold, scenario, has_prefixes)
