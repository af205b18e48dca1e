"""The gateway's processor time: for a request, by the length of its prompt, and for a streamed token.

A gateway runs in one process, workers that answer canned tokens in another, the client in a third, so that nothing but
the gateway is counted. Other trees of the project are measured beside this one, in turn: `--tree old=DIR`.
"""

import argparse
import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks import harness
from benchmarks.gateway.processes import child, file_of
from benchmarks.gateway.work import Client, GatewayWork, works
from benchmarks.harness import ROOT, Report, Spread, at_most
from shared.model.files.catalog import DEFAULT_MODEL
from shared.native import default_cache_dir

SHORT_MS, TOKEN_MS = 1.8, 0.08


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


def measure(options: argparse.Namespace) -> Report:
    trees = {"here": ROOT, **{name: Path(path).resolve() for name, path in (o.split("=", 1) for o in options.tree)}}
    report = Report(settings={"model": options.model, "trees": ", ".join(trees)})
    for work, spreads in asyncio.run(spent(trees, options)):
        for name, spread in spreads.items():
            row: harness.Row = {"work": work.name, "code": name, **spread.cells("CPU ms", 3)}
            row["CPU ms a token"] = round(spread.median / work.tokens_out, 4)
            report.rows.append(row)
        here = spreads["here"].median
        if work.name.startswith("30 ids"):
            report.checks.append(at_most(f"CPU of a request, {work.name}", here, SHORT_MS, "ms"))
        if work.tokens_out > 1:
            report.checks.append(at_most(f"CPU of a token, {work.name}", here / work.tokens_out, TOKEN_MS, "ms"))
    return report


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, help="built-in model, checkpoint directory or GGUF file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--tree", action="append", default=[], metavar="NAME=DIR", help="another checkout, to be measured in turn"
    )


if __name__ == "__main__":
    raise SystemExit(harness.main("gateway", measure, add_options, description=__doc__))
