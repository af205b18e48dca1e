"""Whether the simulator can be trusted, and how large a case it takes: see docs/results/simulator.md."""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.harness import ROOT, Report
from benchmarks.simulator.libraries import compare_libraries
from benchmarks.simulator.live.comparing import LIMIT_PERCENT as LIVE_PERCENT
from benchmarks.simulator.live.comparing import compare_live, facts
from benchmarks.simulator.live.session import QUICK_PLAN, LivePlan
from benchmarks.simulator.live.sites import POLICIES
from benchmarks.simulator.mocker import compare_mocker
from benchmarks.simulator.planner import deployments, findings
from benchmarks.simulator.queueing import CASES, LIMIT_PERCENT, LOADS, find
from benchmarks.simulator.scale import ScaleCase, measure_scale
from benchmarks.wan import command
from benchmarks.wan.network import WanUnavailable

PAPER = ROOT / "examples" / "plans" / "paper.toml"
LARGE = ScaleCase(workers=2_000, blocks=10_000_000, requests=10_000, per_s=400)
SMALL = ScaleCase(workers=200, blocks=100_000, requests=1_000, per_s=40)
NUM_ARRIVALS = 60_000
"""At each queue with each seed, at a load of 0."""
QUICK_PERCENT = 6.0
"""Few requests show that the model is the right one, no more."""
LIVE_QUICK_PERCENT = 60.0
"""A quantile of eight requests on engines that have hardly been measured."""


def queueing(options: argparse.Namespace, report: Report) -> None:
    seeds = range(3) if options.quick else range(5)
    limit = QUICK_PERCENT if options.quick else LIMIT_PERCENT
    for case in CASES:
        for load in LOADS[:2] if options.quick else LOADS:
            # The error of a mean wait falls with the root of the number, and grows like 1 / (1 - load).
            num_requests = 20_000 if options.quick else round(NUM_ARRIVALS / (1 - load) ** 2)
            finding = find(case, load, seeds, num_requests)
            report.rows.append(finding.row)
            report.checks.append(finding.check(limit))


def planner(options: argparse.Namespace, report: Report) -> None:
    planned = deployments(options.case)
    for deployment in planned[:1] if options.quick else planned:
        for finding in findings(deployment, 600 if options.quick else 4_000, options.seed):
            report.rows.append(finding.row)
            report.checks.append(finding.check(2 * QUICK_PERCENT if options.quick else None))


def mocker(options: argparse.Namespace, report: Report) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for finding in compare_mocker(options.trace, options.mocker, Path(scratch)):
            report.rows.append(finding.row)
            report.checks.append(finding.check)


def scale(options: argparse.Namespace, report: Report) -> None:
    finding = measure_scale(SMALL if options.quick else LARGE)
    report.rows.append(finding.row)
    report.checks += finding.checks()


def libraries(options: argparse.Namespace, report: Report) -> None:
    num_requests, repetitions = (20_000, 3) if options.quick else (200_000, 5)
    report.rows += compare_libraries(num_requests, repetitions)


def live(options: argparse.Namespace, report: Report) -> None:
    plan = QUICK_PLAN if options.quick else LivePlan()
    plan = replace(plan, policy=options.routing, num_requests=options.requests or plan.num_requests, seed=options.seed)
    try:
        run, found = compare_live(plan, options.logs)
    except WanUnavailable as reason:
        if options.only:
            raise
        sys.stderr.write(f"live is left out: {reason}\n")
        return
    report.settings |= {"routing": plan.policy, "requests_of_a_load": plan.num_requests}
    report.rows += facts(run)
    for finding in found:
        report.rows += finding.rows
        report.checks += finding.checks(LIVE_QUICK_PERCENT if options.quick else LIVE_PERCENT)


PARTS: dict[str, Callable[[argparse.Namespace, Report], None]] = {
    "queueing": queueing,
    "planner": planner,
    "mocker": mocker,
    "scale": scale,
    "libraries": libraries,
    "live": live,
}


def measure(options: argparse.Namespace) -> Report:
    report = Report(settings={"seed": options.seed, "trace": options.trace.name if options.trace else None})
    for name in options.only or PARTS:
        PARTS[name](options, report)
    return report


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; may be repeated")
    parser.add_argument("--case", type=Path, default=PAPER, metavar="FILE", help="of the planner")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="the conversation trace, in Mooncake's format")
    parser.add_argument("--mocker", type=Path, metavar="PYTHON", help="run Dynamo's mocker there and record it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--routing", choices=POLICIES, default=POLICIES[0], help="of live (default: %(default)s)")
    parser.add_argument("--requests", type=int, help="of each load of live")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the logs of live's processes here")


if __name__ == "__main__":
    sys.exit(command.main("simulator", measure, add_options, description=__doc__))
