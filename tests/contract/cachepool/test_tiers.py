"""The object tier of a real pool: written behind, read through, taken over after a restart, whatever goes wrong."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.cachepool.app import holding
from services.cachepool.tiers import breaker
from services.cachepool.tiers.breaker import MAX_FAILURES
from services.cachepool.tiers.objects import object_path
from shared.bus.events import unpack_keys
from shared.errors import SettingsError
from shared.ids import BlockKey, Datacenter
from shared.kv.entries import Source
from shared.rpc.client import Channels
from tests.support.objects import FULL, FaultyClient
from tests.support.pools import CHAIN, Fetching, Running, entries, publish, serving, soon
from tests.support.samples import ALL, BLOCK_BYTES, LAYOUT, key, keys, wanting
from tests.support.waiting import until

LANES = ("grpc",)

OTHER = keys("other", 4)


@pytest.fixture
def client() -> FaultyClient:
    return FaultyClient()


@asynccontextmanager
async def pool(
    channels: Channels, client: FaultyClient, num_blocks: int = 4, **settings: object
) -> AsyncIterator[Running]:
    """A pool whose memory has room for `num_blocks` blocks."""
    async with serving(channels, client, pool_bytes=num_blocks * BLOCK_BYTES, **settings) as running:
        yield running


async def written(running: Running, num_objects: int) -> None:
    await until(lambda: running.count("objects_written_total") == num_objects)
    await until(lambda: running.count("object_writes_waiting") == 0)


async def pushed_out(running: Running) -> None:
    """Publish CHAIN, wait for its objects, and fill memory with other blocks."""
    await publish(running, CHAIN)
    await written(running, 4)
    await publish(running, OTHER)
    await written(running, 8)
    assert [running.pool.store.lookup(name) for name in CHAIN] == [0] * 4


async def test_published_blocks_are_written_and_come_back_when_memory_has_lost_them(
    channels: Channels, client: FaultyClient
) -> None:
    async with pool(channels, client) as west:
        await pushed_out(west)
        fetched = await Fetching(west.client, wanting(CHAIN)).done()
        assert sorted(fetched.got) == sorted(entries(CHAIN))
        assert west.count("object_entries_read_total") == 12
        again = await Fetching(west.client, wanting(CHAIN)).done()
        assert again.got == entries(CHAIN), "memory has them now"
        assert west.count("object_entries_read_total") == 12
        await written(west, 8)
        assert client.names() == sorted(object_path(name) for name in (*CHAIN, *OTHER))


async def test_many_readers_cost_one_read(channels: Channels, client: FaultyClient) -> None:
    async with pool(channels, client) as west:
        await pushed_out(west)
        client.calls.clear()
        client.delay_s = 0.02
        readers = [Fetching(west.client, wanting(CHAIN)) for _ in range(5)]
        for reader in readers:
            assert sorted((await reader.done()).got) == sorted(entries(CHAIN))
        assert client.calls["get_range"] == 4


async def test_only_the_wanted_layers_are_read(channels: Channels, client: FaultyClient) -> None:
    async with pool(channels, client) as west:
        await pushed_out(west)
        await Fetching(west.client, wanting(CHAIN, 0b101)).done()
        assert west.count("object_entries_read_total") == 8
        assert [west.pool.store.lookup(name) for name in CHAIN] == [0b101] * 4
        assert west.pool.store.groups(CHAIN[0]) == 0b01


async def test_a_writer_is_told_what_the_object_tier_has(channels: Channels, client: FaultyClient) -> None:
    async with pool(channels, client) as west:
        await pushed_out(west)
        async with west.client.publish(soon()) as publication:
            grant = await publication.open(LAYOUT, wanting([*CHAIN, key("new")]))
        assert grant.granted == [0, 0, 0, 0, ALL]
        assert grant.present == [ALL, ALL, ALL, ALL, 0]


async def test_a_block_that_gains_layers_is_written_anew_with_all_of_them(
    channels: Channels, client: FaultyClient
) -> None:
    async with pool(channels, client) as west:
        await publish(west, CHAIN[:1], 0b001)
        await written(west, 1)
        await publish(west, OTHER)  # memory loses layer 0
        await written(west, 5)
        await publish(west, CHAIN[:1], 0b110)
        await written(west, 6)
        assert west.pool.tier is not None
        assert west.pool.tier.index.layers(CHAIN[0]) == ALL
        assert west.pool.store.lookup(CHAIN[0]) == 0b110
    async with pool(channels, client) as reborn:
        await until(lambda: reborn.count("objects_recovered_total") == 5)
        fetched = await Fetching(reborn.client, wanting(CHAIN[:1])).done()
        assert sorted(fetched.got) == sorted(entries(CHAIN[:1]))


async def test_a_restart_recovers_what_is_whole_and_discards_what_is_torn(
    channels: Channels, client: FaultyClient
) -> None:
    async with pool(channels, client) as west:
        await publish(west, CHAIN)
        await written(west, 4)
    torn, garbage, foreign = (object_path(name) for name in (CHAIN[3], CHAIN[2], CHAIN[1]))
    client.replace(torn, client.content(torn)[:-1])
    client.replace(garbage, bytes(100))
    client.replace(foreign, client.content(object_path(CHAIN[0])))
    client.replace("README", b"somebody else's")
    async with pool(channels, client) as reborn:
        await until(lambda: reborn.count("objects_torn_total") == 3)
        await until(lambda: reborn.count("objects_stored") == 1)
        assert reborn.count("objects_recovered_total") == 1
        await until(lambda: client.names() == sorted([object_path(CHAIN[0]), "README"]))
        fetched = await Fetching(reborn.client, wanting(CHAIN), wait_s=0).done()
        assert fetched.missing == set(entries(CHAIN[1:]))


async def test_a_restart_with_a_smaller_budget_deletes_from_the_end_of_the_chain(
    channels: Channels, client: FaultyClient
) -> None:
    async with pool(channels, client) as west:
        await publish(west, CHAIN)
        await written(west, 4)
        object_bytes = int(west.count("object_stored_bytes"))
    async with pool(channels, client, object_bytes=object_bytes // 2) as reborn:
        await until(lambda: reborn.count("objects_dropped_total", reason="evicted") == 2)
        assert client.names() == sorted(object_path(name) for name in CHAIN[:2])
        await publish(reborn, OTHER[:1])
        await until(lambda: object_path(OTHER[0]) in client.names())
        assert len(client.names()) == 2
        assert reborn.count("object_stored_bytes") <= object_bytes // 2


def announced(running: Running) -> dict[BlockKey, tuple[int, int]]:
    runs = [run for event in running.events for run in event.stored]
    return {key: (run.groups, run.memory_groups) for run in runs for key in unpack_keys(run.keys)}


async def test_placement_says_what_any_tier_holds(channels: Channels, client: FaultyClient) -> None:
    async with pool(channels, client) as west:
        await pushed_out(west)
        assert holding(west.pool.store, west.pool.tier, CHAIN[0]) == (0b11, 0)
        assert holding(west.pool.store, west.pool.tier, OTHER[0]) == (0b11, 0b11)
    async with pool(channels, client, num_blocks=100) as reborn:
        await until(lambda: reborn.count("objects_recovered_total") == 8)
        await until(lambda: announced(reborn) == dict.fromkeys([*CHAIN, *OTHER], (0b11, 0)))
        assert reborn.events[0].cleared


async def test_garbage_from_the_object_store_is_never_served(channels: Channels, client: FaultyClient) -> None:
    async with pool(channels, client) as west:
        await pushed_out(west)
        client.flips_reads = True
        fetched = await Fetching(west.client, wanting(CHAIN), wait_s=0).done()
        assert fetched.missing == set(entries(CHAIN, 0b001)), "the bit that flips is in layer 0"
        assert west.count("object_corrupt_entries_total") == 8, "each was read twice"
        assert west.count("objects_dropped_total", reason="corrupt") == 4
        tier = west.pool.tier
        assert tier is not None
        await until(lambda: [tier.index.layers(name) for name in CHAIN] == [0b110] * 4)  # what was good is kept


async def test_what_is_damaged_here_comes_from_a_peer(channels: Channels, client: FaultyClient) -> None:
    async with serving(channels) as east, pool(channels, client) as west:
        await publish(east, CHAIN)
        await pushed_out(west)
        path = object_path(CHAIN[1])
        client.replace(path, client.content(path)[:-30] + bytes(30))
        sources = [Source(0, 4, Datacenter(""), (east.address,))]
        fetched = await Fetching(west.client, wanting(CHAIN), sources).done()
        assert sorted(fetched.got) == sorted(entries(CHAIN))
        assert west.count("pulled_entries_total", peer=east.address) == 1
        assert west.count("object_corrupt_entries_total") == 2


async def test_a_failing_object_store_is_left_alone_and_costs_no_request(
    channels: Channels, client: FaultyClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST_REST_S", 600.0)
    async with pool(channels, client) as west:
        await pushed_out(west)
        client.error = "Generic S3 error: 503"
        fetched = await Fetching(west.client, wanting(CHAIN), wait_s=0).done()
        assert fetched.missing == set(entries(CHAIN))
        failed = west.count("object_failures_total", operation="read", kind="unavailable")
        assert failed >= MAX_FAILURES
        fresh = keys("fresh", 4)
        await publish(west, fresh)
        assert (await Fetching(west.client, wanting(fresh)).done()).got == entries(fresh)
        fetched = await Fetching(west.client, wanting(CHAIN), wait_s=0).done()
        assert fetched.missing == set(entries(CHAIN))
        assert west.count("object_failures_total", operation="read", kind="unavailable") == failed, "it rests"
        async with west.client.publish(soon()) as publication:
            grant = await publication.open(LAYOUT, wanting(CHAIN[:1]))
            assert grant.granted == [ALL], "nobody counts on what cannot be read"


async def test_a_slow_object_store_costs_its_time_limit_once(channels: Channels, client: FaultyClient) -> None:
    async with serving(channels) as east, pool(channels, client, object_timeout_s=1.5) as west:
        await publish(east, CHAIN)
        await pushed_out(west)
        client.delay_s = 30
        sources = [Source(0, 4, Datacenter(""), (east.address,))]
        fetched = await Fetching(west.client, wanting(CHAIN), sources).done()
        assert sorted(fetched.got) == sorted(entries(CHAIN))
        assert west.count("pulled_entries_total", peer=east.address) == 12
        assert west.count("object_failures_total", operation="read", kind="deadline_exceeded") >= MAX_FAILURES


async def test_writing_never_holds_up_publishing(channels: Channels, client: FaultyClient) -> None:
    client.stop_puts = asyncio.Event()
    async with pool(channels, client, num_blocks=8, object_writes=2, object_queue=3, object_timeout_s=30) as west:
        names = keys("many", 40)
        for name in names:
            await publish(west, [name])
        fetched = await Fetching(west.client, wanting(names[-4:])).done()
        assert fetched.got == entries(names[-4:])
        assert west.count("objects_not_written_total", reason="queue_full") == 35
        client.stop_puts.set()
        await until(lambda: west.count("object_writes_waiting") == 0)
        assert west.count("objects_written_total") == 2
        assert west.count("objects_not_written_total", reason="evicted") == 3


async def test_a_full_disk_is_a_budget(channels: Channels, client: FaultyClient) -> None:
    async with pool(channels, client, num_blocks=100) as west:
        await publish(west, CHAIN)
        await written(west, 4)
        client.capacity = int(west.count("object_stored_bytes"))
        for name in OTHER:
            await publish(west, [name])
            await until(lambda: object_path(name) in client.names())  # noqa: B023 - awaited in the loop
        assert client.names() == sorted(object_path(name) for name in OTHER)
        assert west.count("object_failures_total", operation="put", kind="overloaded") == 1
        assert west.count("objects_dropped_total", reason="evicted") == 4


async def test_a_disk_that_others_fill_costs_no_request_and_few_objects(
    channels: Channels, client: FaultyClient
) -> None:
    async with pool(channels, client, num_blocks=100, object_writes=1) as west:
        await publish(west, CHAIN)
        await written(west, 4)
        client.put_error = FULL
        many = keys("many", 30)
        await publish(west, many)
        await until(lambda: west.count("objects_not_written_total", reason="no_room") == 30)
        assert west.count("object_failures_total", operation="put", kind="overloaded") == 2
        assert west.count("objects_dropped_total", reason="evicted") == 1
        assert (await Fetching(west.client, wanting([*CHAIN, *many])).done()).missing == set()


async def test_a_store_that_is_down_at_the_start_is_asked_again(channels: Channels, client: FaultyClient) -> None:
    async with pool(channels, client) as west:
        await publish(west, CHAIN)
        await written(west, 4)
    client.error = "Generic S3 error: 503"
    async with pool(channels, client) as reborn:
        await until(lambda: reborn.count("object_failures_total", operation="list", kind="unavailable") > 0)
        fetched = await Fetching(reborn.client, wanting(CHAIN), wait_s=0).done()
        assert fetched.missing == set(entries(CHAIN))
        client.error = ""
        await until(lambda: reborn.count("objects_recovered_total") == 4)
        assert sorted((await Fetching(reborn.client, wanting(CHAIN)).done()).got) == sorted(entries(CHAIN))


async def test_memory_that_is_full_of_held_blocks_makes_entries_missing_not_errors(
    channels: Channels, client: FaultyClient
) -> None:
    async with pool(channels, client) as west:
        await pushed_out(west)
        blocks = wanting([*CHAIN, *OTHER])
        fetched = await Fetching(west.client, blocks, wait_s=0.1).done()
        assert len(fetched.got) >= 12
        assert len(fetched.missing) + len(fetched.got) == 24
        assert west.count("object_entries_refused_total") > 0


async def test_a_reader_that_leaves_ends_the_reads(channels: Channels, client: FaultyClient) -> None:
    async with pool(channels, client) as west:
        await pushed_out(west)
        client.delay_s = 2
        fetching = Fetching(west.client, wanting(CHAIN))
        await until(lambda: west.count("writers_open") == 1)
        await fetching.cancel()
        await until(lambda: west.idle)


async def test_what_waits_is_written_before_the_end(channels: Channels, client: FaultyClient) -> None:
    async with pool(channels, client, num_blocks=100) as west:
        client.delay_s = 0.05
        await publish(west, CHAIN)
        assert west.pool.tier is not None
        assert await west.pool.tier.close(10) == 0
        assert len(client.names()) == 4


@pytest.mark.parametrize("url", ["s3://", "ftp://host/x", "nonsense"])
async def test_a_url_that_cannot_be_a_store_is_a_problem_of_the_settings(channels: Channels, url: str) -> None:
    with pytest.raises(SettingsError, match="PRFAAS_POOL_OBJECT_URL"):
        async with serving(channels, object_url=url):
            pass
