"""One pool of several nodes: blocks go to their owners, answers come back as one, a lost node costs its share."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from shared.errors import WorkerLost
from shared.ids import BlockKey
from shared.kv.entries import BlockEntries
from shared.kv.rendezvous import owner
from shared.pool import spread as spreading
from shared.pool.client import PoolClient
from shared.pool.nodes import Pool, SpreadPool, pool_at
from shared.rpc.client import Channels
from tests.support.pools import Fetching, Running, entries, frames_of, serving, soon
from tests.support.samples import ALL, LAYOUT, keys, wanting
from tests.support.waiting import until

LONG = keys("long", 30)
NOWHERE = "127.0.0.1:1"


@dataclass
class Spread:
    channels: Channels
    nodes: list[Running]
    pool: Pool

    def owned(self, node: str, block_keys: list[BlockKey] = LONG) -> list[BlockKey]:
        return [key for key in block_keys if owner(key, self.pool.address.split(",")) == node]

    @property
    def idle(self) -> bool:
        return all(node.idle for node in self.nodes)


@asynccontextmanager
async def spread(channels: Channels, num_nodes: int, *others: str) -> AsyncIterator[Spread]:
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(serving(channels)) for _ in range(num_nodes)]
        yield Spread(channels, nodes, pool_at(channels, [*(node.address for node in nodes), *others]))


async def fill(pool: Pool, block_keys: list[BlockKey]) -> None:
    async with pool.publish(soon()) as publication:
        grant = await publication.open(LAYOUT, wanting(block_keys))
        assert grant.granted == [ALL] * len(block_keys)
        for frame in frames_of(block_keys):
            await publication.send([frame])


def test_one_node_is_a_plain_client(channels: Channels) -> None:
    assert type(pool_at(channels, ["a:1"])) is PoolClient
    assert type(pool_at(channels, ["a:1", "b:2"])) is SpreadPool


async def test_blocks_go_to_their_owners_and_come_back_as_one(channels: Channels) -> None:
    async with spread(channels, 3) as dc:
        await fill(dc.pool, LONG)
        for node in dc.nodes:
            assert node.count("entries_published_total") == 3 * len(dc.owned(node.address)) > 0
        fetching = await Fetching(dc.pool, wanting(LONG), wait_s=0).done()
        assert sorted(fetching.got) == sorted(entries(LONG))
        async with dc.pool.publish(soon()) as publication:
            new = keys("new", 1)
            grant = await publication.open(LAYOUT, [BlockEntries(LONG[3], 0), *wanting(LONG[4:9]), *wanting(new)])
            assert (grant.granted, grant.present) == ([0] * 6 + [ALL], [0] + [ALL] * 5 + [0])
            await publication.send(frames_of(new))
        await until(lambda: dc.idle)


async def test_a_block_that_is_late_at_one_node_holds_no_other_up(channels: Channels) -> None:
    async with spread(channels, 2) as dc:
        late, early = dc.owned(dc.nodes[0].address), dc.owned(dc.nodes[1].address)
        fetching = Fetching(dc.pool, wanting(LONG))
        await fill(dc.pool, early)
        await fetching.until_got(3 * len(early))
        assert not fetching.task.done()
        await fill(dc.pool, late)
        assert sorted((await fetching.done()).got) == sorted(entries(LONG))
        await until(lambda: dc.idle)


async def test_a_node_that_is_down_costs_its_share(channels: Channels) -> None:
    async with spread(channels, 2, NOWHERE) as dc:
        await fill(dc.pool, LONG)
        lost = dc.owned(NOWHERE)
        assert 0 < len(lost) < len(LONG)
        fetching = await Fetching(dc.pool, wanting(LONG), wait_s=5).done()
        assert fetching.missing == set(entries(lost))
        assert sorted(fetching.got) == sorted(entry for entry in entries(LONG) if entry[0] not in lost)
        await until(lambda: dc.idle)


async def test_a_node_that_dies_in_the_middle_costs_its_share(channels: Channels) -> None:
    async with spread(channels, 2) as dc, AsyncExitStack() as stack:
        victim = await stack.enter_async_context(serving(channels))
        pool = pool_at(channels, [*(node.address for node in dc.nodes), victim.address])
        fetching = Fetching(pool, wanting(LONG))
        frames = frames_of(LONG)
        async with pool.publish(soon()) as publication:
            await publication.open(LAYOUT, wanting(LONG))
            await publication.send(frames[:40])
            await until(lambda: victim.count("entries_published_total") > 0)
            await stack.aclose()
            await publication.send(frames[40:])
        got = set((await fetching.done()).got)
        shares = [owner(key, pool.address.split(",")) == victim.address for key in LONG]
        expected = {entry for key, is_lost in zip(LONG, shares, strict=True) if not is_lost for entry in entries([key])}
        assert expected <= got
        assert got | fetching.missing == set(entries(LONG))
        await until(lambda: dc.idle)


async def test_only_when_all_nodes_are_down_is_it_an_error(channels: Channels) -> None:
    pool = pool_at(channels, [NOWHERE, "127.0.0.1:2"])
    with pytest.raises(WorkerLost):
        async with pool.publish(soon()) as publication:
            await publication.open(LAYOUT, wanting(LONG))
    fetching = await Fetching(pool, wanting(LONG)).done()
    assert fetching.missing == set(entries(LONG))


async def test_a_writer_that_fails_gives_its_leases_up_everywhere(channels: Channels) -> None:
    async with spread(channels, 3) as dc:
        with suppress(ZeroDivisionError):
            async with dc.pool.publish(soon()) as publication:
                await publication.open(LAYOUT, wanting(LONG))
                assert all(node.count("writers_open") == 1 for node in dc.nodes)
                raise ZeroDivisionError
        await until(lambda: dc.idle)
        await fill(dc.pool, LONG)


async def never_answers(*_args: Any) -> None:
    await asyncio.Event().wait()


async def test_a_node_that_does_not_answer_is_given_up(channels: Channels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreading, "PATIENCE_S", 1.0)
    async with spread(channels, 3) as dc:
        mute, *others = dc.nodes
        monkeypatch.setattr(mute.pool.servicer._publishing, "_on_message", never_answers)
        await fill(dc.pool, LONG)
        assert mute.count("entries_published_total") == 0
        for node in others:
            assert node.count("entries_published_total") == 3 * len(dc.owned(node.address))
        await until(lambda: dc.idle)
