"""Pins: what is kept, for how long, and how much of it there may be. Manual clock, no event loop but in the last."""

import asyncio

import pytest

from services.cachepool.store.pins import Pins
from shared.errors import BadRequest, Overloaded
from shared.ids import BlockKey
from shared.kv.entries import BlockEntries
from shared.tenant import NO_TENANT, Tenant
from tests.support.samples import ALL, FULL, LAYOUT, SamplePool, key, keys, wanting
from tests.support.waiting import until

A, B, C = keys("chain", 3)


@pytest.fixture
def pool() -> SamplePool:
    return SamplePool(4, FULL)


@pytest.fixture
def pins(pool: SamplePool) -> Pins:
    return Pins(pool.store, 0.5, 1.0, max_ttl_s=100.0)


def crowd(pool: SamplePool, count: int = 6) -> None:
    for number in range(count):
        pool.fill(key(("crowd", number)))


def test_what_is_pinned_is_not_evicted(pool: SamplePool, pins: Pins) -> None:
    pool.fill(A, B)
    assert pins.pin("p", FULL, wanting([A, B]), 50.0, NO_TENANT) == [ALL, ALL]
    crowd(pool)
    assert pool.held(A, B) == [True, True]
    assert pins.unpin("p")
    assert not pins.unpin("p")
    crowd(pool)
    assert pool.held(A, B) == [False, False]
    pool.store.check_integrity()


def test_a_pin_waits_for_blocks_that_are_not_there(pool: SamplePool, pins: Pins) -> None:
    assert pins.pin("p", FULL, wanting([A]), 50.0, NO_TENANT) == [0]
    assert not list(pool.store._shelf), "a pin alone is no record"
    pool.fill(A)
    crowd(pool)
    assert pool.held(A) == [True]


def test_a_pin_ends_with_its_time(pool: SamplePool, pins: Pins) -> None:
    pins.pin("p", FULL, wanting([A]), 50.0, NO_TENANT)
    pins.pin("q", FULL, wanting([B]), 5000.0, NO_TENANT)
    pool.fill(A)
    pool.clock.advance(40.0)
    pins.pin("p", FULL, wanting([A]), 50.0, NO_TENANT)
    pool.clock.advance(40.0)
    pins.expire()
    assert len(pins) == 2, "renewed"
    pool.clock.advance(20.0)
    pins.expire()
    assert (len(pins), pins.num_bytes) == (0, 0), "no pin lives longer than the pool allows"
    crowd(pool)
    assert pool.held(A) == [False]


def test_pins_are_bounded_and_a_refused_one_changes_nothing(pool: SamplePool, pins: Pins) -> None:
    pins.pin("p", FULL, wanting([A]), 50.0, NO_TENANT)
    before = pins.num_bytes
    with pytest.raises(Overloaded, match="do not fit"):
        pins.pin("q", FULL, wanting([B, C]), 50.0, NO_TENANT)
    with pytest.raises(Overloaded):
        pins.pin("p", FULL, wanting([A, B, C]), 50.0, NO_TENANT)
    assert (len(pins), pins.num_bytes) == (1, before)
    pins.pin("p", FULL, wanting([B, C]), 50.0, NO_TENANT)
    pool.fill(A)
    pool.fill(B, C)
    crowd(pool)
    assert pool.held(A, B, C) == [False, True, True], "the same name again replaces what it kept"


def test_a_tenant_pins_within_its_quota(pool: SamplePool) -> None:
    pins = Pins(pool.store, 0.5, 0.5, max_ttl_s=100.0)
    pins.pin("p", FULL, wanting([A]), 50.0, Tenant("a"))
    with pytest.raises(Overloaded, match="one tenant"):
        pins.pin("q", FULL, wanting([B]), 50.0, Tenant("a"))
    pins.pin("q", FULL, wanting([B]), 50.0, Tenant("b"))


def test_what_two_pins_share_stays_until_both_are_gone(pool: SamplePool, pins: Pins) -> None:
    pool.fill(A)
    pins.pin("p", FULL, [BlockEntries(A, 0b011)], 50.0, NO_TENANT)
    pins.pin("q", FULL, [BlockEntries(A, 0b110)], 50.0, NO_TENANT)
    pins.unpin("p")
    crowd(pool)
    assert pool.held(A) == [True]
    pins.unpin("q")
    crowd(pool)
    assert pool.held(A) == [False]


def test_window_entries_that_a_pin_does_not_name_go_as_any_others() -> None:
    pool = SamplePool(8, LAYOUT)
    pins = Pins(pool.store, 0.5, 1.0, max_ttl_s=100.0)
    chain = keys("long", 4)
    pool.fill(*chain)
    needed = [BlockEntries(name, LAYOUT.needed_layers(index, 4)) for index, name in enumerate(chain)]
    pins.pin("p", LAYOUT, needed, 50.0, NO_TENANT)
    crowd(pool, 12)
    assert [pool.store.lookup(name) for name in chain] == [0b101, 0b101, ALL, ALL]


@pytest.mark.parametrize(
    ("name", "blocks", "ttl_s"),
    [
        ("", wanting([A]), 1.0),
        ("x" * 257, wanting([A]), 1.0),
        ("p", [], 1.0),
        ("p", wanting([A, A]), 1.0),
        ("p", [BlockEntries(A, 0)], 1.0),
        ("p", [BlockEntries(A, 0b1000)], 1.0),
        ("p", wanting([A]), 0.0),
    ],
)
def test_bad_pins_are_refused(pins: Pins, name: str, blocks: list[BlockEntries], ttl_s: float) -> None:
    with pytest.raises(BadRequest):
        pins.pin(name, FULL, blocks, ttl_s, NO_TENANT)
    assert len(pins) == 0


async def test_pins_expire_by_themselves() -> None:
    pool = SamplePool(4, FULL)
    pool.store.clock = asyncio.get_running_loop().time
    pins = Pins(pool.store, 0.5, 1.0, max_ttl_s=100.0)
    running = asyncio.create_task(pins.run())
    pins.pin("p", FULL, wanting([BlockKey(A)]), 0.01, NO_TENANT)
    await until(lambda: len(pins) == 0)
    running.cancel()
    await asyncio.wait({running})
