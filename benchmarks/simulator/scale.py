"""How large a simulation may be: thousands of workers, millions of blocks in the pools, on one core."""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psutil

from benchmarks.harness import Check, Row, at_least, at_most
from services.gateway.routing.policies.cost import ByCost
from shared.ids import BlockKey
from shared.step_profile import StepProfile
from simulator.kv import KvSize
from simulator.network.links import LinkSpec
from simulator.scenario import DatacenterSpec, EngineGroup, Scenario
from simulator.simulate import Simulation
from simulator.workload.arrivals import PoissonArrivals
from simulator.workload.prompts import PromptDraw, fresh_keys
from simulator.workload.workload import DrawnRequests

CHAIN_BLOCKS, BLOCK_TOKENS = 64, 512
PREFILL_COST = StepProfile(0.01, 3e-5, 1e-9)
DECODE_COST = StepProfile(0.015, 1e-4, 2e-9, 1e-4, 1e-8)
LIMIT_S = 600.0
"""Of processor time, for filling the pools and running: minutes."""


@dataclass(frozen=True)
class ScaleCase:
    """So many workers and stored blocks, evenly over the datacenters; two fifths of the workers prefill."""

    workers: int
    blocks: int
    requests: int
    per_s: float
    dcs: int = 4

    @property
    def names(self) -> list[str]:
        return [f"dc{number}" for number in range(self.dcs)]

    @property
    def chains_per_dc(self) -> int:
        return self.blocks // self.dcs // CHAIN_BLOCKS


@dataclass(frozen=True)
class StoredPrompts:
    """Prompts that go on where one of the stored chains ends, or share nothing with anything; half of each."""

    case: ScaleCase

    def prompts(self, draw: random.Random, block_tokens: int) -> Iterator[PromptDraw]:
        while True:
            num_more = 1 + int(draw.expovariate(1 / 4))
            keys = fresh_keys(draw, num_more)
            if draw.random() < 0.5:
                dc, number = draw.randrange(self.case.dcs), draw.randrange(max(1, self.case.chains_per_dc))
                keys = [*stored_chain(dc, number), *keys]
            tokens = len(keys) * block_tokens + draw.randrange(1, block_tokens)
            yield PromptDraw(tokens, 1 + int(draw.expovariate(1 / 200)), keys)


def stored_chain(dc: int, number: int) -> Sequence[BlockKey]:
    """Return the keys of one of the chains that lie in a datacenter's pool, the same at each call."""
    return fresh_keys(random.Random(f"{dc} {number}"), CHAIN_BLOCKS)


def scale_scenario(case: ScaleCase, seed: int = 0) -> Scenario:
    """Return a full mesh of equal datacenters with two gateways each."""
    num_prefill = max(1, round(0.4 * case.workers / case.dcs))
    num_decode = max(1, case.workers // case.dcs - num_prefill)
    room = 2 * case.chains_per_dc * CHAIN_BLOCKS + 10_000
    return Scenario(
        datacenters=tuple(DatacenterSpec(name, 2, room) for name in case.names),
        engines=tuple(
            group
            for name in case.names
            for group in (
                EngineGroup("prefill", name, num_prefill, PREFILL_COST, 4096),
                EngineGroup("decode", name, num_decode, DECODE_COST, 2048, max_batch=128),
            )
        ),
        links=tuple(
            LinkSpec(a, b, 12.5e9, round_trip_s=0.03, loss=1e-5, connections=16)
            for a in case.names
            for b in case.names
            if a != b
        ),
        requests=DrawnRequests(
            PoissonArrivals(case.per_s), StoredPrompts(case), dict.fromkeys(case.names, 1.0), case.requests
        ),
        kv=KvSize(65_536, BLOCK_TOKENS),
        policy=ByCost,
        seed=seed,
    )


@dataclass(frozen=True)
class ScaleFinding:
    """What a case took."""

    case: ScaleCase
    held_blocks: int
    build_s: float
    run_s: float
    build_cpu_s: float
    run_cpu_s: float
    simulated_s: float
    num_events: int
    memory_bytes: int

    @property
    def row(self) -> Row:
        case = self.case
        return {
            "workers": case.workers,
            "dcs": case.dcs,
            "blocks": self.held_blocks,
            "requests": case.requests,
            "fill_s": round(self.build_s, 1),
            "fill_cpu_s": round(self.build_cpu_s, 1),
            "run_s": round(self.run_s, 1),
            "run_cpu_s": round(self.run_cpu_s, 1),
            "simulated_s": round(self.simulated_s, 1),
            "requests_per_cpu_s": round(case.requests / self.run_cpu_s),
            "events": self.num_events,
            "memory_gib": round(self.memory_bytes / 2**30, 2),
        }

    def checks(self) -> list[Check]:
        case = self.case
        name = f"{case.workers:,} workers, {case.blocks:,} blocks, {case.requests:,} requests"
        return [
            at_most(f"{name}: processor time", self.build_cpu_s + self.run_cpu_s, LIMIT_S, "s"),
            at_least(f"{name}: blocks held", self.held_blocks, case.chains_per_dc * CHAIN_BLOCKS * case.dcs),
        ]


def measure_scale(case: ScaleCase) -> ScaleFinding:
    """Fill the pools, run, and count."""
    process = psutil.Process()
    before, started, started_cpu = process.memory_info().rss, time.perf_counter(), time.process_time()
    simulation = Simulation(scale_scenario(case))
    for dc, name in enumerate(case.names):
        simulation.warm(name, (stored_chain(dc, number) for number in range(case.chains_per_dc)))
    filled, filled_cpu = time.perf_counter(), time.process_time()
    outcome = simulation.run()
    ended, ended_cpu = time.perf_counter(), time.process_time()
    assert np.isfinite(outcome.finished_s).all()
    return ScaleFinding(
        case,
        held_blocks=sum(pool.store.stats.num_blocks for pool in simulation.places.pools.values()),
        build_s=filled - started,
        run_s=ended - filled,
        build_cpu_s=filled_cpu - started_cpu,
        run_cpu_s=ended_cpu - filled_cpu,
        simulated_s=outcome.end_s,
        num_events=outcome.num_events,
        memory_bytes=process.memory_info().rss - before,
    )
