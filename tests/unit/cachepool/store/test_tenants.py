"""Quotas: whose blocks go when room is needed, and who pays for what is shared."""

import pytest

from services.cachepool.store.tenants import Tenants
from shared.errors import Overloaded
from tests.support.samples import BLOCK_BYTES, FULL, Pool, frame, key, keys


def test_a_tenant_that_gave_everything_back_is_forgotten() -> None:
    tenants = Tenants(1000, 0.25)
    tenants.charge("a", 300)
    tenants.charge("b", 251)
    tenants.charge("c", 250)
    assert tenants.above() == ["a", "b"]
    tenants.charge("a", -300)
    assert (tenants.above(), len(tenants), tenants.largest_bytes) == (["b"], 2, 251)


def test_without_a_quota_a_tenant_may_use_everything() -> None:
    pool = Pool(4, FULL)
    pool.fill(*keys("a", 4), tenant="a")
    pool.fill(*keys("b", 3), tenant="b")
    assert pool.held(*keys("b", 3)) == [True] * 3


def test_room_that_nobody_needs_may_be_used_above_the_quota() -> None:
    pool = Pool(4, FULL, tenant_share=0.5)
    pool.fill(*keys("a", 4), tenant="a")
    assert pool.held(*keys("a", 4)) == [True] * 4


def test_a_tenant_above_its_quota_pushes_out_its_own_only() -> None:
    pool = Pool(4, FULL, tenant_share=0.5)
    pool.fill(*keys("b", 2), tenant="b")
    for number in range(5):
        pool.fill(key(("a", number)), tenant="a")
    assert pool.held(*keys("b", 2)) == [True, True], "older than all of a's, and yet there"
    assert pool.held(*(key(("a", number)) for number in range(5))) == [False, False, False, True, True]


def test_whoever_is_above_its_quota_makes_room_for_others_first() -> None:
    pool = Pool(4, FULL, tenant_share=0.5)
    pool.fill(key("b"), tenant="b")
    pool.fill(*keys("a", 3), tenant="a")
    pool.fill(key("c"), tenant="c")
    assert pool.held(key("b"), key("c"), *keys("a", 3)) == [True, True, True, True, False]
    assert pool.store.stats.num_tenants == 3


def test_a_tenant_whose_own_blocks_are_held_is_refused() -> None:
    pool = Pool(4, FULL, tenant_share=0.5)
    pool.fill(*keys("b", 2), tenant="b")
    pool.fill(*keys("a", 2), tenant="a")
    pool.reader(*keys("a", 2))
    with pytest.raises(Overloaded, match="above its quota"):
        pool.fill(key("more"), tenant="a")
    assert pool.held(*keys("b", 2)) == [True, True]


def test_whoever_stored_a_block_first_pays_for_all_of_it() -> None:
    pool = Pool(4, FULL, tenant_share=0.5)
    first, second = pool.writer(key("x"), layers=0b001, tenant="a"), pool.writer(key("x"), layers=0b110, tenant="b")
    pool.store.put(first, frame(key("x"), 0, FULL))
    pool.store.put(second, frame(key("x"), 1, FULL))
    pool.store.put(second, frame(key("x"), 2, FULL))
    assert (pool.store.stats.num_tenants, pool.store.stats.largest_tenant_bytes) == (1, BLOCK_BYTES)
