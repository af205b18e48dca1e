"""From what the suite publishes to a scenario of the simulator. Pure."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from benchmarks.simulator.live.asking import OUTPUT_TOKENS, Answered, AskedPrompt
from benchmarks.simulator.live.published import Published, PublishedEngine
from benchmarks.simulator.live.sites import BLOCK_TOKENS, OFFLOAD_TOKENS
from benchmarks.wan.suite import EAST, WEST
from services.gateway.routing.policies.cost import ByCost
from services.gateway.routing.policies.threshold import Threshold
from services.gateway.routing.policy import RoutingPolicy
from shared.kv.layout import KvLayout
from simulator.kv import KvSize
from simulator.network.links import LinkSpec
from simulator.outcome import Outcome
from simulator.scenario import CallTiming, DatacenterSpec, EngineGroup, Scenario
from simulator.simulate import simulate
from simulator.workload.arrivals import PoissonArrivals
from simulator.workload.prompts import LogNormalTokens, PromptDraw, fresh_keys
from simulator.workload.traces import TracedRequest
from simulator.workload.workload import TracedRequests

NO_CALLS = CallTiming()
SHORTEST, LONGEST = BLOCK_TOKENS + 1, 5 * BLOCK_TOKENS
LENGTHS = LogNormalTokens(4.6, 0.45, SHORTEST, LONGEST)
"""Of prompts: one to four blocks of prefill, about a second each. Decode computes what is behind the last of them."""

SAMPLES = 4000


@dataclass(frozen=True)
class LiveCase:
    """What is known of the suite."""

    published: Published
    layout: KvLayout
    calls: CallTiming = NO_CALLS

    def simulate(self, policy: str, asked: Sequence[AskedPrompt] | Sequence[Answered]) -> Outcome:
        """Run the same requests on the simulator."""
        return simulate(self.scenario(policy, asked))

    def scenario(self, policy: str, asked: Sequence[AskedPrompt] | Sequence[Answered]) -> Scenario:
        """Return the suite with these requests."""
        draw = random.Random(0)
        block_tokens = self.layout.block_tokens
        trace = [
            TracedRequest(
                one.at_s, PromptDraw(one.num_tokens, OUTPUT_TOKENS, fresh_keys(draw, one.num_tokens // block_tokens))
            )
            for one in asked
        ]
        return Scenario(
            datacenters=tuple(self._datacenter(pool.dc, pool.num_bytes) for pool in self.published.pools.values()),
            engines=tuple(_group(engine) for engine in self.published.engines.values()),
            links=self._links(),
            requests=TracedRequests(trace, {WEST: 1.0}),
            kv=self.kv,
            policy=_policy(policy),
            calls=self.calls,
        )

    @property
    def kv(self) -> KvSize:
        num_bytes = self.layout.resume_bytes(0, 1) / self.layout.block_tokens
        return KvSize(num_bytes, self.layout.block_tokens, layers=self.layout.num_layers)

    def _datacenter(self, dc: str, num_bytes: int) -> DatacenterSpec:
        return DatacenterSpec(dc, int(dc == WEST), int(num_bytes / self.layout.resume_bytes(0, 1)))

    def _links(self) -> tuple[LinkSpec, ...]:
        """Return the links that pools have measured, and the ways back, over which nothing but calls goes."""
        return tuple(
            LinkSpec(*ends, link.goodput_bytes_per_s, link.round_trip_s)
            for pool in self.published.pools.values()
            for link in pool.links
            for ends in ((str(link.peer_dc), pool.dc), (pool.dc, str(link.peer_dc)))
        )


def _group(engine: PublishedEngine) -> EngineGroup:
    return EngineGroup(
        "prefill" if engine.role == "prefill" else "decode",
        engine.dc,
        1,
        engine.profile,
        engine.step_tokens,
        kv_tokens=engine.capacity_tokens,
        hand_over_bytes_per_s=engine.hand_over_bytes_per_s or float("inf"),
    )


def _policy(name: str) -> Callable[[], RoutingPolicy]:
    return ByCost if name == "cost" else lambda: Threshold(OFFLOAD_TOKENS, 0)


def sustained_per_s(published: Published, block_tokens: int) -> float:
    """Return the requests per second at which policy `threshold` would keep one engine busy all the time."""
    draw, decode = random.Random(0), published.engine("decode", WEST)
    busy_s = {"decode": 0.0, WEST: 0.0, EAST: 0.0}
    for _ in range(SAMPLES):
        length = LENGTHS.sample(draw)
        ready = (length - 1) // block_tokens * block_tokens
        prefill = published.engine("prefill", WEST if length <= OFFLOAD_TOKENS else EAST)
        busy_s[prefill.dc] += prefill.profile.prompt_s(0, ready, prefill.step_tokens)
        busy_s["decode"] += decode.profile.prompt_s(ready, length, decode.step_tokens)
        busy_s["decode"] += (OUTPUT_TOKENS - 1) * decode.profile.step_s(num_rows=1, context_tokens=length)
    return SAMPLES / max(busy_s.values())


def poisson(rate: float, num_requests: int, seed: str) -> list[AskedPrompt]:
    """Return requests at so many per second. Equal seeds, equal lengths, whatever the rate."""
    times = PoissonArrivals(rate).times(random.Random(f"{seed} times"))
    draw = random.Random(f"{seed} lengths")
    return [AskedPrompt(next(times), LENGTHS.sample(draw)) for _ in range(num_requests)]


def calls_of(case: LiveCase, idle: Sequence[Answered]) -> CallTiming:
    """Return what calls take: what an idle suite takes longer than the simulator has it without calls.

    Prompts of less than a block show a call to decode, those that are handed over at home what that adds. Nothing is
    learnt from those that go away: they take as long as at home, and the link's round trip.
    """
    without = replace(case, calls=NO_CALLS).simulate("threshold", idle)
    left_s: dict[str, list[float]] = {"none": [], "local": []}
    for one, ttft_s, kind in zip(idle, without.ttft_s.tolist(), without.kind, strict=True):
        if kind == one.kind in left_s:
            left_s[kind].append(one.ttft_s - one.plan_s - ttft_s)
    call_s, handed_over_s = (max(0.0, median(values)) if values else 0.0 for values in left_s.values())
    return CallTiming(median(one.plan_s for one in idle), call_s, max(0.0, handed_over_s - call_s))
