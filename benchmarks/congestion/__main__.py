"""A link that falls to a tenth and comes back, under a steady open-loop load on unequal workers.

Two prefill workers are in the east, one of them held to a third of a core; decode is in the west. The load is a Poisson
process of prompts that nobody has seen. The run is repeated with two gateways, which know of each other what the bus
says. Each request's plan and forecast come from its gateway's log.

`benchmarks.congestion.sites` says which worker has which cores. Needs root (network namespaces, control groups).
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import median

from benchmarks import serve
from benchmarks.congestion.judging import (
    Phases,
    ServedRequests,
    forecast_error,
    last_before_moving_s,
    moved_after_s,
    returned_after_s,
    share,
    switches,
    ttft_percentile,
)
from benchmarks.congestion.load import SteadyLoad
from benchmarks.congestion.plot import draw
from benchmarks.congestion.sites import FAST_WORKER, NARROW, SHARES, WIDE, gateways, layout
from benchmarks.harness import Check, Report, Row, at_most
from benchmarks.streaming.asking import open_bench
from benchmarks.wan import command
from benchmarks.wan.network import Wan, wan
from benchmarks.wan.suite import EAST, WEST, log_folder, wan_suite

WARM_UP_S = 40.0
FORECAST_ERROR, MOVED_S, OF_FORMER_P95 = 0.20, 2.0, 2.0
MOST_SWITCHES = 2
"""Away and back."""

FEWEST = 5
"""Requests of a kind whose median says something."""


async def run(network: Wan, num_gateways: int, options: argparse.Namespace) -> list[ServedRequests]:
    """Return what was served while the link was wide, narrow, and wide again."""
    environ = {
        "PRFAAS_DTYPE": options.dtype,
        "PRFAAS_THREADS": "1",
        "PRFAAS_REQUEST_TIMEOUT_S": "300",
        "PRFAAS_CODEC": "raw",
    }
    with (
        log_folder(options.logs) as folder,
        network.inside(WEST),
        wan_suite(network, folder, layout(num_gateways), **environ) as suite,
    ):
        async with serve.new_session() as session:
            bench = await open_bench(network, suite, session, options.tokens)
            load = SteadyLoad(bench, gateways(num_gateways), options.tokens)
            phases = phases_of(options)
            sending = asyncio.create_task(load.run(options.rate, phases, options.seed))
            await asyncio.sleep(phases.slow_s)
            network.shape(NARROW)
            await asyncio.sleep(phases.back_s - phases.slow_s)
            network.shape(WIDE)
            await sending
            return await load.served()


def phases_of(options: argparse.Namespace) -> Phases:
    seconds, warm_up_s = (12.0, 8.0) if options.quick else (options.seconds, WARM_UP_S)
    return Phases(warm_up_s, warm_up_s + seconds, warm_up_s + 2 * seconds, warm_up_s + 3 * seconds)


def rows_of(name: str, phases: Phases, served: Sequence[ServedRequests]) -> list[Row]:
    """Return a row for each phase and way."""
    rows: list[Row] = []
    for phase in ("before", "slow", "after"):
        of_phase = sorted(phases.of(served, phase), key=_way)
        for way, group in groupby(of_phase, key=_way):
            chosen = list(group)
            rows.append(
                {
                    "gateways": name,
                    "phase": phase,
                    "way": way,
                    "requests": len(chosen),
                    "forecast_p50_s": round(median(one.forecast_s for one in chosen), 3),
                    "ttft_p50_s": round(ttft_percentile(chosen, 50), 3),
                    "ttft_p95_s": round(ttft_percentile(chosen, 95), 3),
                    "rescued": sum(one.is_rescued for one in chosen),
                }
            )
    return rows


def summary_of(name: str, phases: Phases, served: Sequence[ServedRequests]) -> Row:
    """Return what a run comes to."""
    before, slow, after = (phases.of(served, phase) for phase in ("before", "slow", "after"))
    p95 = {phase: ttft_percentile(part, 95) for phase, part in (("before", before), ("slow", slow), ("after", after))}
    return {
        "gateways": name,
        "share_before": round(share(before), 3),
        "share_slow": round(share(slow), 3),
        "share_after": round(share(after), 3),
        "last_before_s": round(last_before_moving_s(slow, phases.slow_s), 2),
        "moved_after_s": round(moved_after_s(slow, phases.slow_s, share(before)), 2),
        "returned_after_s": round(returned_after_s(after, phases.back_s, share(before)), 2),
        "switches": switches([*before, *slow, *after]),
        **{f"ttft_p95_{phase}_s": round(value, 3) for phase, value in p95.items()},
    }


def checks_of(name: str, phases: Phases, served: Sequence[ServedRequests], summary: Row) -> list[Check]:
    before = sorted(phases.of(served, "before"), key=_way)
    checks = [
        at_most(f"{name}, {way}: median forecast off the median measured", forecast_error(chosen), FORECAST_ERROR)
        for way, chosen in ((way, list(group)) for way, group in groupby(before, key=_way))
        if len(chosen) >= FEWEST
    ]
    p95 = [ttft_percentile(phases.of(served, phase), 95) for phase in ("before", "slow")]
    return [
        *checks,
        at_most(
            f"{name}: the last prompt before routing has moved", float(summary["last_before_s"] or 0), MOVED_S, "s"
        ),
        at_most(f"{name}: TTFT p95 at a tenth to its former value", p95[1] / p95[0], OF_FORMER_P95),
        at_most(f"{name}: switches", float(summary["switches"] or 0), MOST_SWITCHES),
    ]


def measure(options: argparse.Namespace) -> Report:
    found = Report(settings=_settings(options))
    runs: dict[str, tuple[Phases, Sequence[ServedRequests]]] = {}
    phases = phases_of(options)
    for num_gateways in (1,) if options.quick else options.gateways:
        with wan([EAST, WEST], WIDE) as network:
            served = asyncio.run(run(network, num_gateways, options))
        name = "one gateway" if num_gateways == 1 else f"{num_gateways} gateways"
        runs[name] = phases, served
        summary = summary_of(name, phases, served)
        found.rows += [summary, *rows_of(name, phases, served)]
        found.checks += checks_of(name, phases, served, summary)
        found.rows += [_point(name, one) for one in served] if options.series else []
    if options.plot is not None:
        draw(runs, options.plot)
    return found


def _way(one: ServedRequests) -> str:
    return one.kind if one.prefill is None else f"{one.kind}, {'whole' if one.prefill == FAST_WORKER else 'third'}"


def _point(name: str, one: ServedRequests) -> Row:
    return {
        "gateways": name,
        "at_s": round(one.at_s, 2),
        "way": _way(one),
        "forecast_s": round(one.forecast_s, 3),
        "ttft_s": round(one.ttft_s, 3),
        "rescued": one.is_rescued,
    }


def _settings(options: argparse.Namespace) -> Row:
    return {
        "tokens": options.tokens,
        "requests_per_s": options.rate,
        "seconds_a_phase": options.seconds,
        "mbit_per_s": 8e-6 * WIDE.rate_bytes_per_s,
        "dtype": options.dtype,
        **{f"share_of_{name}": round(part, 2) for name, part in SHARES.items()},
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, default=256, help="of each prompt (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=0.7, help="requests a second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each phase (default: %(default)s)")
    parser.add_argument("--gateways", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals (default: %(default)s)")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the processes' logs here")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="default: %(default)s")
    parser.add_argument("--series", action="store_true", help="a row for each request, too")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw each request")


if __name__ == "__main__":
    sys.exit(command.main("congestion", measure, add_options, description=__doc__))
