"""Pools of two datacenters over a WAN that the test owns."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from benchmarks.harness import ROOT
from benchmarks.pipe.changing import DELAY_S, FALL_LIMIT_S, LANES, RETURN_LIMIT_S, PoolPair, fall_and_return
from benchmarks.pipe.node import LAYOUT, pool_node
from benchmarks.wan.line import Line
from benchmarks.wan.network import Wan, WanUnavailable, wan
from tests.support.waiting import LIMIT_S, eventually

pytestmark = [pytest.mark.wan, pytest.mark.timeout(180)]

RATE = 25e6


@pytest.fixture
def two_sites() -> Iterator[Wan]:
    try:
        with wan(["east", "west"], Line(delay_s=0.02, rate_bytes_per_s=RATE)) as joined:
            yield joined
    except WanUnavailable as reason:
        pytest.skip(str(reason))


async def test_a_pull_takes_the_link_as_it_is_and_the_estimate_finds_it_out(two_sites: Wan) -> None:
    async with (
        pool_node(two_sites.command("east"), "east", two_sites.address("east")) as east,
        pool_node(two_sites.command("west"), "west", two_sites.address("west")) as west,
    ):
        names = map(str, itertools.count())

        async def is_as_fast_as_the_link() -> bool:
            """Pull something new; a relay that stands still for a moment makes the link slower than it is."""
            name = next(names)
            await east.ask(do="fill", name=name, num_blocks=8)
            before = two_sites.carried("east", "west")
            pulled = await west.ask(do="pull", name=name, num_blocks=8, address=east.address, dc="east")
            crossed = two_sites.carried("east", "west").num_bytes - before.num_bytes
            assert pulled["bytes"] == 8 * LAYOUT.block_bytes
            assert pulled["first_s"] >= (0.08 if name == "0" else 0.04), "a request is a round trip, a connection too"
            assert pulled["seconds"] > crossed / RATE
            crossed_once = pulled["bytes"] < crossed < 1.15 * pulled["bytes"]
            return bool(crossed_once and abs(pulled["goodput"] / RATE - 1) < 0.25)

        await eventually(is_as_fast_as_the_link)


async def test_a_lossy_link_damages_nothing(two_sites: Wan) -> None:
    two_sites.shape(Line(delay_s=0.002, rate_bytes_per_s=4 * RATE, loss=0.002))
    async with (
        pool_node(two_sites.command("east"), "east", two_sites.address("east")) as east,
        pool_node(two_sites.command("west"), "west", two_sites.address("west")) as west,
    ):
        await east.ask(do="fill", name="a", num_blocks=4)
        pulled = await west.ask(do="pull", name="a", num_blocks=4, address=east.address, dc="east")
        assert pulled["bytes"] == 4 * LAYOUT.block_bytes


async def test_background_moves_on_a_full_link_and_is_in_nobodys_way(two_sites: Wan) -> None:
    """Two pools of the west pull from the east at once, one of them in the background."""
    two_sites.shape(Line(delay_s=0.01, rate_bytes_per_s=8e6))
    async with (
        pool_node(two_sites.command("east"), "east", two_sites.address("east")) as east,
        pool_node(two_sites.command("west"), "west", two_sites.address("west")) as urgent,
        pool_node(two_sites.command("west"), "west", two_sites.address("west")) as patient,
    ):
        names = map(str, itertools.count())

        async def both_get_on() -> bool:
            """A relay that stands still for a moment would make either slower."""
            loads = {name: {"name": name, "num_blocks": num} for num, name in zip((8, 8, 1), names, strict=False)}
            for load in loads.values():
                await east.ask(do="fill", **load)
            first, second, small = ({**asked, **load} for load in loads.values())
            alone = await urgent.ask(**first)
            waiting = asyncio.create_task(patient.ask(**small, is_background=True))
            beside = await urgent.ask(**second)
            came_meanwhile = (await waiting)["first_s"] < beside["seconds"]
            return bool(came_meanwhile and beside["seconds"] < 1.25 * alone["seconds"])  # a twentieth is gone

        asked = {"do": "pull", "address": east.address, "dc": "east"}
        await eventually(both_get_on)


@pytest.mark.parametrize("lanes", LANES)
async def test_a_fall_is_reported_at_once_and_a_return_though_nobody_asks_anything(two_sites: Wan, lanes: str) -> None:
    async with (
        pool_node(two_sites.command("east"), "east", two_sites.address("east"), lanes=lanes) as east,
        pool_node(two_sites.command("west"), "west", two_sites.address("west"), lanes=lanes) as west,
    ):
        pair, names = PoolPair(two_sites, east, west), map(str, itertools.count())

        async def both_are_noticed() -> bool:
            """A relay that stands still for a moment makes the link slower than it is."""
            noticed = await fall_and_return(pair, next(names), low_s=4.0)
            assert noticed.round_trip_s >= 2 * DELAY_S
            return noticed.fall_s < FALL_LIMIT_S and noticed.return_s < RETURN_LIMIT_S

        await eventually(both_are_noticed)


def test_nothing_is_left_of_a_wan_whose_owner_was_killed(two_sites: Wan) -> None:
    program = (
        "import subprocess, sys, time\n"
        "from benchmarks.wan.network import wan\n"
        "from benchmarks.wan.line import Line\n"
        "with wan(['a', 'b'], Line()) as joined:\n"
        "    inside = subprocess.Popen([*joined.command('a'), 'sleep', '60'])\n"
        "    print(joined._process.pid, inside.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    assert len(pids) == 2
    owner.send_signal(signal.SIGKILL)
    owner.wait(LIMIT_S)
    owner.stdout.close()
    deadline = time.monotonic() + LIMIT_S
    while any(_is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
