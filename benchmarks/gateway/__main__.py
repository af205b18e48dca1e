"""The gateway's processor time for a request and for a streamed token, and how much of both one process carries.

A gateway runs in one process, workers that answer canned tokens in another, the client in a third, so that nothing but
the gateway is counted. Other trees of the project are measured beside this one, in turn: `--tree old=DIR`. So are other
routers: `--peer NAME=COMMAND`, where the command has `{port}`, where it is to listen, and `{worker}`, the URL of an
OpenAI server that answers at once, or `{decode}`, the address of a decode worker.
"""

import argparse
import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from benchmarks import harness
from benchmarks.gateway.contestants import contestants
from benchmarks.gateway.processes import SplitCores, child, file_of, split_cores
from benchmarks.gateway.throughput import STEP_S, Throughput, loads
from benchmarks.gateway.work import Client, GatewayWork, works
from benchmarks.harness import ROOT, Report, Spread, at_least, at_most
from shared.model.files.catalog import DEFAULT_MODEL
from shared.native import default_cache_dir

SHORT_MS, TOKEN_MS = 1.8, 0.08
REQUESTS_PER_S, TOKENS_PER_S = 500, 20_000
GROWTH = 1.05
PARTS = ("cost", "throughput", "memory")
HERE = "here"


async def spent(trees: dict[str, Path], options: argparse.Namespace) -> list[tuple[GatewayWork, dict[str, Spread]]]:
    """Return each work's spread of milliseconds of CPU a request, by tree."""
    quick = options.quick
    rounds = 1 if quick else options.rounds
    chosen = list(works(40, 10, 10, num_streamed=1) if quick else works(200, 36, 12))
    measured: dict[str, dict[str, list[float]]] = {work.name: {name: [] for name in trees} for work in chosen}
    async with AsyncExitStack() as stack:
        workers = await stack.enter_async_context(child(ROOT, file_of("workers.py")))
        clients: dict[str, Client] = {}
        for name, tree in trees.items():
            command = (file_of("served.py"), workers.said, workers.said, options.model, str(default_cache_dir()))
            clients[name] = Client(await stack.enter_async_context(child(tree, *command)))
        for number in range(rounds + 1):  # the first one warms up
            for work in chosen:
                names = list(trees) if number % 2 else list(reversed(trees))
                for name in names:
                    value = 1e3 * await clients[name].spent_s(work)
                    if number:
                        measured[work.name][name].append(value)
    return [(work, {name: Spread.of(v) for name, v in measured[work.name].items()}) for work in chosen]


async def measure_cost(report: Report, trees: dict[str, Path], options: argparse.Namespace) -> None:
    for work, spreads in await spent(trees, options):
        for name, spread in spreads.items():
            row: harness.Row = {"work": work.name, "code": name, **spread.cells("CPU ms", 3)}
            row["CPU ms a token"] = round(spread.median / work.tokens_out, 4)
            report.rows.append(row)
        here = spreads[HERE].median
        if work.name.startswith("30 ids"):
            report.checks.append(at_most(f"CPU of a request, {work.name}", here, SHORT_MS, "ms"))
        if work.tokens_out > 1:
            report.checks.append(at_most(f"CPU of a token, {work.name}", here / work.tokens_out, TOKEN_MS, "ms"))


async def measure_throughput(
    report: Report, cores: SplitCores, trees: dict[str, Path], options: argparse.Namespace
) -> None:
    chosen = loads(300, 64) if options.quick else loads(1000, options.streams)
    if options.load:
        chosen = [load for load in chosen if load.name in options.load]
    async with contestants(cores, trees, pairs(options.peer), options.model, STEP_S) as found:
        measured = await Throughput(found).rounds(chosen, 1 if options.quick else options.rounds)
    for load in chosen:
        report.rows += [rounds.row(name) for name, rounds in measured[load.name].items()]
        here = measured[load.name][HERE].rates.median
        target = TOKENS_PER_S if load.tokens_out > 1 else REQUESTS_PER_S
        report.checks.append(at_least(f"{load.name}, {load.unit} a second", here, target))


async def measure_memory(report: Report, cores: SplitCores, options: argparse.Namespace) -> None:
    num_requests = 200 if options.quick else 2000
    async with contestants(cores, {HERE: ROOT}, {}, options.model, STEP_S) as found:
        row = await Throughput(found).memory(HERE, num_requests)
    report.rows.append(row)
    after, later = (int(str(row[f"after {number:,}"])) for number in (num_requests, 10 * num_requests))
    report.checks.append(at_most("memory after ten times as many requests", later / after, GROWTH))


async def measure_parts(trees: dict[str, Path], options: argparse.Namespace) -> Report:
    peers = ", ".join(pairs(options.peer))
    report = Report(settings={"model": options.model, "trees": ", ".join(trees), "peers": peers})
    parts = options.part or PARTS
    if "cost" in parts:
        await measure_cost(report, trees, options)
    cores = split_cores()
    if "throughput" in parts:
        await measure_throughput(report, cores, trees, options)
    if "memory" in parts:
        await measure_memory(report, cores, options)
    return report


def pairs(values: list[str]) -> dict[str, str]:
    """Return the `NAME=VALUE` options by name."""
    return dict(value.split("=", 1) for value in values)


def measure(options: argparse.Namespace) -> Report:
    trees = {HERE: ROOT, **{name: Path(path).resolve() for name, path in pairs(options.tree).items()}}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measure_parts(trees, options))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, help="built-in model, checkpoint directory or GGUF file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one")
    parser.add_argument("--load", action="append", help="of throughput, only the one of this name")
    parser.add_argument("--streams", type=int, default=512, help="of one round, 256 of them at once")
    parser.add_argument(
        "--tree", action="append", default=[], metavar="NAME=DIR", help="another checkout, to be measured in turn"
    )
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=COMMAND", help="another router, under the same load"
    )


if __name__ == "__main__":
    raise SystemExit(harness.main("gateway", measure, add_options, description=__doc__))
