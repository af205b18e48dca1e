"""The gateway's placement index: memory for each (block, holder), time of a match, events taken in a second from the
bytes of a Kafka record on, the longest time that one event takes, and the time to catch up from a pool's snapshot.

Each spread of blocks over holders is measured in a process of its own. Prompts are random, so that a match finds
nothing of the last one in the CPU's caches.
"""

import argparse
import asyncio
import gc
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import psutil

from benchmarks import harness
from benchmarks.harness import Report, Row, at_least, at_most
from benchmarks.placement.filling import HOLDERS, NUM_HOLDERS, PROMPT_BLOCKS, FilledPrompt, Index, Took, fill
from benchmarks.placement.gateway import Gateway, runs
from benchmarks.placement.pool import pool_with
from shared.rpc.client import Channels

EVENT_BLOCKS = (16, 64, 512, 4096)
TARGET_EVENT_BLOCKS = 64
"""64 pools that announce every 20 ms send events of this size when 200,000 blocks change in a second."""


@dataclass(frozen=True)
class IndexSize:
    num_pairs: int
    num_matches: int
    num_prompts: int
    num_events_blocks: int
    num_snapshot_blocks: int


FULL = IndexSize(10_000_000, 2000, 256, 400_000, 1_000_000)
QUICK = IndexSize(500_000, 200, 16, 50_000, 100_000)


