"""Room for objects: who goes, who is spared, and what a disk that is full after all means."""

import pytest

from services.cachepool.tiers.breaker import Breaker
from services.cachepool.tiers.bucket import Bucket
from services.cachepool.tiers.context import TierContext
from services.cachepool.tiers.index import ObjectIndex, Stored
from services.cachepool.tiers.metrics import TierMetrics
from services.cachepool.tiers.objects import object_path, pack
from services.cachepool.tiers.room import FULL_REST_S, Room
from shared.errors import Overloaded, Unavailable
from shared.metrics import Metrics
from tests.support.objects import FaultyClient
from tests.support.samples import LAYOUT, SamplePool, frame, key

A, B, C = key("a"), key("b"), key("c")
HEADER = pack(A, None, LAYOUT, [frame(A, 0)])
SIZE = HEADER.total_bytes


class Disk:
    """Room for `num_objects` objects of one entry, over a store in memory and a manual clock."""

    def __init__(self, num_objects: int) -> None:
        pool = SamplePool()
        self.clock = pool.clock
        self.client = FaultyClient()
        metrics = TierMetrics(Metrics())
        self.index = ObjectIndex(num_objects * SIZE, pool.clock)
        bucket = Bucket(self.client, 5.0, metrics.on_call)
        self.room = Room(TierContext(pool.store, bucket, self.index, Breaker(pool.clock), metrics, pool.clock))

    def fill(self, *names: str) -> None:
        """Store objects, the one named first the least recently used."""
        for name in names:
            self.clock.advance(1.0)
            header = pack(key(name), None, LAYOUT, [frame(key(name), 0)])
            self.client.replace(object_path(key(name)), header.raw)
            self.index.add(Stored.of(header, self.clock()))


async def test_the_least_recently_used_makes_room_and_the_room_is_kept_for_the_body() -> None:
    disk = Disk(2)
    disk.fill("a", "b")
    async with disk.room.reserved(SIZE, spared=C):
        assert disk.client.names() == [object_path(B)]
        assert disk.index.reserved_bytes == SIZE
    assert disk.index.reserved_bytes == 0


async def test_the_object_that_is_written_anew_is_spared() -> None:
    disk = Disk(2)
    disk.fill("a", "b")
    async with disk.room.reserved(SIZE, spared=A):
        assert disk.client.names() == [object_path(A)]


async def test_what_is_reserved_is_no_room_for_another() -> None:
    disk = Disk(1)
    async with disk.room.reserved(SIZE, spared=A):
        with pytest.raises(Overloaded, match="no object can be deleted"):
            async with disk.room.reserved(SIZE, spared=B):
                pass
    assert disk.index.reserved_bytes == 0


async def test_an_object_that_cannot_be_deleted_stays_known_and_is_the_next_victim() -> None:
    disk = Disk(1)
    disk.fill("a")
    disk.client.error = "down"
    with pytest.raises(Unavailable):
        async with disk.room.reserved(SIZE, spared=B):
            pass
    assert disk.index.get(A) is not None
    disk.client.error = ""
    async with disk.room.reserved(SIZE, spared=B):
        assert disk.client.names() == []


async def test_a_smaller_budget_than_before_is_fitted_into() -> None:
    disk = Disk(1)
    disk.fill("a", "b", "c")
    await disk.room.fit()
    assert disk.client.names() == [object_path(C)]


async def test_a_full_disk_is_a_budget_that_is_used_up_for_a_while() -> None:
    disk = Disk(9)
    disk.fill("a")
    disk.room.found_full(disk.clock())
    async with disk.room.reserved(SIZE, spared=B):
        assert disk.client.names() == [], "the older one makes room"
    disk.fill("a", "b")
    disk.clock.advance(FULL_REST_S)
    async with disk.room.reserved(SIZE, spared=C):
        assert len(disk.client.names()) == 2


async def test_a_disk_that_is_full_after_deleting_is_left_alone() -> None:
    disk = Disk(9)
    disk.fill("a", "b")
    asked_at = disk.clock()
    disk.clock.advance(1.0)
    disk.room.found_full(asked_at)
    disk.room.found_full(asked_at)  # began before the first was known: says nothing new
    async with disk.room.reserved(SIZE, spared=C):
        pass
    disk.clock.advance(1.0)
    disk.room.found_full(disk.clock())
    with pytest.raises(Overloaded, match="did not help"):
        async with disk.room.reserved(SIZE, spared=C):
            pass
    assert disk.client.names() == [object_path(B)], "nothing more is deleted in vain"
    disk.clock.advance(FULL_REST_S)
    async with disk.room.reserved(SIZE, spared=C):
        pass
