"""All routing policies in seven cases, in the simulator: see docs/results/routing.md."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import Report
from benchmarks.routing.cases import routing_cases
from benchmarks.routing.contestants import CONTESTANTS
from benchmarks.routing.judging import Judged
from benchmarks.routing.page import page
from benchmarks.routing.plot import save_plot
from benchmarks.routing.trials import TUNING_SEED, measured, tuned

SEEDS = (1, 2, 3, 4, 5)
QUICK_SEEDS = (1, 2)
QUICK_CASES = "ac"
QUICK_SHARE = 0.15
"""Of each case's requests: shows that everything runs."""
TUNING_SHARE = 1.0


def measure(options: argparse.Namespace) -> Report:
    seeds = QUICK_SEEDS if options.quick else SEEDS
    known = routing_cases(options.traces)
    letters = options.only or (QUICK_CASES if options.quick else "".join(known))
    cases = [known[letter] for letter in letters]
    share = QUICK_SHARE if options.quick else 1.0
    chosen = tuned(cases, TUNING_SHARE * share)
    found = list(measured(cases, seeds, chosen, share))
    each = len(CONTESTANTS)
    judged = [Judged(found[at : at + each]) for at in range(0, len(found), each)]
    traces = "recorded" if options.traces else "synthetic twins"
    report = Report(settings={"seeds": str(list(seeds)), "tuning_seed": TUNING_SEED, "traces": traces})
    for case in judged:
        report.rows += case.rows()
        report.checks += case.checks()
    if options.out is not None:
        _write(judged, seeds, options)
    return report


def _write(judged: Sequence[Judged], seeds: Sequence[int], options: argparse.Namespace) -> None:
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    source = "The traces are the public ones." if options.traces else "The traces are synthetic twins of public ones."
    command = f"{'--traces DIR ' if options.traces else ''}--out docs/results --json docs/results/routing.json"
    (folder / "routing.md").write_text(page(judged, command, seeds, source))
    save_plot(judged, folder / "routing.png")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", metavar="LETTERS", help="cases, such as bcg")
    parser.add_argument("--traces", type=Path, metavar="DIR", help="public traces: mooncake-traces, azure-llm-2023")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the page and its plot there")


if __name__ == "__main__":
    sys.exit(harness.main("routing", measure, add_options, description=__doc__))
