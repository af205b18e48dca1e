"""A long fat pipe: how much of a 1 Gbit/s link with a round trip of 30 ms one pull between two pools uses, over one and
over several connections, without loss and with 0.05 % of all packets lost.

Needs root (network namespaces). TCP's congestion control is the machine's own without loss, and one that takes loss for
congestion with it: BBR, which does not, hides what several connections are for.
"""

import argparse
import asyncio
import sys
from typing import NamedTuple

from benchmarks.harness import Report, Row, Spread, at_least
from benchmarks.pipe.node import LAYOUT, pool_node
from benchmarks.pool_process import PoolProcess
from benchmarks.wan import command
from benchmarks.wan.line import Line
from benchmarks.wan.network import Wan, congestion_controls, wan

RATE = 125e6
DELAY_S = 0.015
LOSS = 0.0005
CONNECTIONS = 8
LINK_USE = 0.94
SPEED_UP = 3.0
LOSS_BASED = ("cubic", "reno")
MIB = 1 << 20
WARM_UP_MIB = 64


class PipeCase(NamedTuple):
    connections: int
    loss: float
    num_mib: int


class Pulled(NamedTuple):
    first_s: float
    seconds: float
    mbytes_per_s: float  # payload
    link_use: float  # of the wire, headers and all
    num_dropped: int  # offload frames that found the queue full


async def pull(network: Wan, east: PoolProcess, west: PoolProcess, name: str, num_mib: int) -> Pulled:
    """One pull of blocks that the west has never seen, from the claim to the last entry."""
    num_blocks = max(1, num_mib * MIB // LAYOUT.block_bytes)
    await east.ask(do="fill", name=name, num_blocks=num_blocks)
    before = network.carried("east", "west")
    done = await west.ask(do="pull", name=name, num_blocks=num_blocks, address=east.address, dc="east")
    after = network.carried("east", "west")
    wire = (after.num_bytes - before.num_bytes) / done["seconds"] / RATE
    dropped = after.num_dropped - before.num_dropped
    return Pulled(done["first_s"], done["seconds"], done["bytes"] / done["seconds"] / 1e6, wire, dropped)


async def run_case(case: PipeCase, congestion: str, repetitions: int) -> list[Pulled]:
    with wan(["east", "west"], Line(DELAY_S, RATE, case.loss), congestion) as network:
        async with (
            pool_node(network.command("east"), "east", network.address("east")) as east,
            pool_node(network.command("west"), "west", network.address("west"), case.connections) as west,
        ):
            # A link is in use as a rule: its connections are open and know the path.
            await pull(network, east, west, "warm up", min(WARM_UP_MIB, case.num_mib))
            return [await pull(network, east, west, f"pull {n}", case.num_mib) for n in range(repetitions)]


def row(case: PipeCase, congestion: str, found: list[Pulled]) -> Row:
    return {
        "connections": case.connections,
        "loss_%": 100 * case.loss,
        "tcp": congestion,
        "mib": case.num_mib,
        **Spread.of([pulled.mbytes_per_s for pulled in found]).cells("mb_per_s", 1),
        **Spread.of([100 * pulled.link_use for pulled in found]).cells("link_%", 1),
        "first_ms": round(1000 * Spread.of([pulled.first_s for pulled in found]).median, 1),
        "dropped": sum(pulled.num_dropped for pulled in found),
    }


def measure(options: argparse.Namespace) -> Report:
    repetitions, big, small = (1, 64, 8) if options.quick else (3, 256, 64)
    controls = congestion_controls()
    loss_based = next((name for name in LOSS_BASED if name in controls), controls[-1])
    cases = [
        (PipeCase(options.connections, 0.0, big), controls[-1]),
        (PipeCase(1, 0.0, big), controls[-1]),
        (PipeCase(options.connections, LOSS, small), loss_based),
        (PipeCase(1, LOSS, small), loss_based),
    ]
    results = [asyncio.run(run_case(case, congestion, repetitions)) for case, congestion in cases]
    speeds = [Spread.of([pulled.mbytes_per_s for pulled in found]).median for found in results]
    use = Spread.of([pulled.link_use for pulled in results[0]]).median
    return Report(
        rows=[row(case, congestion, found) for (case, congestion), found in zip(cases, results, strict=True)],
        checks=[
            at_least(f"link used by one pull of {big} MiB", use, LINK_USE),
            at_least("with loss: several connections against one", speeds[2] / speeds[3], SPEED_UP, "x"),
        ],
        settings={"rate_mbit_per_s": RATE * 8 / 1e6, "round_trip_ms": 2000 * DELAY_S, "repetitions": repetitions},
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="of a pull (default: %(default)s)")


if __name__ == "__main__":
    sys.exit(command.main("pipe", measure, add_options, description=__doc__))
