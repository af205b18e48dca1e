"""Links without a network: how a pull is dealt out, whose turn it is, what is counted."""

import asyncio

import pytest

from services.cachepool.links import MAX_DATACENTERS, MIN_STREAM_BLOCKS, Links, Turns, lanes
from shared.errors import BadRequest
from shared.ids import Datacenter
from shared.metrics import Metrics
from shared.rpc.options import Lane

WEST = Datacenter("west")


@pytest.mark.parametrize(
    ("num_blocks", "num_streams"), [(1, 1), (MIN_STREAM_BLOCKS, 1), (MIN_STREAM_BLOCKS + 1, 2), (1000, 8)]
)
def test_few_blocks_take_few_streams(num_blocks: int, num_streams: int) -> None:
    used = lanes(num_blocks, 8, is_background=True)
    assert used == [Lane(number, is_background=True) for number in range(num_streams)]


async def test_background_waits_for_every_foreground_stream() -> None:
    turns, order = Turns(), []

    async def background() -> None:
        async with turns.background():
            order.append("background")

    async with turns.foreground():
        waiting = asyncio.create_task(background())
        async with turns.foreground():
            await asyncio.sleep(0)
        order.append("foreground")
        await asyncio.sleep(0)
    async with turns.foreground():  # the link was free for a moment only: nobody else could run in it
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        order.append("foreground")
    await waiting
    assert order == ["foreground", "foreground", "background"]


def test_streams_at_home_take_no_turns_and_are_not_counted() -> None:
    links = Links(WEST, Metrics(), lambda: 0.0)
    assert not links.outlet("", is_background=True).is_background
    assert type(links.outlet("west", is_background=False)) is not type(links.outlet("east", is_background=False))


def test_what_is_remembered_of_foreign_names_is_bounded() -> None:
    links = Links(WEST, Metrics(), lambda: 0.0)
    for number in range(MAX_DATACENTERS):
        links.outlet(f"dc{number}", is_background=False)
    links.outlet("dc0", is_background=False)
    with pytest.raises(BadRequest):
        links.outlet("one more", is_background=False)
