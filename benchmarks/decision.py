"""How long the router decides: a prompt of 2,048 blocks, 64 workers and 8 pool nodes in 4 datacenters, ten million
indexed blocks. A decision is all that a gateway does between the keys of a prompt and its plan: the match in the
placement index, the view of the cluster, the policy, the sources.

The prompts are cached in parts, by one or two datacenters, in memory and in object tiers. `--policy` may be repeated.
"""

import argparse
import asyncio
import gc
import time
from collections.abc import Sequence

import numpy as np

from benchmarks import harness
from benchmarks.harness import Report, Row, at_most
from benchmarks.placement.gateway import LAYOUT, Gateway, runs
from services.gateway.cluster.registry import Registry
from services.gateway.cluster.view import RegistryView
from services.gateway.routing.plan import RequestFacts
from services.gateway.routing.policies import POLICIES, policy_of
from services.gateway.routing.policy import RoutingPolicy
from services.gateway.routing.router import Router
from services.gateway.settings import GatewaySettings
from shared.bus.events import LinkLoad, LoadEvent, MembershipEvent, Role, unpack_keys
from shared.ids import BlockKey, Datacenter, Epoch, LayoutHash, ModelFingerprint, WorkerId
from shared.kv.rendezvous import partition
from shared.rpc.client import Channels
from shared.step_profile import StepProfile

DCS = tuple(Datacenter(name) for name in ("north", "east", "south", "west"))
NODES_OF_A_DC, NUM_PREFILL, NUM_DECODE = 2, 48, 16
PROMPT_BLOCKS, NUM_PROMPTS = 2048, 64
HELD_SHARES = (0.0, 0.3, 0.6, 0.9)
MODEL = ModelFingerprint("bench"), LayoutHash("bench")


