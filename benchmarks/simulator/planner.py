"""The simulator in a planned deployment, at saturation and almost idle, beside what the planner says."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.harness import Check, Row, at_most
from services.gateway.plan.inputs import FileBuilder
from services.gateway.plan.reading import read
from services.gateway.plan.schema import CapacityFile
from services.gateway.routing.planning.capacity import CapacityPlan
from services.gateway.routing.planning.case import Averaging, Division, PlanningCase, threshold_grid
from services.gateway.routing.planning.deployments import compare_deployments
from services.gateway.routing.planning.first_token import unloaded_ttft
from services.gateway.routing.planning.lengths import EmpiricalLengths
from services.gateway.routing.planning.search import rate_surface
from simulator.planned import planned_scenario
from simulator.simulate import simulate
from simulator.workload.arrivals import PoissonArrivals

LIMIT_PERCENT = 5.0
OVERLOAD = 1.3
"""Arrivals at saturation, as a multiple of what the plan sustains."""
IDLE = 0.02
"""Arrivals in an almost empty system, likewise: the planner's TTFT counts no queue."""


class PlannedDeployment(NamedTuple):
    """A plan of a case, and the case as that deployment has it."""

    name: str
    case: PlanningCase
    plan: CapacityPlan

    @property
    def division(self) -> Division:
        plan = self.plan
        threshold = self.case.lengths.max_tokens if plan.threshold_tokens is None else plan.threshold_tokens
        return Division(threshold, plan.prfaas_instances, plan.prefill_instances, plan.decode_instances)


@dataclass(frozen=True)
class PlannerFinding:
    """One figure of the planner beside the simulator's."""

    deployment: str
    figure: str
    planned: float
    simulated: float

    @property
    def error_percent(self) -> float:
        return 100 * abs(self.simulated - self.planned) / self.planned

    @property
    def row(self) -> Row:
        return {
            "deployment": self.deployment,
            "figure": self.figure,
            "planner": round(self.planned, 3),
            "simulator": round(self.simulated, 3),
            "error_%": round(self.error_percent, 2),
        }

    def check(self, limit_percent: float | None = None) -> Check:
        limit = LIMIT_PERCENT if limit_percent is None else limit_percent
        return at_most(f"{self.deployment}, {self.figure}: error", self.error_percent, limit, "%")


def deployments(path: Path) -> list[PlannedDeployment]:
    """Plan the deployments of a file by the mean of the times, which is what instances sustain."""
    file = read(path)
    assert isinstance(file, CapacityFile), f"{path} is not a case of capacity"
    case = replace(FileBuilder(path).case(file), averaging=Averaging.MEAN_TIME)
    surface = rate_surface(case, threshold_grid(case.lengths, file.search.step_tokens))
    plans = compare_deployments(case, surface, file.homogeneous.instances if file.homogeneous else None)
    return [
        PlannedDeployment("selective", case, plans.prfaas_pd),
        PlannedDeployment("homogeneous", case, plans.homogeneous_pd),
        PlannedDeployment("all away", case, plans.naive_heterogeneous),
    ]


def findings(deployment: PlannedDeployment, num_requests: int, seed: int) -> Iterator[PlannerFinding]:
    """Simulate a deployment with its own threshold and split; yield what the planner foresees."""
    name, case, plan = deployment
    arrivals = PoissonArrivals(OVERLOAD * plan.requests_per_s)
    busy = simulate(replace(planned_scenario(case, deployment.division, arrivals, num_requests), seed=seed))
    # Queues are full, and decode's batches settled, once this much has passed; the last to arrive end the window.
    from_s, until_s = 0.2 * float(busy.arrival_s[-1]), float(busy.arrival_s[-1])
    yield PlannerFinding(name, "requests/s", plan.requests_per_s, busy.throughput_per_s(from_s, until_s))
    if plan.egress_gbit_s:
        rate = _mean_rate(busy.links["prfaas", "pd"].bytes_per_s, from_s, until_s)
        yield PlannerFinding(name, "egress, Gbit/s", plan.egress_gbit_s, 8e-9 * rate)
    calm = planned_scenario(case, deployment.division, PoissonArrivals(IDLE * plan.requests_per_s), num_requests // 4)
    idle = simulate(replace(calm, seed=seed, streamed=False))  # the planner does not count on streaming
    foreseen_s = _unloaded_s(deployment, idle.prompt_tokens.astype(float))
    yield PlannerFinding(name, "mean TTFT when idle, s", foreseen_s, float(np.nanmean(idle.ttft_s)))


def _unloaded_s(deployment: PlannedDeployment, tokens: np.ndarray) -> float:
    """Return the planner's mean TTFT for these prompts, and no others: `unloaded_ttft` for a sample."""
    counts = EmpiricalLengths.of(tokens.tolist())
    of_sample = replace(deployment.case, lengths=counts)
    return unloaded_ttft(of_sample, deployment.division.threshold_tokens).mean_s


def _mean_rate(samples: np.ndarray, from_s: float, until_s: float, every_s: float = 0.5) -> float:
    return float(samples[int(from_s / every_s) : int(until_s / every_s)].mean())
