"""A tenant that floods, and the time to the first token of another one.

The victim asks for one answer at a time and pauses some times as long as it waits alone for a first token: it uses a
small part of the engines. The flooder has many prompts open at any time. Rows: the victim alone; the bound; beside the
flood, as another tenant; beside the flood, as the same tenant, which is what a gateway without turns would do. The
conditions come in turn against one suite, round after round, the last of them in the last round only.

The bound is what the victim would wait if the flood cost it nothing but the rest of the step that is under way when it
comes: `benchmarks.fairness.bound`.

"Engine" is the CPU time that the victim's engine used until its first token: the time to it on a core that nothing
else uses, whatever else this machine does.

`benchmarks.fairness.layout` says which process has which core, and what part of it. Needs root (a network namespace
keeps ports apart, control groups keep other programs from the suite's cores).
"""

import argparse
import asyncio
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.fairness.asking import FLOODER, VICTIM, AskingPace, FairnessTenants, FairnessTurn, PromptShape
from benchmarks.fairness.bound import beside_steps
from benchmarks.fairness.engines import StepsRun, SuiteEngines
from benchmarks.fairness.layout import LAYOUTS, ONE_ENGINE, environ, layout, other_cores
from benchmarks.harness import Report, Row, at_most
from benchmarks.serve import percentile
from benchmarks.wan import command
from benchmarks.wan.line import Line
from benchmarks.wan.network import Wan, wan
from benchmarks.wan.suite import EAST, WEST, log_folder, wan_suite

SHAPE, QUICK_SHAPE = PromptShape(1024, 500), PromptShape(192, 128)
RATIO = 1.5

ALONE, LEAST, FAIR, SAME = "alone", "flooded, at least", "flooded", "flooded, one tenant"
CONDITIONS = {ALONE: None, FAIR: FLOODER, SAME: VICTIM}
WARM_UP = 4
"""The first steps are slow, and forecasts are made of what was measured."""

Turns = dict[str, list[FairnessTurn]]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--asked", type=int, default=6, help="victim's requests in a turn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--flooders", type=int, default=64, help="default: %(default)s")
    same = "victim's requests beside a flood of its own tenant, in the end; 0: none (default: %(default)s)"
    parser.add_argument("--same", type=int, default=1, help=same)
    pause = "the victim's, as a multiple of its time to the first token alone (default: %(default)s)"
    parser.add_argument("--pause", type=float, default=3.0, help=pause)
    parser.add_argument("--victim-tokens", type=int, default=SHAPE.victim, help="default: %(default)s")
    parser.add_argument("--flooder-tokens", type=int, default=SHAPE.flooder, help="default: %(default)s")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="of the suite")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the processes' logs here")


def shape_of(options: argparse.Namespace) -> PromptShape:
    return QUICK_SHAPE if options.quick else PromptShape(options.victim_tokens, options.flooder_tokens)


def turns_of(tenants: FairnessTenants, shape: PromptShape, options: argparse.Namespace) -> Turns:
    """Let the victim ask in each condition, round after round."""
    alone = tenants.turn(shape, 2 if options.quick else WARM_UP, None)
    tenants.pace = replace(tenants.pace, mean_pause_s=options.pause * statistics.median(alone.ttfts_s))
    turns: Turns = {condition: [] for condition in CONDITIONS}
    num_rounds = 1 if options.quick else options.rounds
    for number in range(num_rounds):
        for condition in (ALONE, FAIR) if number % 2 == 0 else (FAIR, ALONE):
            asked = min(options.asked, 3) if options.quick else options.asked
            turns[condition].append(tenants.turn(shape, asked, CONDITIONS[condition]))
    if options.same:
        turns[SAME].append(tenants.turn(shape, options.same, CONDITIONS[SAME]))
    return turns


def run(network: Wan, name: str, options: argparse.Namespace) -> Turns:
    shape = shape_of(options)
    settings = {**environ(name), **dict(assignment.split("=", 1) for assignment in options.env)}
    with (
        log_folder(options.logs) as folder,
        network.inside(WEST),
        wan_suite(network, folder, layout(name), **settings) as suite,
    ):
        asyncio.run(suite.ready())
        pace = AskingPace(8, ramp_s=2.0) if options.quick else AskingPace(options.flooders)
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, other_cores(name))
        try:
            tenants = FairnessTenants(suite.url, pace, SuiteEngines(suite, name))
            return turns_of(tenants, shape, options)
        finally:
            os.sched_setaffinity(0, own)


def report(found: dict[str, Turns], settings: Row) -> Report:
    """A row for each layout and condition, and two targets for each layout."""
    made = Report(settings=settings)
    for name, turns in found.items():
        alone, *flooded = [row_of(name, condition, turns) for condition in CONDITIONS if turns[condition]]
        made.rows += [alone, bound_of(name, turns), *flooded]
        for what, values in (("TTFT", ttfts_s), ("engine", engine_s)):
            ratio = percentile(values(turns[FAIR]), 95) / percentile(values(turns[ALONE]), 95)
            made.checks.append(at_most(f"{name}: p95 beside a flood, {what}", ratio, RATIO, "x"))
    return made


def row_of(name: str, condition: str, turns: Turns) -> Row:
    row: Row = {"engines": name, "victim": condition, "asked": len(ttfts_s(turns[condition]))}
    for what, values in (("TTFT", ttfts_s), ("engine", engine_s)):
        for percent in (50, 95):
            value, alone = percentile(values(turns[condition]), percent), percentile(values(turns[ALONE]), percent)
            row |= {f"{what} p{percent} ms": round(1e3 * value), f"{what} p{percent} to alone": round(value / alone, 2)}
    seconds = sum(turn.seconds for turn in turns[condition])
    row["flood/s"] = round(sum(len(turn.flooder) for turn in turns[condition]) / seconds, 2)
    row["errors"] = sum(len(turn.errors) for turn in turns[condition])
    return row


def bound_of(name: str, turns: Turns) -> Row:
    """Return a row of what the victim waits at least beside the flood; "step" is the mean of the flood's steps."""
    between = sum((turn.between for turn in turns[FAIR]), StepsRun())
    step_s = between.seconds / between.number if between.number else 0.0
    alone_s = ttfts_s(turns[ALONE])
    row: Row = {"engines": name, "victim": LEAST, "step ms": round(1e3 * step_s)}
    for percent in (50, 95):
        value, alone = percentile(beside_steps(alone_s, step_s), percent), percentile(alone_s, percent)
        row |= {f"TTFT p{percent} ms": round(1e3 * value), f"TTFT p{percent} to alone": round(value / alone, 2)}
    return row


def ttfts_s(turns: Sequence[FairnessTurn]) -> list[float]:
    return [ttft_s for turn in turns for ttft_s in turn.ttfts_s]


def engine_s(turns: Sequence[FairnessTurn]) -> list[float]:
    return [engine_s for turn in turns for engine_s in turn.engine_s]


def measure(options: argparse.Namespace) -> Report:
    found = {}
    for name in [ONE_ENGINE] if options.quick else options.layouts:
        with wan([EAST, WEST], Line()) as network:
            found[name] = run(network, name, options)
    settings: Row = {
        "rounds": 1 if options.quick else options.rounds,
        "flooders": 8 if options.quick else options.flooders,
        "pause": options.pause,
        "prompts": f"{shape_of(options).name} tokens",
        "environment": " ".join(options.env) or None,
    }
    return report(found, settings)


if __name__ == "__main__":
    sys.exit(command.main("fairness", measure, add_options, description=__doc__))