async def ingest(index: Index, event_blocks: int, num_blocks: int) -> Row:
    """Take events of one size: for each that stores, one that evicts what the one before it stored."""
    records = []
    for number in range(num_blocks // event_blocks // 2):
        keys = index.rng.bytes(32 * event_blocks)
        holder = HOLDERS[number % NUM_HOLDERS]
        records += [index.gateway.placed(holder, runs(keys)), index.gateway.placed(holder, evicted=keys)]
    index.took.clear()
    for record in records:
        await index.take(record)
    index.settle()
    return {
        "copies": index.copies,
        "blocks in an event": event_blocks,
        "block events/s": round(event_blocks * len(records) / sum(took.wall_s for took in index.took)),
        "in a CPU second": round(event_blocks * len(records) / sum(took.cpu_s for took in index.took)),
        "event p50 ms": 1e3 * float(np.median([took.wall_s for took in index.took])),
        "longest event ms": 1e3 * max(took.wall_s for took in index.took),
        "longest, CPU ms": 1e3 * max(took.cpu_s for took in index.took),
    }


def match_row(copies: int, kind: str, took: list[Took]) -> Row:
    p50, p99 = np.percentile([one.wall_s for one in took], [50, 99]) * 1e3
    cpu = 1e3 * float(np.percentile([one.cpu_s for one in took], 99))
    return {
        "copies": copies,
        "prompt's blocks on": kind,
        "matches": len(took),
        "p50 ms": p50,
        "p99 ms": p99,
        "p99 CPU ms": cpu,
    }


async def spread(copies: int, size: IndexSize) -> list[Row]:
    rng = np.random.default_rng(copies)
    kinds = ("one pool", "all pools")
    prompts = [
        FilledPrompt(rng.bytes(32 * PROMPT_BLOCKS), kinds[number % 2], number % NUM_HOLDERS)
        for number in range(size.num_prompts)
    ]
    async with Channels() as channels:
        index = Index(Gateway(channels), copies, rng)
        for name in HOLDERS:
            index.gateway.meet(name)
        gc.collect()
        gc.freeze()  # as the gateway does
        before = psutil.Process().memory_info().rss
        feed = asyncio.create_task(index.gateway.feed.run())
        meanwhile = await fill(index, prompts, size.num_pairs)
        fill_s, longest_s = sum(took.wall_s for took in index.took), max(took.wall_s for took in index.took)
        longest_cpu_s = max(took.cpu_s for took in index.took)
        index.took.clear()
        gc.collect()
        grown = psutil.Process().memory_info().rss - before
        rows: list[Row] = [
            {
                "copies": copies,
                "pairs": index.num_pairs,
                "bytes/pair": grown / index.num_pairs,
                "peak bytes/pair": (_peak_bytes() - before) / index.num_pairs,
                "filled, block events/s": round(index.num_pairs / fill_s),
                "longest event ms": 1e3 * longest_s,
                "longest, CPU ms": 1e3 * longest_cpu_s,
            }
        ]
        rows.append(match_row(copies, "either, while filling", meanwhile))
        for kind in kinds:
            chosen = [prompt.keys for prompt in prompts if prompt.kind == kind]
            times = [index.match(chosen[number % len(chosen)]) for number in range(size.num_matches)]
            rows.append(match_row(copies, kind, times))
        nobody = [index.match(rng.bytes(32 * PROMPT_BLOCKS)) for _ in range(size.num_matches)]
        rows.append(match_row(copies, "no pool", nobody))
        rows += [await ingest(index, event_blocks, size.num_events_blocks) for event_blocks in EVENT_BLOCKS]
        popular = rng.bytes(32 * PROMPT_BLOCKS)
        for name in HOLDERS:
            await index.gateway.feed.take(index.gateway.placed(name, runs(popular)))
        everybody = [index.match(popular) for _ in range(size.num_matches // 10)]
        rows.append(match_row(copies, "each pool, all of them", everybody))
        feed.cancel()
        await asyncio.wait({feed})
        return rows


def run_spread(copies: int, size: IndexSize) -> list[Row]:
    return asyncio.run(spread(copies, size))


async def catch_up(num_blocks: int) -> Row:
    """Meet a pool that holds all this, as the bus announces it, and time until it is trusted."""
    with pool_with(num_blocks) as served:
        async with Channels() as channels:
            gateway = Gateway(channels)
            running = asyncio.create_task(gateway.feed.run())
            started = time.perf_counter()
            await gateway.feed.take(gateway.announced(HOLDERS[0], served.address))
            late_s = 0.0
            async with asyncio.timeout(60):
                while gateway.index.has_stale:
                    asked = time.perf_counter()
                    await asyncio.sleep(0.001)
                    late_s = max(late_s, time.perf_counter() - asked - 0.001)
            elapsed = time.perf_counter() - started
            running.cancel()
            await asyncio.wait({running})
            assert gateway.index.num_blocks() == {HOLDERS[0]: num_blocks}
    return {
        "snapshot blocks": num_blocks,
        "caught up s": elapsed,
        "loop held up ms": 1e3 * late_s,
        "pool's log bytes/block": served.log_bytes_per_block,
        "pool's log blocks/s": round(served.announced_per_s),
    }


def measure(options: argparse.Namespace) -> Report:
    size = QUICK if options.quick else FULL
    report = Report(settings={"holders": NUM_HOLDERS, "prompt_blocks": PROMPT_BLOCKS, "pairs": size.num_pairs})
    for copies in (1, 2):
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            report.rows += process.submit(run_spread, copies, size).result()
    caught_up = asyncio.run(catch_up(size.num_snapshot_blocks))
    report.rows.append(caught_up)
    for row in report.rows:
        _check(report, row)
    report.checks.append(at_most("catch-up from a snapshot", float(str(caught_up["caught up s"])), 10.0, "s"))
    return report


def _check(report: Report, row: Row) -> None:
    """Name the targets that a row answers to."""

    def value(name: str) -> float:
        return float(str(row[name]))

    where = f"each block on {row.get('copies')}"
    if "bytes/pair" in row:
        report.checks.append(at_most(f"memory, {where}", value("bytes/pair"), 100, "bytes"))
    kind = row.get("prompt's blocks on")
    if kind in ("one pool", "all pools", "no pool"):
        name = f"match p99, {where}, prompt on {kind}"
        report.checks.append(at_most(name, value("p99 ms"), 1.0, "ms"))
    if row.get("blocks in an event") == TARGET_EVENT_BLOCKS:
        report.checks.append(at_least(f"ingest, {where}", value("block events/s"), 200_000, "block events/s"))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    raise SystemExit(harness.main("index", measure, description=__doc__))
