"""The suite over an emulated WAN of 30 ms round trip: time to the first token while the link is as fast as prefill,
faster and slower, streamed layer by layer and, beside it, stored and forwarded.

Prefill has one core (one thread) that nothing else runs on; relay, pools, gateways and decode share the others: where
all of this is one machine, prefill must not slow down because a link is busy. Rates are chosen from what prefill takes
on this machine. The stored runs use a second gateway (PRFAAS_HAND_OFF=stored) and the same engines; they also say how
long prefill takes while nothing is transferred.

`--table rival` measures what round trips and lengths that a rival has published add to the time to the first token, and
its load (`benchmarks.streaming.rival`). Needs root (network namespaces).
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import serve
from benchmarks.harness import Check, Report, Row, Spread, at_most
from benchmarks.pool.turns import LANES
from benchmarks.streaming import rival
from benchmarks.streaming.asking import Bench, open_bench
from benchmarks.streaming.plot import Point, draw
from benchmarks.wan import command
from benchmarks.wan.line import Line
from benchmarks.wan.network import Wan, wan
from benchmarks.wan.suite import EAST, WEST, WanSuite, wan_suite

DELAY_S = 0.015
ROUND_TRIP_S = 2 * DELAY_S
RATIOS = (0.25, 0.5, 1.0, 2.0)
FAST = 125e6
OVER_BOUND = 1.06
OF_STORED = 0.55
WARM_UP_TOKENS = 600
MAX_WARM_UPS = 20


class Sample(NamedTuple):
    """One request."""

    ttft_s: float
    prefill_s: float  # in the prefill worker, until its pool had stored everything
    wire_bytes: int  # over the link, with all headers


async def sample(bench: Bench, *, stored: bool = False, num_tokens: int | None = None) -> Sample:
    """Ask for a prompt that nobody has seen. Raises `RuntimeError`, and `LookupError` when no prefill is logged."""
    url = bench.suite.stored_url if stored else bench.suite.url
    answer = await bench.ask(url, bench.new_prompt(num_tokens or len(bench.prompt)))
    prefilled = bench.suite.last_event("prefill-east", "prompt_prefilled")
    return Sample(answer.ttft_s, prefilled["stored_at_s"] - prefilled["started_at_s"], answer.wire_bytes)


async def warm_up(bench: Bench) -> None:
    """Both gateways know the prefill worker, every connection is open, every page was touched once."""
    for stored in (False, True):
        for _ in range(MAX_WARM_UPS):
            before = bench.suite.log("prefill-east").count("prompt_prefilled")
            try:
                await sample(bench, stored=stored, num_tokens=WARM_UP_TOKENS)
            except LookupError:
                continue  # decode computed it alone
            if bench.suite.log("prefill-east").count("prompt_prefilled") > before:
                break
        else:
            raise RuntimeError("no request is sent to the east: see the gateway's log")


class StreamingFound(NamedTuple):
    """Samples of one ratio, and what a transfer takes at its rate."""

    ratio: float
    rate: float  # bytes/s
    samples: list[Sample]


async def sweep(bench: Bench, ratios: Sequence[float], repetitions: int) -> tuple[list[StreamingFound], list[Sample]]:
    """Return the streamed samples by ratio, and the stored ones of ratio 1; all are asked in turn."""
    trials = [await sample(bench, stored=True) for _ in range(1 if repetitions == 1 else 3)]
    prefill_s = Spread.of([trial.prefill_s for trial in trials]).median
    found = [StreamingFound(ratio, trials[0].wire_bytes / (ratio * prefill_s), []) for ratio in ratios]
    stored: list[Sample] = []
    for repetition in range(repetitions):
        for ratio, rate, samples in found if repetition % 2 == 0 else reversed(found):
            bench.network.shape(Line(DELAY_S, rate))
            samples.append(await sample(bench))
            if ratio == 1.0:
                stored.append(await sample(bench, stored=True))
    return found, stored


async def run(network: Wan, suite: WanSuite, options: argparse.Namespace) -> tuple[list[StreamingFound], list[Sample]]:
    async with serve.new_session() as session:
        bench = await open_bench(network, suite, session, options.tokens)
        await warm_up(bench)
        return await sweep(bench, (1.0,) if options.quick else RATIOS, 1 if options.quick else options.repetitions)


def report(found: Sequence[StreamingFound], stored: Sequence[Sample], settings: Row) -> tuple[Report, list[Point]]:
    """A row for each ratio; the bound is max(prefill, transfer) and one round trip."""
    prefill_s = Spread.of([sample.prefill_s for sample in stored]).median
    stored_ttft_s = Spread.of([sample.ttft_s for sample in stored])
    rows: list[Row] = []
    checks: list[Check] = []
    points: list[Point] = []
    for ratio, rate, samples in found:
        ttft_s = Spread.of([sample.ttft_s for sample in samples])
        transfer_s = Spread.of([sample.wire_bytes / rate for sample in samples]).median
        bound_s = max(prefill_s, transfer_s) + ROUND_TRIP_S
        rows.append(
            {
                "mode": "streamed",
                "transfer_to_prefill": ratio,
                "mbit_per_s": round(rate * 8 / 1e6, 1),
                "prefill_s": round(prefill_s, 3),
                "transfer_s": round(transfer_s, 3),
                "bound_s": round(bound_s, 3),
                "prefill_beside_s": round(Spread.of([sample.prefill_s for sample in samples]).median, 3),
                **ttft_s.cells("ttft_s", 3),
                "ttft_to_bound": round(ttft_s.median / bound_s, 3),
            }
        )
        checks.append(at_most(f"ratio {ratio:g}: TTFT to the bound", ttft_s.median / bound_s, OVER_BOUND))
        points.append(Point(transfer_s / prefill_s, ttft_s.median / prefill_s, bound_s / prefill_s))
        if ratio == 1.0:
            forward = dict.fromkeys(rows[-1]) | {
                "mode": "stored",
                "transfer_to_prefill": ratio,
                "mbit_per_s": round(rate * 8 / 1e6, 1),
                "prefill_s": round(prefill_s, 3),
                "transfer_s": round(transfer_s, 3),
                **stored_ttft_s.cells("ttft_s", 3),
            }
            rows.append(forward)
            checks.append(
                at_most("ratio 1: TTFT to store and forward", ttft_s.median / stored_ttft_s.median, OF_STORED)
            )
            points[-1] = points[-1]._replace(stored=stored_ttft_s.median / prefill_s)
    return Report(rows, checks, settings), points


def measure(options: argparse.Namespace) -> Report:
    return rival.measure(options) if options.table == "rival" else measure_sweep(options)


def measure_sweep(options: argparse.Namespace) -> Report:
    options.tokens = options.tokens or (1000 if options.quick else 2000)
    with wan([EAST, WEST], Line(DELAY_S, FAST)) as network, tempfile.TemporaryDirectory() as folder:
        # Raw frames: a codec would change the bytes with the rate, and take of the cores that prefill competes for.
        environ = {
            "PRFAAS_ROUTING_POLICY": "threshold",
            "PRFAAS_DECODE_THRESHOLD_TOKENS": "0",
            "PRFAAS_DTYPE": options.dtype,
            "PRFAAS_THREADS": "1",
            "PRFAAS_CODEC": "raw",
            "PRFAAS_REQUEST_TIMEOUT_S": "300",
        }
        environ |= rival.lanes(options.lane)
        with network.inside(WEST), wan_suite(network, Path(folder), **environ) as suite:
            found, stored = asyncio.run(run(network, suite, options))
    settings: Row = {
        "tokens": options.tokens,
        "dtype": options.dtype,
        "round_trip_ms": 1000 * ROUND_TRIP_S,
        "repetitions": len(stored),
        "prefill_threads": 1,
    }
    result, points = report(found, stored, settings)
    if options.plot is not None:
        draw(points, options.plot)
    return result


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, default=0, help="length of the prompt (default: 2000, quick 1000)")
    parser.add_argument("--repetitions", type=int, default=3, help="rounds over all rates (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of weights and KV (default: %(default)s, which every CPU is quick in)",
    )
    parser.add_argument("--table", choices=("sweep", "rival"), default="sweep", help="default: %(default)s")
    parser.add_argument("--lane", choices=LANES, default="auto", help="default: %(default)s")
    rival.add_options(parser)
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the table")


if __name__ == "__main__":
    sys.exit(command.main("streaming", measure, add_options, description=__doc__))
