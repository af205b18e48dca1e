"""Pulls between two datacenters: dealt out over connections, counted at both ends, the urgent ones first."""

import asyncio
from collections.abc import AsyncIterator

import psutil
import pytest

from shared.ids import Datacenter
from shared.kv.entries import Source
from shared.pool.client import Crossing
from shared.rpc.client import Channels
from tests.support.pools import Fetching, Running, entries, frames_of, publish, serving, soon
from tests.support.samples import ENTRY_BYTES, LAYOUT, keys, wanting
from tests.support.waiting import until

LANES = ("grpc",)

LONG = keys("long", 40)


@pytest.fixture
async def west(channels: Channels) -> AsyncIterator[Running]:
    async with serving(channels, dc="west") as running:
        yield running


@pytest.fixture
async def east(channels: Channels) -> AsyncIterator[Running]:
    async with serving(channels, dc="east") as running:
        yield running


def from_east(east: Running, num_blocks: int = len(LONG)) -> list[Source]:
    return [Source(0, num_blocks, Datacenter("east"), (east.address,))]


async def test_a_pull_is_dealt_out_and_counted_at_both_ends(west: Running, east: Running) -> None:
    await publish(east, LONG)
    readers = [Fetching(west.client, wanting(LONG), from_east(east)) for _ in range(3)]
    for reader in readers:
        assert sorted((await reader.done()).got) == sorted(entries(LONG))
    num_entries = 3 * len(LONG)
    assert west.count("link_received_entries_total", dc="east") == num_entries
    assert west.count("link_received_bytes_total", dc="east") == num_entries * ENTRY_BYTES
    assert east.count("link_sent_entries_total", dc="west", urgency="foreground") == num_entries
    assert east.count("link_sent_bytes_total", dc="west", urgency="foreground") == num_entries * ENTRY_BYTES
    assert west.count("link_sent_bytes_total", dc="west", urgency="foreground") == 0, "readers at home cross nothing"
    (load,) = west.pool.pulls.link_loads()
    assert (load.peer_dc, load.backlog_bytes, load.crossed_bytes) == ("east", 0, num_entries * ENTRY_BYTES)
    assert east.pool.pulls.link_loads() == ()
    await until(lambda: west.idle and east.idle)


async def test_the_streams_of_a_pull_have_connections_of_their_own(west: Running, east: Running) -> None:
    fetching = Fetching(west.client, wanting(LONG), from_east(east))
    port = int(east.address.rpartition(":")[2])

    def num_connections() -> int:
        found = psutil.Process().net_connections("tcp")
        return sum(c.status == psutil.CONN_ESTABLISHED and bool(c.raddr) and c.raddr.port == port for c in found)

    await until(lambda: num_connections() == 8)
    await until(lambda: east.count("readers_open") == 1)  # all of them serve one reader
    await publish(east, LONG)
    await fetching.done()


async def test_what_was_asked_for_and_is_not_here_is_the_backlog(west: Running, east: Running) -> None:
    fetching = Fetching(west.client, wanting(LONG), from_east(east))
    await until(lambda: east.count("readers_open") > 0)
    async with east.client.publish(soon()) as publication:
        await publication.open(LAYOUT, wanting(LONG))
        await publication.send(frames_of(LONG, 0b001))
        await fetching.until_got(len(LONG))
        (load,) = west.pool.pulls.link_loads()
        assert load.backlog_bytes == 2 * len(LONG) * ENTRY_BYTES == west.count("link_backlog_bytes", dc="east")
        await publication.send(frames_of(LONG, 0b110))
    await fetching.done()


async def test_background_waits_while_foreground_has_something_to_send(west: Running, east: Running) -> None:
    """The link to the west is held as a foreground stream holds it that the connection takes nothing more from."""
    await publish(east, LONG)
    background = Fetching(west.client, wanting(LONG), from_east(east), crossing=Crossing(is_background=True))
    foreground = Fetching(east.client, wanting(LONG[:1]), crossing=Crossing("west"))
    await foreground.done()
    await background.done()
    async with east.pool.links.sender("west", is_background=False).permit():
        held_back = Fetching(east.client, wanting(LONG), crossing=Crossing("west", is_background=True))
        urgent = Fetching(east.client, wanting(LONG), crossing=Crossing("west"))
        await urgent.done()
        await asyncio.sleep(0.05)
        assert held_back.got == []
    assert len((await held_back.done()).got) == 3 * len(LONG)
    assert east.count("link_sent_entries_total", dc="west", urgency="background") == 2 * 3 * len(LONG)


async def test_a_reader_that_waits_hastens_what_was_pulled_in_the_background(west: Running, east: Running) -> None:
    background = Fetching(west.client, wanting(LONG), from_east(east), crossing=Crossing(is_background=True))
    await until(lambda: east.count("readers_open") > 0)
    foreground = Fetching(west.client, wanting(LONG[:10]), from_east(east, 10))
    await until(lambda: west.count("pulls_total", peer=east.address, outcome="hastened") == 1)
    await publish(east, LONG)
    assert sorted((await foreground.done()).got) == sorted(entries(LONG[:10]))
    assert sorted((await background.done()).got) == sorted(entries(LONG))
    assert east.count("link_sent_entries_total", dc="west", urgency="foreground") == 30
    assert east.count("link_sent_entries_total", dc="west", urgency="background") == 90
    await until(lambda: west.idle and east.idle)
