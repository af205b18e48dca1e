"""A tenant that floods, and the time to the first token of another one.

The victim asks for one answer at a time and pauses three times as long as it waits alone for a first token: it uses a
quarter of the engine at most. The flooder has many prompts open at any time. Rows: the victim alone; beside the flood,
as another tenant; beside the flood, as the same tenant, which is what a gateway without turns would do. The three come
in turn against one suite, round after round.

`benchmarks.fairness.layout` says which process has which core: the engine that computes prompts shares its own with
nobody. Needs root (a network namespace keeps ports apart).
"""

import argparse
import asyncio
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import harness
from benchmarks.fairness.asking import FLOODER, VICTIM, AskingPace, FairnessTenants, FairnessTurn, PromptShape
from benchmarks.fairness.layout import LAYOUTS, ONE_ENGINE, environ, layout, other_cores
from benchmarks.harness import Report, Row, at_most
from benchmarks.serve import percentile
from benchmarks.wan.line import Line
from benchmarks.wan.network import Wan, WanUnavailable, wan
from benchmarks.wan.suite import EAST, WEST, log_folder, wan_suite

SHAPE = PromptShape(1024, 500)
RATIO = 1.5
PAUSE = 3.0
"""The victim's pause, as a multiple of its time to the first token alone."""

ALONE, FAIR, SAME = "alone", "flooded", "flooded, one tenant"
CONDITIONS = {ALONE: None, FAIR: FLOODER, SAME: VICTIM}
WARM_UP = 4
"""The first steps are slow, and forecasts are made of what was measured."""

Turns = dict[str, list[FairnessTurn]]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--asked", type=int, default=6, help="victim's requests in a turn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--flooders", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--victim-tokens", type=int, default=SHAPE.victim, help="default: %(default)s")
    parser.add_argument("--flooder-tokens", type=int, default=SHAPE.flooder, help="default: %(default)s")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="of the suite")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the processes' logs here")


def turns_of(tenants: FairnessTenants, shape: PromptShape, options: argparse.Namespace) -> Turns:
    """Let the victim ask in each condition, round after round."""
    alone = tenants.turn(shape, 2 if options.quick else WARM_UP, None)
    tenants.pace = replace(tenants.pace, mean_pause_s=PAUSE * statistics.median(alone.ttfts_s))
    turns: Turns = {condition: [] for condition in CONDITIONS}
    for _ in range(1 if options.quick else options.rounds):
        for condition, flooder in CONDITIONS.items():
            asked = 1 if condition == SAME else min(options.asked, 3) if options.quick else options.asked
            turns[condition].append(tenants.turn(shape, asked, flooder))
    return turns


def run(network: Wan, name: str, options: argparse.Namespace) -> Turns:
    shape = PromptShape(options.victim_tokens, options.flooder_tokens)
    settings = {**environ(name), **dict(assignment.split("=", 1) for assignment in options.env)}
    with (
        log_folder(options.logs) as folder,
        network.inside(WEST),
        wan_suite(network, folder, layout(name), **settings) as suite,
    ):
        asyncio.run(suite.ready())
        pace = AskingPace(8, ramp_s=2.0) if options.quick else AskingPace(options.flooders)
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, other_cores())
        try:
            return turns_of(FairnessTenants(suite.url, pace), shape, options)
        finally:
            os.sched_setaffinity(0, own)


def report(found: dict[str, Turns], settings: Row) -> Report:
    """A row for each layout and condition, and a target for each layout."""
    made = Report(settings=settings)
    for name, turns in found.items():
        alone = turns[ALONE]
        made.rows += [row_of(name, condition, turns[condition], alone) for condition in CONDITIONS]
        made.checks.append(at_most(f"{name}: p95 beside a flood", ratio(turns[FAIR], alone, 95), RATIO, "x"))
    return made


def ratio(turns: Sequence[FairnessTurn], alone: Sequence[FairnessTurn], percent: int) -> float:
    return percentile(_ttfts_s(turns), percent) / percentile(_ttfts_s(alone), percent)


def row_of(name: str, condition: str, turns: Sequence[FairnessTurn], alone: Sequence[FairnessTurn]) -> Row:
    ttfts_s = _ttfts_s(turns)
    return {
        "engines": name,
        "victim": condition,
        "asked": len(ttfts_s),
        "p50 ms": round(1e3 * percentile(ttfts_s, 50)),
        "p95 ms": round(1e3 * percentile(ttfts_s, 95)),
        "p50 to alone": round(ratio(turns, alone, 50), 2),
        "p95 to alone": round(ratio(turns, alone, 95), 2),
        "rounds' p50 ms": " ".join(f"{1e3 * percentile(turn.ttfts_s, 50):.0f}" for turn in turns if turn.ttfts_s),
        "flood/s": round(sum(len(turn.flooder) for turn in turns) / sum(turn.seconds for turn in turns), 2),
        "errors": sum(len(turn.errors) for turn in turns),
    }


def _ttfts_s(turns: Sequence[FairnessTurn]) -> list[float]:
    return [ttft_s for turn in turns for ttft_s in turn.ttfts_s]


def measure(options: argparse.Namespace) -> Report:
    found = {}
    for name in [ONE_ENGINE] if options.quick else options.layouts:
        with wan([EAST, WEST], Line()) as network:
            found[name] = run(network, name, options)
    settings: Row = {
        "rounds": 1 if options.quick else options.rounds,
        "flooders": 8 if options.quick else options.flooders,
        "prompts": f"{options.victim_tokens} beside {options.flooder_tokens} tokens",
        "environment": " ".join(options.env) or None,
    }
    return report(found, settings)


def main() -> int:
    try:
        return harness.main("fairness", measure, add_options, description=__doc__)
    except WanUnavailable as reason:
        sys.stderr.write(f"benchmarks.fairness needs a network namespace, which this machine cannot have: {reason}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
