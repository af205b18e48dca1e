"""What can be made to happen to a pool in memory. What it promises is asked in the contract tests of pools."""

import pytest

from shared.errors import CorruptFrame, WorkerLost
from shared.kv.entries import BlockEntries
from shared.kv.frame import open_frame
from shared.pool.lanes.lane import Arrived
from shared.pool.memory import MemoryPool
from tests.support.pools import CHAIN, frames_of, soon
from tests.support.samples import LAYOUT, wanting


async def publish(pool: MemoryPool, layers: int = 0b111) -> None:
    async with pool.publish(soon()) as publication:
        await publication.open(LAYOUT, wanting(CHAIN[:1], layers))
        await publication.send(frames_of(CHAIN[:1], layers))


async def fetched(pool: MemoryPool) -> list[Arrived]:
    return [arrived async for arrived in pool.fetch(LAYOUT, wanting(CHAIN[:1]), (), 0.0, soon())]


async def test_what_is_lost_is_missing_until_somebody_writes_it_again() -> None:
    pool = MemoryPool()
    await publish(pool)
    pool.lose((CHAIN[0], 0), (CHAIN[0], 2))
    here, gone = await fetched(pool)
    assert ([frame.layer for frame in here.frames], gone.missing) == ([1], [BlockEntries(CHAIN[0], 0b101)])
    await publish(pool, 0b101)
    (whole,) = await fetched(pool)
    assert whole.frames == frames_of(CHAIN[:1])


async def test_what_is_damaged_is_sent_and_fails_its_checksum() -> None:
    pool = MemoryPool()
    await publish(pool)
    pool.damage((CHAIN[0], 1))
    (arrived,) = await fetched(pool)
    damaged = arrived.frames[1]
    assert arrived.frames[::2] == frames_of(CHAIN[:1])[::2]
    with pytest.raises(CorruptFrame):
        open_frame(damaged)


async def test_a_pool_that_is_away_fails_every_call_and_holds_no_grant() -> None:
    pool = MemoryPool()
    async with pool.publish(soon()) as publication:
        await publication.open(LAYOUT, wanting(CHAIN[:1]))
        pool.is_away = True
        with pytest.raises(WorkerLost):
            await publication.send(frames_of(CHAIN[:1]))
    assert pool.idle
    for call in (publish, fetched):
        with pytest.raises(WorkerLost):
            await call(pool)
    pool.is_away = False
    await publish(pool)
