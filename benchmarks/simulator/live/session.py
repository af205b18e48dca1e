"""One run of the suite: prompts one by one, then a few loads, and what the processes published meanwhile."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks import serve
from benchmarks.simulator.live.asking import Answered, AskedPrompt, LiveLoad
from benchmarks.simulator.live.case import LONGEST, SHORTEST, LiveCase, calls_of, poisson, sustained_per_s
from benchmarks.simulator.live.published import Published, PublishedNews, listening
from benchmarks.simulator.live.sites import BLOCK_TOKENS, DTYPE, sites
from benchmarks.streaming.asking import open_bench
from benchmarks.wan.suite import BROKER_PORT, WEST
from shared.kv.layout import KvLayout
from shared.model.files.catalog import DEFAULT_MODEL, resolve

QUIET_S = 0.6
"""Before each prompt that goes alone: every worker has reported that it is idle."""

BREAK_S = 2.0
"""Between loads."""

CACHE_DIR = Path("~/.cache/prfaas").expanduser()


@dataclass(frozen=True)
class LivePlan:
    """What is asked, and how often."""

    policy: str = "threshold"
    shares: Sequence[float] = (0.3, 0.5, 0.7)  # of what the suite sustains
    num_requests: int = 32  # of a load
    num_warm_up: int = 9  # bursts
    idle_tokens: Sequence[int] = (8, 70, 100, 125, 150, 250)
    idle_rounds: int = 2
    seed: int = 1


QUICK_PLAN = LivePlan(shares=(0.5,), num_requests=8, num_warm_up=3, idle_tokens=(8, 100, 150), idle_rounds=1)


@dataclass(frozen=True)
class LiveShare:
    """One load, and how it went."""

    share: float
    per_s: float
    answers: Sequence[Answered]
    published: Published  # the means of what was said meanwhile: a machine that others use is not as quick at all times


@dataclass(frozen=True)
class LiveRun:
    """What a run has measured. `published` is what an idle suite said."""

    policy: str
    published: Published
    layout: KvLayout
    sustained_per_s: float
    idle: Sequence[Answered]
    loads: Sequence[LiveShare]

    @cached_property
    def case(self) -> LiveCase:
        """Return the idle suite as the simulator is told of it."""
        case = LiveCase(self.published, self.layout)
        return LiveCase(self.published, self.layout, calls_of(case, self.idle))

    def loaded(self, load: LiveShare) -> LiveCase:
        """Return the suite as it was under a load."""
        return LiveCase(load.published, self.layout, self.case.calls)


def run_live(plan: LivePlan, logs: Path | None) -> LiveRun:
    """Start the suite and carry out a plan. Raises `WanUnavailable`, and RuntimeError when a request fails."""
    with sites(plan.policy, logs) as (network, suite):

        async def run() -> LiveRun:
            async with serve.new_session() as session:
                bench = await open_bench(network, suite, session, LONGEST)
                async with listening(f"{network.address(WEST)}:{BROKER_PORT}") as news:
                    return await carry_out(plan, LiveLoad(bench), news)

        return asyncio.run(run())


async def carry_out(plan: LivePlan, load: LiveLoad, news: PublishedNews) -> LiveRun:
    """Have workers and links measured, ask an idle suite, then send the loads."""
    for lengths in warm_up(plan):
        await load.send([AskedPrompt(0.0, num_tokens) for num_tokens in lengths])
    idle = []
    for num_tokens in [*plan.idle_tokens] * plan.idle_rounds:
        await asyncio.sleep(QUIET_S)
        idle += await load.send([AskedPrompt(0.0, num_tokens)])
    await asyncio.sleep(QUIET_S)
    known = news.mean()
    layout = layout_of(known)
    most_per_s = sustained_per_s(known, BLOCK_TOKENS)
    loads = []
    for share in plan.shares:
        await asyncio.sleep(BREAK_S)
        news.begin()
        per_s = share * most_per_s
        answers = await load.send(poisson(per_s, plan.num_requests, f"{plan.seed} {share}"))
        loads.append(LiveShare(share, per_s, answers, news.mean()))
    return LiveRun(plan.policy, known, layout, most_per_s, idle, loads)


def warm_up(plan: LivePlan) -> list[list[int]]:
    """Return lengths of prompts that come together: steps of one, two and three of them are measured."""
    draw = random.Random(plan.seed)
    return [[draw.randrange(SHORTEST, LONGEST) for _ in range(1 + number % 3)] for number in range(plan.num_warm_up)]


def layout_of(published: Published) -> KvLayout:
    """Return the KV layout that the engines have published, by its hash. Raises RuntimeError for another."""
    layout = resolve(DEFAULT_MODEL, CACHE_DIR).config().kv_layout(BLOCK_TOKENS, DTYPE)
    hashes = {engine.layout_hash for engine in published.engines.values()}
    if hashes != {layout.hash}:
        raise RuntimeError(f"the engines have the KV layouts {', '.join(sorted(hashes))}, not {layout.hash}")
    return layout
