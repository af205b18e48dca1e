"""Quotas: whose blocks go when room is needed, and who pays for what is shared."""

import pytest

from services.cachepool.store.tenants import Tenants
from shared.errors import Overloaded
from shared.tenant import Tenant
from tests.support.samples import BLOCK_BYTES, FULL, SamplePool, frame, key, keys

A, B, C = map(Tenant, "abc")


def test_a_tenant_that_gave_everything_back_is_forgotten() -> None:
    tenants = Tenants(1000, 0.25)
    tenants.charge(A, 300)
    tenants.charge(B, 251)
    tenants.charge(C, 250)
    assert tenants.above() == [A, B]
    tenants.charge(A, -300)
    assert (tenants.above(), len(tenants), tenants.largest_bytes) == ([B], 2, 251)


def test_without_a_quota_a_tenant_may_use_everything() -> None:
    pool = SamplePool(4, FULL)
    pool.fill(*keys("a", 4), tenant=A)
    pool.fill(*keys("b", 3), tenant=B)
    assert pool.held(*keys("b", 3)) == [True] * 3


def test_room_that_nobody_needs_may_be_used_above_the_quota() -> None:
    pool = SamplePool(4, FULL, tenant_share=0.5)
    pool.fill(*keys("a", 4), tenant=A)
    assert pool.held(*keys("a", 4)) == [True] * 4


def test_a_tenant_above_its_quota_pushes_out_its_own_only() -> None:
    pool = SamplePool(4, FULL, tenant_share=0.5)
    pool.fill(*keys("b", 2), tenant=B)
    for number in range(5):
        pool.fill(key(("a", number)), tenant=A)
    assert pool.held(*keys("b", 2)) == [True, True], "older than all of a's, and yet there"
    assert pool.held(*(key(("a", number)) for number in range(5))) == [False, False, False, True, True]


def test_whoever_is_above_its_quota_makes_room_for_others_first() -> None:
    pool = SamplePool(4, FULL, tenant_share=0.5)
    pool.fill(key("b"), tenant=B)
    pool.fill(*keys("a", 3), tenant=A)
    pool.fill(key("c"), tenant=C)
    assert pool.held(key("b"), key("c"), *keys("a", 3)) == [True, True, True, True, False]
    assert pool.store.stats.num_tenants == 3


def test_a_tenant_whose_own_blocks_are_held_is_refused() -> None:
    pool = SamplePool(4, FULL, tenant_share=0.5)
    pool.fill(*keys("b", 2), tenant=B)
    pool.fill(*keys("a", 2), tenant=A)
    pool.reader(*keys("a", 2))
    with pytest.raises(Overloaded, match="above its quota"):
        pool.fill(key("more"), tenant=A)
    assert pool.held(*keys("b", 2)) == [True, True]


def test_whoever_stored_a_block_first_pays_for_all_of_it() -> None:
    pool = SamplePool(4, FULL, tenant_share=0.5)
    first, second = pool.writer(key("x"), layers=0b001, tenant=A), pool.writer(key("x"), layers=0b110, tenant=B)
    pool.store.put(first, frame(key("x"), 0, FULL))
    pool.store.put(second, frame(key("x"), 1, FULL))
    pool.store.put(second, frame(key("x"), 2, FULL))
    assert (pool.store.stats.num_tenants, pool.store.stats.largest_tenant_bytes) == (1, BLOCK_BYTES)


def test_a_batch_may_have_blocks_that_others_pay_for() -> None:
    pool = SamplePool(4, FULL, tenant_share=0.5)
    names = keys("shared", 2)
    first = pool.writer(names[0], layers=0b001, tenant=A)
    second = pool.writer(*names, tenant=B)
    pool.store.put(first, frame(names[0], 0, FULL))
    result = pool.store.put_all(second, [frame(key, layer, FULL) for layer in (1, 2) for key in names])
    assert (result.num_stored, result.error) == (4, None)
    assert (pool.store.stats.num_tenants, pool.store.stats.largest_tenant_bytes) == (2, BLOCK_BYTES)
    pool.store.check_integrity()
