"""From a case of the planner to a scenario: the same clusters, link and lengths, with requests one by one."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from services.gateway.routing.planning.case import Division, PlanningCase
from services.gateway.routing.planning.lengths import LengthDistribution
from services.gateway.routing.planning.profiles import LengthProfile, PolynomialProfile
from services.gateway.routing.policies.threshold import Threshold
from services.gateway.routing.policy import RoutingPolicy
from shared.step_profile import StepProfile
from simulator.engines.costs import whole_prompt_profile
from simulator.kv import KvSize
from simulator.network.links import LinkSpec
from simulator.scenario import DatacenterSpec, EngineGroup, Scenario
from simulator.workload.arrivals import ArrivalProcess
from simulator.workload.prompts import FixedTokens, SinglePrompts
from simulator.workload.workload import DrawnRequests

HOME, AWAY = "pd", "prfaas"
SAMPLES = 64
"""Lengths at which a profile is looked at."""


@dataclass(frozen=True)
class DistributedTokens:
    """Lengths of one of the planner's distributions."""

    lengths: LengthDistribution
    _tokens: list[int] = field(init=False, repr=False)
    _reached: list[float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        weighted = self.lengths.weighted(np.empty(0))
        object.__setattr__(self, "_tokens", np.maximum(1, np.rint(weighted.tokens)).astype(int).tolist())
        object.__setattr__(self, "_reached", np.cumsum(weighted.weights).tolist())

    def sample(self, draw: random.Random) -> int:
        return draw.choices(self._tokens, cum_weights=self._reached)[0]


def threshold_policy(case: PlanningCase, division: Division) -> Callable[[], RoutingPolicy]:
    """Return the paper's rule with a plan's threshold; nothing is left to decode alone."""
    threshold = int(min(division.threshold_tokens, case.lengths.max_tokens))
    return lambda: Threshold(threshold, 0)


def planned_scenario(
    case: PlanningCase,
    division: Division,
    arrivals: ArrivalProcess,
    num_requests: int,
    policy: Callable[[], RoutingPolicy] | None = None,
    block_tokens: int = 512,
) -> Scenario:
    """Return a scenario of a case that is divided so; `policy` is the plan's threshold unless given.

    Prefill instances compute one prompt after another, each in one step, as equations (3) and (4) have it. Decode's
    steps take as long as the plan's, and prompt tokens in them as long as on the prefill instances beside.
    """
    longest = int(case.lengths.max_tokens) + 1
    away, home = (quadratic(cluster.prefill_s, longest) for cluster in (case.prfaas, case.pd))
    decode = home._replace(base_s=case.pd.decode.step_s)
    return Scenario(
        datacenters=(DatacenterSpec(HOME), DatacenterSpec(AWAY, gateways=0)),
        engines=(
            EngineGroup("prefill", AWAY, division.prfaas_instances, away, longest, prompts_per_step=1),
            EngineGroup("prefill", HOME, division.prefill_instances, home, longest, prompts_per_step=1),
            EngineGroup("decode", HOME, division.decode_instances, decode, max_batch=case.pd.decode.batch),
        ),
        links=(
            LinkSpec(AWAY, HOME, case.link.usable_bytes_per_s, round_trip_s=0.002),
            LinkSpec(HOME, AWAY, case.link.usable_bytes_per_s, round_trip_s=0.002),
        ),
        requests=DrawnRequests(
            arrivals,
            SinglePrompts(DistributedTokens(case.lengths), FixedTokens(round(case.output_tokens))),
            {HOME: 1.0},
            num_requests,
        ),
        kv=linear_size(case.kv_bytes, longest, block_tokens),
        policy=policy or threshold_policy(case, division),
    )


def quadratic(profile: LengthProfile, longest: int) -> StepProfile:
    """Return the step profile whose whole prompts take what a profile says: exact for polynomials up to degree 2."""
    fitted = _fitted(profile, longest, degree=2)
    constant, linear, square = (*fitted.coefficients, 0.0, 0.0)[:3]
    return whole_prompt_profile((constant, linear, square), fitted.unit_tokens)


def linear_size(profile: LengthProfile, longest: int, block_tokens: int) -> KvSize:
    """Return the KV of a profile in bytes: exact for polynomials up to degree 1."""
    fixed, slope = _fitted(profile, longest, degree=1).coefficients
    return KvSize(slope / longest, block_tokens, max(0.0, fixed), layers=16)


def _fitted(profile: LengthProfile, longest: int, degree: int) -> PolynomialProfile:
    tokens = np.geomspace(1.0, longest, SAMPLES)
    return PolynomialProfile.fit(tokens.tolist(), profile(tokens).tolist(), degree)