class Cluster:
    """A gateway's registry and index, full."""

    def __init__(self, gateway: Gateway, seed: int) -> None:
        self.gateway = gateway
        self.registry = Registry(*MODEL)
        self.rng = np.random.default_rng(seed)
        self.nodes = {dc: [WorkerId(f"pool-{dc}-{n}") for n in range(NODES_OF_A_DC)] for dc in DCS}
        for dc, names in self.nodes.items():
            for name in names:
                gateway.meet(name)
                self._join(name, "cachepool", dc)
                links = tuple(LinkLoad(peer, 1e9, 1 << 20, 0, 0.03) for peer in DCS if peer != dc)
                self._report(name, links)
        counts: dict[Role, int] = {"prefill": NUM_PREFILL, "decode": NUM_DECODE}
        for role, count in counts.items():
            for number in range(count):
                name = WorkerId(f"{role}-{number}")
                self._join(name, role, DCS[number % len(DCS)])
                self._report(name, (), **self._figures())

    def view(self) -> RegistryView:
        return self.registry.view()

    async def fill(self, num_blocks: int) -> list[list[BlockKey]]:
        """Index so many blocks; return prompts, parts of which are among them."""
        prompts = [unpack_keys(self.rng.bytes(32 * PROMPT_BLOCKS)) for _ in range(NUM_PROMPTS)]
        for number, keys in enumerate(prompts):
            for dc, share in zip(DCS, np.roll(HELD_SHARES, number), strict=True):
                await self._hold(dc, keys[: int(share * PROMPT_BLOCKS)])
        names = [name for of_dc in self.nodes.values() for name in of_dc]
        for number in range(num_blocks // PROMPT_BLOCKS - NUM_PROMPTS):
            await self._place(names[number % len(names)], self.rng.bytes(32 * PROMPT_BLOCKS))
        index = self.gateway.index
        while index.room_wanted is not None:  # noqa: ASYNC110 - only a benchmark waits for it
            await asyncio.sleep(0.01)
        while index.is_moving:
            await self.gateway.feed.take(self.gateway.placed(names[0]))
        index.settle()
        return prompts

    async def _hold(self, dc: Datacenter, keys: Sequence[BlockKey]) -> None:
        addresses = {f"{name}:1": name for name in self.nodes[dc]}
        for address, positions in partition(keys, list(addresses)).items():
            await self._place(addresses[address], b"".join(keys[position] for position in positions))

    async def _place(self, holder: WorkerId, keys: bytes) -> None:
        await self.gateway.feed.take(self.gateway.placed(holder, runs(keys)))

    def _join(self, name: WorkerId, role: Role, dc: Datacenter) -> None:
        event = MembershipEvent(
            worker=name,
            role=role,
            dc=dc,
            address=f"{name}:1",
            fingerprint=MODEL[0],
            layout_hash=MODEL[1],
            epoch=Epoch(1),
            capacity=1 << 20,
            pool_address=f"pool-{dc}-0:1",
        )
        self.registry.apply_membership(event, time.monotonic())

    def _report(self, name: WorkerId, links: tuple[LinkLoad, ...], **figures: float) -> None:
        event = LoadEvent(
            worker=name,
            epoch=Epoch(1),
            running=int(figures.pop("running", 0)),
            waiting=0,
            kv_usage=0.2,
            speed_tokens_per_s=0,
            at_ms=0,
            links=links,
            step_profile=StepProfile(0.01, 2e-5, 1e-10, 1e-4, 1e-9, 100),
            step_tokens=2048,
            **figures,  # type: ignore[arg-type]
        )
        self.registry.apply_load(event, time.monotonic())

    def _figures(self) -> dict[str, float]:
        rng = self.rng
        return {
            "running": float(rng.integers(32)),
            "queued_s": rng.random(),
            "busy": rng.random(),
            "arrivals_per_s": 2.0,
        }


def decision_row(cluster: Cluster, name: str, policy: RoutingPolicy, prompts: list[list[BlockKey]], num: int) -> Row:
    router = Router(DCS[-1], LAYOUT, policy)
    wall, cpu, kinds = [], [], set()
    for number in range(num):
        keys, started, worked = prompts[number % len(prompts)], time.perf_counter(), time.thread_time()
        held = cluster.gateway.index.held(keys, time.monotonic())
        facts = RequestFacts(len(keys) * LAYOUT.block_tokens + 1, keys, held, draw=number / num)
        plan = router.plan(facts, cluster.view())
        wall.append(time.perf_counter() - started)
        cpu.append(time.thread_time() - worked)
        kinds.add(plan.kind)
        assert plan.usable_blocks, "parts of each prompt are cached"
    p50, p99 = (1e3 * np.percentile(wall, [50, 99])).tolist()
    cpu50, cpu99 = (1e3 * np.percentile(cpu, [50, 99])).tolist()
    row: Row = {"policy": name, "decisions": num, "p50 ms": p50, "p99 ms": p99}
    return row | {"p50 CPU ms": cpu50, "p99 CPU ms": cpu99, "plans": ", ".join(sorted(kinds))}


async def measure_all(options: argparse.Namespace) -> Report:
    num_blocks, num_decisions = (500_000, 200) if options.quick else (10_000_000, 3000)
    report = Report(
        settings={"blocks": num_blocks, "prompt_blocks": PROMPT_BLOCKS, "workers": NUM_PREFILL + NUM_DECODE}
    )
    async with Channels() as channels:
        cluster = Cluster(Gateway(channels), seed=1)
        feed = asyncio.create_task(cluster.gateway.feed.run())
        prompts = await cluster.fill(num_blocks)
        gc.collect()
        gc.freeze()  # as the gateway does
        for name in options.policy or ("cost", "threshold"):
            row = decision_row(cluster, name, policy_of(GatewaySettings(routing_policy=name)), prompts, num_decisions)
            report.rows.append(row)
            if name == "cost":
                report.checks.append(at_most("a decision, p99", float(str(row["p99 ms"])), 1.0, "ms"))
        feed.cancel()
        await asyncio.wait({feed})
    return report


def measure(options: argparse.Namespace) -> Report:
    return asyncio.run(measure_all(options))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", action="append", choices=tuple(POLICIES), help="default: cost and threshold")


if __name__ == "__main__":
    raise SystemExit(harness.main("decision", measure, add_options, description=__doc__))
