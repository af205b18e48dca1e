"""Hit ratio against capacity when a request trace is replayed through the pool's own store and policy.

A block hits when it and all before it can be used. Time saved weighs hits by what the blocks would cost to compute:
attention makes the end of a long prompt dearer than its head. Against plain LRU over whole blocks, from chains' ends.
Without --trace, and with --quick, a synthetic trace of the same shape is replayed.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import harness
from benchmarks.harness import Check, Report, Row, at_least
from benchmarks.trace.plot import save_plot
from benchmarks.trace.replay import DENSE, HYBRID, UNLIMITED, Lru, ReplayOutcome, Setup, replay
from benchmarks.trace.source import TraceRequest, load, synthetic
from services.cachepool.store.eviction import Eviction

CAPACITIES = (1000, 2000, 4000, 8000, 16000, 32000, 48000, 64000)
POOLED_CAPACITIES = (8000,)
QUICK_REQUESTS, QUICK_CAPACITIES = 400, (500, 1500, 4000)
NUM_SYNTHETIC = 4000
UNLIMITED_PERCENT = 36.6
"""Of Mooncake's conversation trace, which --trace is meant for."""

SYNTHETIC_LOSS_POINTS = 0.3
"""What ours may lose against LRU on a synthetic trace: what frequency is worth there has to be found out first."""


class TraceCase(NamedTuple):
    """One replay."""

    layout: str  # dense or hybrid
    policy: str  # lru or ours
    capacity_blocks: int
    setup: Setup


def cases(capacities: Sequence[int], pooled_capacities: Sequence[int]) -> Iterator[TraceCase]:
    one = Setup()
    yield TraceCase("dense", "ours", UNLIMITED, one)
    for capacity in capacities:
        yield from (TraceCase("dense", policy, capacity, one) for policy in ("lru", "ours"))
    for capacity in pooled_capacities:
        yield from (TraceCase("hybrid", policy, capacity, one) for policy in ("lru", "ours"))
        for split in ("conversation", "random"):
            yield from (TraceCase("dense", "ours", capacity, Setup(2, split, pooled)) for pooled in (False, True))


def run(requests: Sequence[TraceRequest], case: TraceCase) -> ReplayOutcome:
    layout = DENSE if case.layout == "dense" else HYBRID
    if case.layout == "hybrid":  # one resumes where a chain was cut: engines store full blocks only, and so do we here
        requests = [request._replace(keys=request.keys[:-1]) for request in requests if len(request.keys) > 1]
    return replay(requests, layout, case.capacity_blocks, Lru if case.policy == "lru" else Eviction, case.setup)


def row(case: TraceCase, outcome: ReplayOutcome) -> Row:
    return {
        "kv": case.layout,
        "datacenters": str(case.setup),
        "policy": case.policy,
        "capacity_blocks": None if case.capacity_blocks == UNLIMITED else case.capacity_blocks,
        "hit_%": round(outcome.hit_percent, 2),
        "time_saved_%": round(outcome.saved_percent, 2),
        "crossed_%": round(100 * outcome.crossed / outcome.blocks, 2),
    }


def checks(found: dict[TraceCase, ReplayOutcome], *, is_real: bool) -> list[Check]:
    made: list[Check] = []
    for layout in ("dense", "hybrid"):
        gains = [
            outcome.hit_percent - found[case._replace(policy="lru")].hit_percent
            for case, outcome in found.items()
            if case.layout == layout and case._replace(policy="lru") in found and case.policy == "ours"
        ]
        least = 0.0 if is_real else -SYNTHETIC_LOSS_POINTS
        made.append(at_least(f"{layout} KV: smallest gain over LRU, points", min(gains), least))
    for case, outcome in found.items():
        if case.setup.pooled:
            apart = found[case._replace(setup=case.setup._replace(pooled=False))]
            name = f"{case.capacity_blocks} blocks, split by {case.setup.split}: pooled over separate, points"
            made.append(at_least(name, outcome.hit_percent - apart.hit_percent, 0.0))
    if is_real:
        unlimited = next(outcome for case, outcome in found.items() if case.capacity_blocks == UNLIMITED)
        made.append(at_least("unlimited capacity: hit ratio, %", unlimited.hit_percent, UNLIMITED_PERCENT))
    return made


def measure(options: argparse.Namespace) -> Report:
    is_real = options.trace is not None and not options.quick
    if is_real:
        requests = load(options.trace)
    else:
        requests = synthetic(QUICK_REQUESTS if options.quick else NUM_SYNTHETIC)
    capacities = QUICK_CAPACITIES if options.quick else options.capacity or CAPACITIES
    todo = list(cases(capacities, capacities[1:2] if options.quick else options.pooled_capacity or POOLED_CAPACITIES))
    with ProcessPoolExecutor(options.jobs) as workers:
        found = dict(zip(todo, workers.map(partial(run, requests), todo), strict=True))
    report = Report(
        rows=[row(case, outcome) for case, outcome in found.items()],
        checks=checks(found, is_real=is_real),
        settings={"trace": options.trace.name if is_real else "synthetic", "requests": len(requests)},
    )
    if options.plot is not None:
        save_plot(report, options.plot)
    return report


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trace", type=Path, metavar="FILE", help="JSON lines in the format of Mooncake's traces")
    parser.add_argument("--capacity", type=int, action="append", metavar="BLOCKS", help="may be repeated")
    parser.add_argument("--pooled-capacity", type=int, action="append", metavar="BLOCKS", help="of hybrid and two DCs")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves here")
    parser.add_argument("--jobs", type=int, default=1, help="replays at a time")


if __name__ == "__main__":
    sys.exit(harness.main("trace", measure, add_options, description=__doc__))
