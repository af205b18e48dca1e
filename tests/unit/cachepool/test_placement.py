"""Placement events: what a listener learns from them is what the snapshot says, at every sequence number."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hypothesis import given
from hypothesis import strategies as st

from services.cachepool.placement import MAX_EVENT_BLOCKS, BlockState, PlacementFeed, PlacementLog
from shared.bus.events import PlacementEvent, StoredBlocks, unpack_keys
from shared.ids import BlockKey, Datacenter, Epoch, WorkerId
from tests.support.samples import key, keys
from tests.support.waiting import until

A, B = keys("k", 2)


def new_log() -> PlacementLog:
    return PlacementLog(WorkerId("cachepool-west"), Datacenter("west"), Epoch(7))


def applied(events: list[PlacementEvent]) -> dict[BlockKey, BlockState]:
    """What a listener knows after these events."""
    known: dict[BlockKey, BlockState] = {}
    for number, event in enumerate(events, start=1):
        assert event.sequence == number
        if event.cleared:
            known.clear()
        for gone in unpack_keys(event.evicted):
            del known[gone]
        for blocks in event.stored:
            known |= dict.fromkeys(unpack_keys(blocks.keys), BlockState(blocks.groups, blocks.memory_groups))
    return known


def test_an_event_carries_only_what_changed() -> None:
    log = new_log()
    log.note(A, 0b01, 0b01)
    log.note(A, 0b11, 0b01)
    log.note(B, 0b01, 0b01)
    (event,) = log.take()
    assert event.stored == (StoredBlocks(A, 0b11, 0b01), StoredBlocks(B, 0b01, 0b01))
    assert (event.holder, event.dc, event.epoch, event.sequence) == ("cachepool-west", "west", 7, 1)
    log.note(A, 0, 0)
    log.note(B, 0b01, 0b01)
    (event,) = log.take()
    assert (event.stored, event.evicted, event.sequence) == ((), A, 2)
    assert log.take() == []


def test_a_block_that_leaves_memory_but_not_the_pool_is_a_change() -> None:
    log = new_log()
    log.note(A, 0b11, 0b11)
    log.note(B, 0b11, 0b11)
    log.take()
    log.note(A, 0b11, 0)
    log.note(B, 0b11, 0)
    (event,) = log.take()
    assert (event.stored, event.evicted) == ((StoredBlocks(A + B, 0b11, 0),), b"")


def test_what_came_and_went_between_two_events_is_not_told() -> None:
    log = new_log()
    log.note(A, 0b01, 0b01)
    log.note(A, 0, 0)
    assert log.take() == []
    assert log.sequence == 0


def test_large_changes_are_split() -> None:
    log = new_log()
    for name in keys("many", 2 * MAX_EVENT_BLOCKS + 1):
        log.note(name, 1, 1)
    assert [event.num_blocks for event in log.take()] == [MAX_EVENT_BLOCKS, MAX_EVENT_BLOCKS, 1]


def test_a_snapshot_is_true_at_its_sequence_not_later() -> None:
    log = new_log()
    log.note(A, 0b11, 0b10)
    events = log.take()
    log.note(B, 0b11, 0b11)
    snapshot = log.snapshot()
    assert (snapshot.epoch, snapshot.sequence, snapshot.states) == (7, 1, {A: (0b11, 0b10)})
    events += log.take()
    assert snapshot.states == {A: (0b11, 0b10)}
    assert applied(events) == log.snapshot().states


def test_a_snapshot_comes_in_parts() -> None:
    log = new_log()
    assert list(log.snapshot().parts(2)) == [()]
    for number, name in enumerate(keys("many", 5)):
        log.note(name, 1, number % 2)
    log.take()
    a, b, c, d, e = keys("many", 5)
    assert list(log.snapshot().parts(3)) == [
        (StoredBlocks(a + c, 1, 0), StoredBlocks(b, 1, 1)),
        (StoredBlocks(d, 1, 1), StoredBlocks(e, 1, 0)),
    ]


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3)))))
def test_events_add_up_to_the_snapshot(steps: list[tuple[int, int, int] | None]) -> None:
    log = new_log()
    events = [log.cleared()]
    held: dict[BlockKey, BlockState] = {}
    for step in steps:
        if step is None:
            events += log.take()
            assert applied(events) == log.snapshot().states == {k: state for k, state in held.items() if state.groups}
        else:
            name, groups, memory = step
            log.note(key(name), groups, memory)
            held[key(name)] = BlockState(groups, groups & memory)
    assert log.snapshot().sequence == len(events)


@asynccontextmanager
async def running_feed(
    log: PlacementLog, heartbeat_s: float
) -> AsyncIterator[tuple[PlacementFeed, list[PlacementEvent]]]:
    events: list[PlacementEvent] = []
    feed = PlacementFeed(log, events.append, heartbeat_s)
    task = asyncio.create_task(feed.run())
    yield feed, events
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


async def test_the_feed_starts_an_epoch_and_coalesces() -> None:
    async with running_feed(new_log(), heartbeat_s=60.0) as (feed, events):
        await until(lambda: len(events) == 1)
        assert events[0].cleared
        feed.note(A, 0b01, 0b01)
        await asyncio.sleep(0)
        feed.note(B, 0b01, 0b01)
        await until(lambda: len(events) == 2)
        assert events[1].stored == (StoredBlocks(A + B, 0b01, 0b01),)


async def test_a_full_event_does_not_wait() -> None:
    async with running_feed(new_log(), heartbeat_s=60.0) as (feed, events):
        for name in keys("many", MAX_EVENT_BLOCKS):
            feed.note(name, 1, 1)
        for _ in range(5):
            await asyncio.sleep(0)
        assert events[-1].num_blocks == MAX_EVENT_BLOCKS


async def test_a_quiet_pool_still_shows_its_number() -> None:
    async with running_feed(new_log(), heartbeat_s=0.01) as (_, events):
        await until(lambda: len(events) >= 4)
        assert all((event.stored, event.evicted, event.cleared) == ((), b"", False) for event in events[1:])
