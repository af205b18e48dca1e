"""A link that falls to a tenth under a pull and comes back while nothing is asked over it: when the pool that pulls
reports either, and how many bytes its probes take.

    python -m benchmarks.pipe.changing

Needs root (network namespaces).
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.harness import Report, Spread, at_most
from benchmarks.pipe.node import LAYOUT, pool_node
from benchmarks.pool_process import PoolProcess
from benchmarks.wan import command
from benchmarks.wan.line import Line
from benchmarks.wan.network import Wan, wan
from shared.bus.events import LinkLoad
from shared.ids import Datacenter

RATE = 25e6
DELAY_S = 0.02
FALL = 0.1
GOOD = Line(delay_s=DELAY_S, rate_bytes_per_s=RATE)
BAD = Line(delay_s=DELAY_S, rate_bytes_per_s=FALL * RATE)

WITHIN = 1.5
"""A change is noticed when the report is within this factor of what it was before, or of a tenth of that."""

LOOK_EVERY_S = 0.02
LIMIT_S = 30.0
DRAINED_S = 5.0
"""What was on its way when a pull ended has come by then, over the low link too."""
LOW_S = 8.0
"""The link stays low for so long after that: probes have slowed down by then as far as they do."""

FALL_LIMIT_S, RETURN_LIMIT_S, SHARE_LIMIT = 2.0, 8.0, 0.01
LANES = ("socket,grpc", "grpc")


UNKNOWN = LinkLoad(Datacenter("east"), 0.0, 0, 0)


class Noticed(NamedTuple):
    """What one fall and one return gave."""

    fall_s: float  # until the report was within `WITHIN` of a tenth of what it was
    return_s: float  # until it was within that of what it was
    low_bytes_per_s: float  # of wire, by probes and questions, while the link was low and nothing was asked over it
    return_bytes: int  # of wire, from the return until it was noticed
    round_trip_s: float  # as reported in the end


class PoolPair(NamedTuple):
    """Two pools, the line between them, and a chain in the east that the west lacks."""

    network: Wan
    east: PoolProcess
    west: PoolProcess

    async def fill(self, name: str, seconds: float) -> int:
        """Give the east what the link carries in so many seconds at its best; return the blocks."""
        num_blocks = int(seconds * RATE / LAYOUT.block_bytes)
        await self.east.ask(do="fill", name=name, num_blocks=num_blocks)
        return num_blocks

    async def load(self) -> LinkLoad:
        """Return what the west would report of its link from the east: nothing is known before the first message."""
        found = (await self.west.ask(do="links")).get("east")
        return UNKNOWN if found is None else LinkLoad(**found)

    async def until(self, is_seen: Callable[[LinkLoad], bool]) -> float:
        """Return the seconds until a report is as it should be. Raises `TimeoutError`."""
        started = time.monotonic()
        async with asyncio.timeout(LIMIT_S):
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                if is_seen(await self.load()):
                    break
        return time.monotonic() - started

    @property
    def wire_bytes(self) -> int:
        return self.network.carried("east", "west").num_bytes


async def fall_and_return(pair: PoolPair, name: str, low_s: float = LOW_S) -> Noticed:
    """Let the link fall under a pull, end the pull, and let the link come back."""
    pair.network.shape(GOOD)
    num_blocks = await pair.fill(name, 8.0)
    await pair.west.ask(do="begin", name=name, num_blocks=num_blocks, address=pair.east.address, dc="east")
    await pair.until(lambda load: load.goodput_bytes_per_s > RATE / WITHIN)
    await asyncio.sleep(1.5)
    usual = (await pair.load()).goodput_bytes_per_s
    pair.network.shape(BAD)
    fall_s = await pair.until(lambda load: load.goodput_bytes_per_s < WITHIN * FALL * usual)
    await asyncio.sleep(1.0)
    await pair.west.ask(do="end")
    await asyncio.sleep(DRAINED_S)
    before, started = pair.wire_bytes, time.monotonic()
    await asyncio.sleep(low_s)
    low_bytes_per_s = (pair.wire_bytes - before) / (time.monotonic() - started)
    before = pair.wire_bytes
    pair.network.shape(GOOD)
    return_s = await pair.until(lambda load: load.goodput_bytes_per_s > usual / WITHIN)
    return_bytes = pair.wire_bytes - before
    return Noticed(fall_s, return_s, low_bytes_per_s, return_bytes, (await pair.load()).round_trip_s)


async def run_lanes(lanes: str, repetitions: int) -> list[Noticed]:
    with wan(["east", "west"], GOOD) as network:
        async with (
            pool_node(network.command("east"), "east", network.address("east"), lanes=lanes) as east,
            pool_node(network.command("west"), "west", network.address("west"), lanes=lanes) as west,
        ):
            pair = PoolPair(network, east, west)
            return [await fall_and_return(pair, f"chain {number}") for number in range(repetitions)]


def measure(options: argparse.Namespace) -> Report:
    repetitions = 1 if options.quick else 3
    report = Report(
        settings={
            "rate_mbit_per_s": RATE * 8 / 1e6,
            "falls_to": FALL,
            "round_trip_ms": 2000 * DELAY_S,
            "repetitions": repetitions,
        }
    )
    for lanes in LANES:
        found = asyncio.run(run_lanes(lanes, repetitions))
        share = Spread.of([each.low_bytes_per_s / RATE for each in found])
        report.rows.append(
            {
                "lane": lanes.partition(",")[0],
                **Spread.of([each.fall_s for each in found]).cells("fall_s"),
                **Spread.of([each.return_s for each in found]).cells("return_s"),
                "low_share_%": round(100 * share.median, 3),
                "return_mb": round(Spread.of([each.return_bytes / 1e6 for each in found]).median, 2),
                "round_trip_ms": round(1000 * Spread.of([each.round_trip_s for each in found]).median, 1),
            }
        )
        report.checks += [
            at_most(f"{lanes}: slowest to notice a fall", max(each.fall_s for each in found), FALL_LIMIT_S, "s"),
            at_most(f"{lanes}: slowest to notice a return", max(each.return_s for each in found), RETURN_LIMIT_S, "s"),
            at_most(f"{lanes}: most of the link for probes", share.high, SHARE_LIMIT),
        ]
    return report


if __name__ == "__main__":
    sys.exit(command.main("pipe.changing", measure, description=__doc__))
