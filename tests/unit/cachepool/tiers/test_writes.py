"""Write-behind: what is written, in which form, what is not and why, and what waits at the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.cachepool.tiers.objects import object_path
from services.cachepool.tiers.writes import MAX_ATTEMPTS, MAX_HELD_SHARE, WriteLimits
from tests.support.objects import FULL
from tests.support.samples import ALL, frame, key, keys
from tests.support.tiers import SampleTier
from tests.support.waiting import LIMIT_S, until

A, B, C = key("a"), key("b"), key("c")


@asynccontextmanager
async def writing(tier: SampleTier) -> AsyncIterator[None]:
    """Write what waits until the block ends. The store tells what has settled."""
    tier.store.listen(on_settled=tier.writes.note)
    running = asyncio.create_task(tier.writes.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def skipped(tier: SampleTier, reason: str) -> float:
    return tier.count("objects_not_written_total", reason=reason)


async def test_a_block_is_written_once_nobody_writes_it_any_more() -> None:
    tier = SampleTier()
    async with writing(tier):
        writer = tier.pool.writer(A)
        for layer in range(3):
            assert tier.writes.num_waiting == 0
            tier.store.put(writer, frame(A, layer))
        assert await tier.writes.flush(LIMIT_S) == 0
    stored = tier.index.get(A)
    assert stored is not None
    assert await tier.reader.entries(stored, ALL) == [frame(A, layer) for layer in range(3)]


async def test_a_block_that_its_object_has_whole_is_not_written_again() -> None:
    tier = SampleTier()
    tier.add(A)
    async with writing(tier):
        tier.pool.fill(A)
        assert tier.writes.num_waiting == 0
    assert "put" not in tier.client.calls


async def test_an_object_of_an_earlier_life_is_found_before_it_would_be_overwritten() -> None:
    tier = SampleTier()
    tier.put(A)
    async with writing(tier):
        tier.pool.fill(A)
        assert await tier.writes.flush(LIMIT_S) == 0
    assert tier.index.layers(A) == ALL
    assert "put" not in tier.client.calls


async def test_an_object_that_is_written_anew_keeps_what_memory_has_lost() -> None:
    tier = SampleTier()
    tier.put(A, [frame(A, 0)])
    async with writing(tier):
        writer = tier.pool.writer(A, layers=0b110)
        tier.store.put(writer, frame(A, 1))
        tier.store.put(writer, frame(A, 2))
        assert await tier.writes.flush(LIMIT_S) == 0
    assert tier.store.lookup(A) == 0b110
    assert tier.index.layers(A) == ALL


async def test_a_full_queue_takes_no_more() -> None:
    tier = SampleTier(write_limits=WriteLimits(max_waiting=1, max_writes=1))
    tier.store.listen(on_settled=tier.writes.note)
    tier.pool.fill(A)
    tier.pool.fill(B)
    assert (tier.writes.num_waiting, skipped(tier, "queue_full")) == (1, 1)


async def test_a_block_that_waits_may_be_evicted() -> None:
    tier = SampleTier(num_blocks=1)
    tier.store.listen(on_settled=tier.writes.note)
    tier.pool.fill(A)
    tier.pool.fill(B)
    assert tier.store.lookup(A) == 0
    async with writing(tier):
        assert await tier.writes.flush(LIMIT_S) == 0
    assert (skipped(tier, "evicted"), tier.count("objects_written_total")) == (1, 1)


async def test_a_block_is_held_while_it_is_written_and_let_go_afterwards() -> None:
    tier = SampleTier(num_blocks=MAX_HELD_SHARE)
    tier.client.stop_puts = asyncio.Event()
    async with writing(tier):
        tier.pool.fill(A)
        await until(lambda: tier.client.calls.get("put") == 1)
        tier.pool.fill(*keys("others", MAX_HELD_SHARE - 1))
        tier.pool.fill(*keys("more", MAX_HELD_SHARE - 1))
        assert tier.store.lookup(A) == ALL
        tier.client.stop_puts.set()
        await tier.writes.flush(LIMIT_S)
        tier.pool.fill(*keys("others", MAX_HELD_SHARE))
        assert tier.store.lookup(A) == 0
    tier.store.check_integrity()


async def test_no_further_write_begins_while_those_in_progress_hold_much_of_memory() -> None:
    tier = SampleTier(num_blocks=4, write_limits=WriteLimits(max_waiting=100, max_writes=4))
    await tier.recovery.run()
    tier.client.stop_puts = asyncio.Event()
    async with writing(tier):
        tier.pool.fill(A, B, C)
        await until(lambda: tier.client.calls.get("put") == 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert tier.client.calls["put"] == 1, "one block is a fourth of memory"
        tier.client.stop_puts.set()
        assert await tier.writes.flush(LIMIT_S) == 0


async def test_a_write_that_fails_is_tried_again_and_then_given_up() -> None:
    tier = SampleTier()
    tier.client.put_error = FULL
    async with writing(tier):
        tier.pool.fill(A)
        assert await tier.writes.flush(LIMIT_S) == 0
    assert skipped(tier, "no_room") == 1
    assert tier.index.get(A) is None


async def test_a_store_that_is_down_is_given_up_after_some_attempts() -> None:
    tier = SampleTier()
    tier.client.put_error = "down"
    async with writing(tier):
        tier.pool.fill(A)
        assert await tier.writes.flush(LIMIT_S) == 0
    assert skipped(tier, "failed") == 1
    assert tier.client.calls["put"] == MAX_ATTEMPTS


async def test_a_write_that_took_too_long_may_have_taken_effect() -> None:
    """What it left is looked at before the object is written anew."""
    tier = SampleTier()
    await tier.recovery.run()
    tier.client.loses_answers = True
    async with writing(tier):
        tier.pool.fill(A)
        assert await tier.writes.flush(LIMIT_S) == 0
    assert tier.index.layers(A) == ALL
    assert tier.client.calls["put"] == 1


async def test_an_entry_that_has_rotted_in_memory_is_not_written() -> None:
    tier = SampleTier()
    async with writing(tier):
        writer = tier.pool.writer(A)
        sealed = frame(A, 0)
        tier.store.put(writer, sealed._replace(checksum=sealed.checksum ^ 1))
        tier.store.abandon(writer)
        assert await tier.writes.flush(LIMIT_S) == 0
    assert skipped(tier, "corrupt") == 1
    assert tier.client.names() == []


async def test_what_is_not_written_in_time_is_counted() -> None:
    tier = SampleTier()
    tier.client.stop_puts = asyncio.Event()
    async with writing(tier):
        tier.pool.fill(A, B)
        assert await tier.writes.flush(0.01) == 2
        tier.client.stop_puts.set()
        assert await tier.writes.flush(LIMIT_S) == 0
    assert tier.client.names() == sorted([object_path(A), object_path(B)])
