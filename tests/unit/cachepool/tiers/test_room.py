"""Room for objects: who goes, who is spared, and what a disk that is full after all means."""

import pytest

from services.cachepool.tiers.objects import object_path, pack
from services.cachepool.tiers.room import FULL_REST_S
from shared.errors import Overloaded, Unavailable
from tests.support.samples import LAYOUT, frame, key
from tests.support.tiers import SampleTier

A, B, C = key("a"), key("b"), key("c")
SIZE = pack(A, None, LAYOUT, [frame(A, layer) for layer in range(LAYOUT.num_layers)]).total_bytes
"""Of a whole object."""


async def test_the_least_recently_used_makes_room_and_the_room_is_kept_for_the_body() -> None:
    tier = SampleTier(budget_bytes=2 * SIZE)
    tier.add(A, B)
    async with tier.room.reserved(SIZE, spared=C):
        assert tier.client.names() == [object_path(B)]
        assert tier.index.reserved_bytes == SIZE
    assert tier.index.reserved_bytes == 0


async def test_the_object_that_is_written_anew_is_spared() -> None:
    tier = SampleTier(budget_bytes=2 * SIZE)
    tier.add(A, B)
    async with tier.room.reserved(SIZE, spared=A):
        assert tier.client.names() == [object_path(A)]


async def test_what_is_reserved_is_no_room_for_another() -> None:
    tier = SampleTier(budget_bytes=SIZE)
    async with tier.room.reserved(SIZE, spared=A):
        with pytest.raises(Overloaded, match="no object can be deleted"):
            async with tier.room.reserved(SIZE, spared=B):
                pass
    assert tier.index.reserved_bytes == 0


async def test_an_object_that_cannot_be_deleted_stays_known_and_is_the_next_victim() -> None:
    tier = SampleTier(budget_bytes=SIZE)
    tier.add(A)
    tier.client.error = "down"
    with pytest.raises(Unavailable):
        async with tier.room.reserved(SIZE, spared=B):
            pass
    assert tier.index.get(A) is not None
    tier.client.error = ""
    async with tier.room.reserved(SIZE, spared=B):
        assert tier.client.names() == []


async def test_a_smaller_budget_than_before_is_fitted_into() -> None:
    tier = SampleTier(budget_bytes=SIZE)
    tier.add(A, B, C)
    await tier.room.fit()
    assert tier.client.names() == [object_path(C)]


async def test_a_full_disk_is_a_budget_that_is_used_up_for_a_while() -> None:
    tier = SampleTier(budget_bytes=9 * SIZE)
    tier.add(A)
    tier.room.found_full(tier.clock())
    async with tier.room.reserved(SIZE, spared=B):
        assert tier.client.names() == [], "the older one makes room"
    tier.add(A, B)
    tier.clock.advance(FULL_REST_S)
    async with tier.room.reserved(SIZE, spared=C):
        assert len(tier.client.names()) == 2


async def test_a_disk_that_is_full_after_deleting_is_left_alone() -> None:
    tier = SampleTier(budget_bytes=9 * SIZE)
    tier.add(A, B)
    asked_at = tier.clock()
    tier.clock.advance(1.0)
    tier.room.found_full(asked_at)
    tier.room.found_full(asked_at)  # began before the first was known: says nothing new
    async with tier.room.reserved(SIZE, spared=C):
        pass
    tier.clock.advance(1.0)
    tier.room.found_full(tier.clock())
    with pytest.raises(Overloaded, match="did not help"):
        async with tier.room.reserved(SIZE, spared=C):
            pass
    assert tier.client.names() == [object_path(B)], "nothing more is deleted in vain"
    tier.clock.advance(FULL_REST_S)
    async with tier.room.reserved(SIZE, spared=C):
        pass
