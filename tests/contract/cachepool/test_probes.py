"""Questions and probes of a link: what they bring, what they must not disturb, and what a watch learns from them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from services.cachepool.links.probing import MOST_BYTES
from services.cachepool.peers import probe as probing
from services.cachepool.serving import probes
from shared.errors import BadRequest, Overloaded
from shared.ids import Datacenter
from shared.kv.entries import Source
from shared.rpc.client import Channels
from tests.support.pools import Fetching, Running, publish, serving, soon
from tests.support.samples import keys, wanting
from tests.support.waiting import until

LANES = ("grpc", "socket")

CHAIN = keys("chain", 8)


@pytest.fixture
async def west(channels: Channels) -> AsyncIterator[Running]:
    async with serving(channels, dc="west") as running:
        yield running


@pytest.fixture
async def east(channels: Channels) -> AsyncIterator[Running]:
    async with serving(channels, dc="east") as running:
        yield running


async def probe(east: Running, num_bytes: int) -> list[int]:
    """Return the payload bytes of each message."""
    async with aclosing(east.client.probe(num_bytes, "west", soon())) as arriving:
        return [sum(len(frame.payload) for frame in arrived.frames) async for arrived in arriving]


@pytest.mark.parametrize("num_bytes", [1, 8, 9, 1000, 1_000_000, MOST_BYTES])
async def test_a_probe_brings_what_was_asked_for_in_several_messages(east: Running, num_bytes: int) -> None:
    sizes = await probe(east, num_bytes)
    assert sum(sizes) == num_bytes
    assert len(sizes) >= min(num_bytes, probes.LEAST_MESSAGES)
    assert east.count("link_sent_bytes_total", dc="west", urgency="background") == 0, "only payload is counted there"


async def test_a_question_is_answered_by_nothing(east: Running) -> None:
    assert await probe(east, 0) == []


async def test_more_than_a_probe_may_have_is_refused(east: Running) -> None:
    with pytest.raises(BadRequest, match="at most"):
        await probe(east, MOST_BYTES + 1)


async def test_only_so_many_are_served_at_a_time(east: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "MAX_STREAMS", 0)
    with pytest.raises(Overloaded):
        await probe(east, 1)


async def test_a_probe_gives_way_to_what_is_urgent(east: Running) -> None:
    async with east.pool.links.sender("west", is_background=False).permit():
        assert sum(await probe(east, MOST_BYTES)) < MOST_BYTES
    assert sum(await probe(east, 1000)) == 1000


async def test_a_row_of_probes_closes_its_connections(west: Running, east: Running, channels: Channels) -> None:
    num_before = len(channels._by_id)
    async with probing.probes(west.pool.pulls.network, east.address, 3) as row:
        assert await row.rate(300_000) > 0
        assert len(channels._by_id) == num_before + 3
        assert await row.rate(600_000) > 0
        assert row.num_bytes == 900_000
    assert len(channels._by_id) == num_before


async def test_a_watch_finds_out_that_a_pausing_link_is_better_than_was_known(west: Running, east: Running) -> None:
    await publish(east, CHAIN)
    num_news = 0

    def on_news() -> None:
        nonlocal num_news
        num_news += 1

    watching = asyncio.create_task(west.pool.watch.run(on_news))
    try:
        await Fetching(west.client, wanting(CHAIN), [Source(0, 8, Datacenter("east"), (east.address,))]).done()
        (link,) = west.pool.links.incoming
        await until(lambda: 0 < west.count("link_round_trip_seconds", dc="east") < 1)
        link.probing.saw(west.pool.store.clock(), 1e6, is_sure=True)  # so good it was once
        link.goodput.probed(1e5, 1.0)
        await until(lambda: west.count("link_probes_total", dc="east", outcome="measured") >= 2)
        await until(lambda: link.goodput.bytes_per_s > 1e6 / 1.5)
        await until(lambda: west.count("link_probe_bytes_total", dc="east") > 0)
        assert num_news >= 2
        crossed = west.count("link_received_bytes_total", dc="east")
        assert link.crossed_bytes == crossed, "what probes bring is no payload"
    finally:
        watching.cancel()
        await asyncio.wait({watching})


async def test_a_peer_that_went_is_asked_last_and_nothing_breaks(
    west: Running, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "LIMIT_S", 0.2)
    async with serving(channels, dc="east") as gone:
        await publish(gone, CHAIN)
        await Fetching(west.client, wanting(CHAIN), [Source(0, 8, Datacenter("east"), (gone.address,))]).done()
    (link,) = west.pool.links.incoming
    link.probing.saw(west.pool.store.clock(), 1e6, is_sure=True)
    link.goodput.probed(1e5, 1.0)
    watching = asyncio.create_task(west.pool.watch.run(lambda: None))
    try:
        await until(lambda: west.count("link_probes_total", dc="east", outcome="failed") >= 1)
        assert link.goodput.bytes_per_s == pytest.approx(1e5)
        assert link.round_trip.seconds == 0.0
        assert not watching.done()
    finally:
        watching.cancel()
        await asyncio.wait({watching})
