"""Placement events: what a listener learns from them is what the snapshot says, at every sequence number."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from hypothesis import given, settings
from hypothesis import strategies as st

from services.cachepool.placement import MAX_EVENT_BLOCKS, PlacementFeed, PlacementLog
from shared.bus.events import PlacementEvent
from shared.ids import BlockKey, Datacenter, Epoch, WorkerId
from tests.unit.cachepool.samples import key, keys

A, B = keys("k", 2)


def new_log() -> PlacementLog:
    return PlacementLog(WorkerId("cachepool-west"), Datacenter("west"), Epoch(7))


def applied(events: list[PlacementEvent]) -> dict[BlockKey, int]:
    """What a listener knows after these events."""
    known: dict[BlockKey, int] = {}
    for number, event in enumerate(events, start=1):
        assert event.sequence == number
        if event.cleared:
            known.clear()
        known.update(event.stored)
        for gone in event.evicted:
            del known[gone]
    return known


def test_an_event_carries_only_what_changed() -> None:
    log = new_log()
    log.note(A, 0b01)
    log.note(A, 0b11)
    log.note(B, 0b01)
    (event,) = log.take()
    assert event.stored == ((A, 0b11), (B, 0b01))
    assert (event.holder, event.dc, event.epoch, event.sequence) == ("cachepool-west", "west", 7, 1)
    log.note(A, 0)
    log.note(B, 0b01)
    (event,) = log.take()
    assert (event.stored, event.evicted, event.sequence) == ((), (A,), 2)
    assert log.take() == []


def test_what_came_and_went_between_two_events_is_not_told() -> None:
    log = new_log()
    log.note(A, 0b01)
    log.note(A, 0)
    assert log.take() == []
    assert log.sequence == 0


def test_large_changes_are_split() -> None:
    log = new_log()
    for name in keys("many", 2 * MAX_EVENT_BLOCKS + 1):
        log.note(name, 1)
    assert [len(event.stored) for event in log.take()] == [MAX_EVENT_BLOCKS, MAX_EVENT_BLOCKS, 1]


def test_a_snapshot_is_true_at_its_sequence_not_later() -> None:
    log = new_log()
    log.note(A, 0b11)
    events = log.take()
    log.note(B, 0b11)
    snapshot = log.snapshot()
    assert (snapshot.epoch, snapshot.sequence, snapshot.stored) == (7, 1, [(A, 0b11)])
    assert applied(events + log.take()) == dict(log.snapshot().stored)


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 5), st.integers(0, 3)))))
def test_events_add_up_to_the_snapshot(steps: list[tuple[int, int] | None]) -> None:
    log = new_log()
    events = [log.cleared()]
    held: dict[BlockKey, int] = {}
    for step in steps:
        if step is None:
            events += log.take()
            assert applied(events) == dict(log.snapshot().stored) == {k: g for k, g in held.items() if g}
        else:
            name, groups = step
            log.note(key(name), groups)
            held[key(name)] = groups
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


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the feed has no event to wait for
            await asyncio.sleep(0.005)


async def test_the_feed_starts_an_epoch_and_coalesces() -> None:
    async with running_feed(new_log(), heartbeat_s=60.0) as (feed, events):
        await until(lambda: len(events) == 1)
        assert events[0].cleared
        feed.note(A, 0b01)
        await asyncio.sleep(0)
        feed.note(B, 0b01)
        await until(lambda: len(events) == 2)
        assert events[1].stored == ((A, 0b01), (B, 0b01))


async def test_a_full_event_does_not_wait() -> None:
    async with running_feed(new_log(), heartbeat_s=60.0) as (feed, events):
        for name in keys("many", MAX_EVENT_BLOCKS):
            feed.note(name, 1)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(events[-1].stored) == MAX_EVENT_BLOCKS


async def test_a_quiet_pool_still_shows_its_number() -> None:
    async with running_feed(new_log(), heartbeat_s=0.01) as (_, events):
        await until(lambda: len(events) >= 4)
        assert all((event.stored, event.evicted, event.cleared) == ((), (), False) for event in events[1:])
