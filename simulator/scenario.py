"""What is simulated: datacenters, engines, links, requests, and what happens to them. Data only."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from services.gateway.routing.plan import Slo
from services.gateway.routing.policy import RoutingPolicy
from shared.step_profile import StepProfile
from simulator.engines.costs import StepTime
from simulator.kv import KvSize
from simulator.network.links import LinkSpec
from simulator.workload.workload import RequestSource

EngineRole = Literal["prefill", "decode"]


MEASURED_STEPS = 1000.0
"""Steps that a published profile rests on: below one it would be a prior, which routers trust less."""


@dataclass(frozen=True, slots=True)
class EngineGroup:
    """Engines that are alike, in one datacenter; they are called `<dc>-<role>-<n>`, numbered over all groups."""

    role: EngineRole
    dc: str
    num: int
    cost: StepTime
    step_tokens: int = 2048  # most prompt tokens of a step
    prompts_per_step: int = sys.maxsize  # of a prefill worker; 1: one after another
    max_batch: int = 64  # of a decode worker: requests at a time
    kv_tokens: float = float("inf")  # of a decode worker: tokens of context at a time
    inter_token_s: float = float("inf")  # of a decode worker: what a step with prompts beside a batch takes at most
    hand_over_bytes_per_s: float = float("inf")  # KV between the engine and its pool
    published: StepProfile | None = None  # what load events say of the cost; None: the cost itself, if it is a profile

    @property
    def profile(self) -> StepProfile | None:
        """What load events say that steps take, as if measured for long."""
        known = self.cost if self.published is None and isinstance(self.cost, StepProfile) else self.published
        return known if known is None or known.num_steps else known._replace(num_steps=MEASURED_STEPS)


@dataclass(frozen=True, slots=True)
class DatacenterSpec:
    """A datacenter has one pool node, and gateways if requests reach it."""

    name: str
    gateways: int = 1
    pool_blocks: int = 100_000  # that its pool has room for


@dataclass(frozen=True, slots=True)
class BusTiming:
    """How late gateways know what they know."""

    load_every_s: float = 0.5
    placements_every_s: float = 0.1
    delay_s: float = 0.02  # from a process to the gateways, of any event


@dataclass(frozen=True, slots=True)
class CallTiming:
    """What a request takes beside computing and KV; nothing unless given.

    A call to another datacenter takes half a round trip of the link more, whatever is given.
    """

    plan_s: float = 0.0  # from a request's arrival to its plan: HTTP, tokenising, keys, routing
    call_s: float = 0.0  # from the plan to a worker's queue, the first token's way back included
    hand_over_s: float = 0.0  # from a prompt's last layer to decode's turn, beside its bytes: the pools' words


class WorkerChange(NamedTuple):
    """What becomes of one engine: it is lost with all it holds, comes (back) empty, or gets slower."""

    at_s: float
    worker: str
    slowdown: float | None  # None: lost; else present, and this many times as slow as its cost says

    @classmethod
    def lost(cls, at_s: float, worker: str) -> "WorkerChange":
        return cls(at_s, worker, None)

    @classmethod
    def joins(cls, at_s: float, worker: str, slowdown: float = 1.0) -> "WorkerChange":
        """Return the arrival of an engine: one that was lost, or that is named in `Scenario.absent`."""
        return cls(at_s, worker, slowdown)


DEFAULT_SLO = Slo(ttft_s=5.0, time_per_output_token_s=0.05)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One simulation. The same scenario gives the same outcome.

    `policy` makes a routing policy for each gateway. Requests that still run at `until_s` count as not finished.
    """

    datacenters: tuple[DatacenterSpec, ...]
    engines: tuple[EngineGroup, ...]
    links: tuple[LinkSpec, ...]
    requests: RequestSource
    kv: KvSize
    policy: Callable[[], RoutingPolicy]
    slo: Slo = DEFAULT_SLO  # of every request: routers are told, and `Outcome.good` judges by it
    changes: tuple[WorkerChange, ...] = ()
    absent: frozenset[str] = frozenset()  # engines that join later
    bus: BusTiming = field(default_factory=BusTiming)
    calls: CallTiming = field(default_factory=CallTiming)
    seed: int = 0
    until_s: float = float("inf")
    streamed: bool = True  # False: a prompt's KV leaves when all of it is computed
    stall_s: float = 5.0  # after which a transfer that does not move is given up, as `PRFAAS_POOL_STALL_S`
    max_attempts: int = 3  # decode workers that a request is tried on
    sample_every_s: float = 0.5  # of the links' use
