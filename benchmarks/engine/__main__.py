"""The engines of this suite, alone, and side by side with others on the same model and the same threads.

Sections: speed (prefill and decode of every contestant, in alternating rounds), limits (what the machine could do),
overhead (a decode step outside kernels), tail (a prompt that trickles in beside a running batch), emission (sending
that computing does not hide, event-loop lag), memory (peak of a long prompt), costs (how well the engines predict
their own steps), masks (a batch whose answers have to be JSON of a schema). docs/results/comparing.md says how to
install the contestants that need a Python of their own, and what the figures mean.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import harness
from benchmarks.engine import child, speed
from benchmarks.harness import Report
from benchmarks.peers.found import contestants, ours_environ, pythons
from benchmarks.roofline import Limits
from shared.engine.settings import available_cores
from shared.model.files.catalog import BUILT_IN, resolve

SECTIONS = ("speed", *child.SECTIONS)
LONG_CONTEXT = 32_000


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", action="append", choices=BUILT_IN, help="may be repeated; default: both")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="may be repeated; default: all")
    parser.add_argument("--threads", type=int, default=min(2, available_cores()), help="of every contestant")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="has virtual environments named llama and vllm")
    parser.add_argument("--rounds", type=int, help="of the contestants; default: 5")


def measure(options: argparse.Namespace) -> Report:
    models = options.model or (BUILT_IN[:1] if options.quick else BUILT_IN)
    sections = options.only or SECTIONS
    report = Report(settings={"threads": options.threads})
    limits = None
    if {"limits", "speed"} & set(sections):
        found = child.run("limits", ours_environ(models[0], options.threads), options.quick)
        limits = Limits(_number(found, "bf16_tflop_per_s") * 1e12, _number(found, "read_gb_per_s") * 1e9)
        _add(report, "limits", found)
    for model in models:
        for section in sections:
            if section == "speed" and limits is not None:
                _add(report, section, _speed(model, limits, options))
            elif section == "memory" and not options.quick and _max_context(model) < LONG_CONTEXT:
                continue
            elif section not in ("limits", "speed"):
                _add(report, section, child.run(section, ours_environ(model, options.threads), options.quick))
    return report


def _speed(model: str, limits: Limits, options: argparse.Namespace) -> Report:
    files = resolve(model, _cache_dir())
    plan = speed.QUICK if options.quick else speed.FULL
    config = files.config()
    with tempfile.TemporaryDirectory() as scratch:
        found = contestants(files, options.threads, pythons(options.peers), Path(scratch), spin=not options.quick)
        return speed.measure(model, config, found, plan.within(config.max_context, options.rounds), limits)


def _add(report: Report, section: str, found: Report) -> None:
    report.rows += [{"section": section, **row} for row in found.rows]
    report.checks += found.checks


def _number(report: Report, column: str) -> float:
    (value,) = (row[column] for row in report.rows)
    assert isinstance(value, float)
    return value


def _max_context(model: str) -> int:
    return resolve(model, _cache_dir()).config().max_context


def _cache_dir() -> Path:
    return Path("~/.cache/prfaas").expanduser()


if __name__ == "__main__":
    sys.exit(harness.main("engine", measure, add_options, description=__doc__))
