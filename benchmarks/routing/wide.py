"""Two thousand workers in four datacenters, two of them with faster prefill: the same hardware as the paper's case."""

from collections.abc import Callable

from services.gateway.routing.plan import Slo
from services.gateway.routing.policies.cost import ByCost
from simulator.engines.costs import whole_prompt_profile
from simulator.kv import KvSize
from simulator.network.links import LinkSpec
from simulator.scenario import BusTiming, DatacenterSpec, EngineGroup, Scenario
from simulator.workload.arrivals import PoissonArrivals
from simulator.workload.prompts import FixedTokens, LogNormalTokens, SinglePrompts
from simulator.workload.workload import DrawnRequests

FAST = whole_prompt_profile((0.389, 0.04206, 9.94e-5), 1024)
SLOW = whole_prompt_profile((0.4707, 0.13291, 3.141e-4), 1024)
DECODE = SLOW._replace(base_s=0.025)
DCS = {"north": FAST, "south": FAST, "east": SLOW, "west": SLOW}
NUM_PREFILL, NUM_DECODE = 300, 200  # of each datacenter
LONGEST = 131_072
MIB = 1 << 20
LENGTHS = LogNormalTokens(10.9, 0.7, 2_000, LONGEST)
PER_S = 148.0
"""Four fifths of what all prefill workers compute: a mean prompt takes one of the fast 4.3 s, one of the slow 12 s."""
TARGET_S = 0.025 * 1.5
SLO = Slo(ttft_s=20.0, time_per_output_token_s=TARGET_S)
LINK_BYTES_PER_S = 12.5e9
THRESHOLD_TOKENS = 32_000


def wide_scenario() -> tuple[int, float, int, Callable[[int], Scenario]]:
    """Return requests, their rate, a first threshold, and the scenario of a number of requests."""
    return 800, PER_S, THRESHOLD_TOKENS, _scenario


def _scenario(num_requests: int) -> Scenario:
    groups = [
        group
        for name, profile in DCS.items()
        for group in (
            EngineGroup("prefill", name, NUM_PREFILL, profile, LONGEST, prompts_per_step=1),
            EngineGroup("decode", name, NUM_DECODE, DECODE, max_batch=20, inter_token_s=TARGET_S),
        )
    ]
    links = [LinkSpec(a, b, LINK_BYTES_PER_S, round_trip_s=0.03) for a in DCS for b in DCS if a != b]
    return Scenario(
        datacenters=tuple(DatacenterSpec(name, 1, pool_blocks=0) for name in DCS),
        engines=tuple(groups),
        links=tuple(links),
        requests=DrawnRequests(
            PoissonArrivals(PER_S), SinglePrompts(LENGTHS, FixedTokens(64)), dict.fromkeys(DCS, 1.0), num_requests
        ),
        kv=KvSize(16.74 * MIB / 1024, 2_048, 172 * MIB),
        policy=ByCost,
        slo=SLO,
        bus=BusTiming(load_every_s=2.0),
    )
