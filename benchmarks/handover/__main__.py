"""What each hop of the hand-over costs: engine to pool, pool to pool, pool to engine, and all three at once.

Pools and engines' ends are processes of their own. The engines publish and fetch with the services' own publisher and
fetcher, from pages and into pages, and have no model. A layer's blocks are complete at once, as behind a prefill step.
Each cell moves the same prompt again and again under new keys. The first passes fill the pools, which is told apart:
memory that is touched for the first time costs more than all else. `--lane` sets PRFAAS_LANES for all processes of a
way; ways of several lanes take turns.

Each process is measured from outside. Bytes of each byte of payload: copied (through memcpy and memmove, 4 KiB and
more, counted by a library in front of libc), crossed (through the kernel, by reads and writes); copies is their sum
over the hop's processes. For each MB: calls (those reads and writes), faults (pages touched for the first time),
switches (a thread began to wait). For each GB: seconds of the processor. first_ms is the time until the first entry of
the first layer is usable at the reader.
"""

import argparse
import asyncio
import math
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack

import torch

from benchmarks import harness
from benchmarks.handover import bounds
from benchmarks.handover.counting import Counting, Used, counting
from benchmarks.handover.shapes import KIB, MIB, SHAPES
from benchmarks.handover.way import HOPS, LANES, PASS_BYTES, POOL_BYTES, HandoverWay, Moved, open_way
from benchmarks.harness import Report, Row, Spread

FILLING_PASSES = POOL_BYTES // PASS_BYTES + 1
PASSES, QUICK_PASSES = 8, 2
QUICK_SIZES = (48 * KIB,)
ENDS = {HOPS[0]: ("engine", "pool"), HOPS[1]: ("from", "to"), HOPS[2]: ("pool", "engine"), HOPS[3]: ("all",)}


async def measure_size(
    counted: Counting, lanes: Sequence[str], device: str, entry_bytes: int, passes: int
) -> list[Row]:
    """Return the rows of one size of entries; lanes take turns, pass by pass."""
    found: dict[tuple[str, str, str], list[Moved]] = {}
    staged: list[Row] = []
    async with AsyncExitStack() as stack:
        ways = {lane: await stack.enter_async_context(open_way(counted, lane, device, entry_bytes)) for lane in lanes}
        for number in range(FILLING_PASSES + passes):
            memory = "fresh" if number == 0 else "used" if number >= FILLING_PASSES else None
            for lane in lanes if number % 2 else reversed(lanes):
                for hop, moved in (await _pass(ways[lane], f"pass {number}")).items():
                    if memory is not None:
                        found.setdefault((hop, lane, memory), []).append(moved)
        if device != "cpu":
            staged = _staged_rows(ways[lanes[0]], entry_bytes, passes)
    ordered = sorted(found.items(), key=lambda item: (HOPS.index(item[0][0]), item[0][2] == "used"))
    rows = [speed_row(entry_bytes, *cell, moves) for cell, moves in ordered]
    rows += [row for cell, moves in ordered for row in account_rows(entry_bytes, *cell, moves)]
    return rows + staged


async def _pass(way: HandoverWay, name: str) -> dict[str, Moved]:
    return {hop: await way.move(hop, name) for hop in HOPS}


def speed_row(entry_bytes: int, hop: str, lane: str, memory: str, moves: Sequence[Moved]) -> Row:
    used = _total([used for moved in moves for used in moved.used])
    num_bytes = sum(moved.num_bytes for moved in moves)
    return {
        "entry_kib": entry_bytes // KIB,
        "hop": hop,
        "lane": lane,
        "memory": memory,
        **Spread.of([moved.num_bytes / moved.seconds / 1e9 for moved in moves]).cells("gb_per_s"),
        "first_ms": round(1000 * Spread.of([moved.first_s for moved in moves]).median, 2),
        "cpu_s_gb": _per(used.user_s + used.system_s, num_bytes / 1e9),
        "copies": _per(used.copied + used.crossed, num_bytes),
    }


def account_rows(entry_bytes: int, hop: str, lane: str, memory: str, moves: Sequence[Moved]) -> list[Row]:
    """One row for each process of a hop: totals over all passes, divided by the payload."""
    num_bytes = sum(moved.num_bytes for moved in moves)
    totals = [_total([moved.used[end] for moved in moves]) for end in range(len(moves[0].used))]
    if len(ENDS[hop]) == 1:
        totals = [_total(totals)]
    rows: list[Row] = []
    for end, used in zip(ENDS[hop], totals, strict=True):
        rows.append(
            {
                "entry_kib": entry_bytes // KIB,
                "hop": hop,
                "lane": lane,
                "memory": memory,
                "end": end,
                "user_s_gb": _per(used.user_s, num_bytes / 1e9),
                "system_s_gb": _per(used.system_s, num_bytes / 1e9),
                "copied": _per(used.copied, num_bytes),
                "crossed": _per(used.crossed, num_bytes),
                "calls_mb": _per(used.calls, num_bytes / 1e6),
                "faults_mb": _per(used.faults, num_bytes / 1e6),
                "switches_mb": _per(used.switches, num_bytes / 1e6),
            }
        )
    return rows


def _total(parts: Sequence[Used]) -> Used:
    total = parts[0]
    for part in parts[1:]:
        total = total.plus(part)
    return total


def _per(amount: float, unit: float) -> float | None:
    return None if math.isnan(amount) else round(amount / unit, 3)


def _staged_rows(way: HandoverWay, entry_bytes: int, passes: int) -> list[Row]:
    """Pages on a device: what its copies to the host and back reach without a pool."""
    way.staged()  # takes the host's pinned memory
    found = [way.staged() for _ in range(passes)]
    return [
        {
            "entry_kib": entry_bytes // KIB,
            "hop": hop,
            **Spread.of([taken["bytes"] / taken[seconds] / 1e9 for taken in found]).cells("gb_per_s"),
        }
        for hop, seconds in (("device -> host", "out_s"), ("host -> device", "in_s"))
    ]


def measure(options: argparse.Namespace) -> Report:
    lanes = options.lane or ["auto"]
    passes, sizes = (QUICK_PASSES, QUICK_SIZES) if options.quick else (options.passes, tuple(SHAPES))
    sizes = tuple(size * KIB for size in options.entry_kib) if options.entry_kib else sizes
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with counting(copies=not options.no_count) as counted:
        report = Report(settings={"device": device, "pass_mib": PASS_BYTES // MIB, "passes": passes})
        report.settings["memory_bandwidth"] = "no counter is read"
        if counted.absent is not None:
            report.settings["copies"] = f"not counted: {counted.absent}"
        report.rows += bounds.measure(counted, 3 if options.quick else 7)
        for size in sizes:
            report.rows += asyncio.run(measure_size(counted, lanes, device, size, passes))
    return report


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lane", action="append", choices=LANES, help="may be repeated; default: auto")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where the pages are; default: a GPU if there is one")
    parser.add_argument("--passes", type=int, default=PASSES, help="that are counted (default: %(default)s)")
    parser.add_argument("--no-count", action="store_true", help="count no copies: nothing stands in front of libc")
    parser.add_argument(
        "--entry-kib", type=int, action="append", choices=[size // KIB for size in SHAPES], help="may be repeated"
    )


if __name__ == "__main__":
    sys.exit(harness.main("handover", measure, add_options, description=__doc__))
