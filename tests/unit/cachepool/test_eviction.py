"""What goes first when room is needed: chains from their ends, dispensable windows, worth, tenants. Manual clock."""

import pytest

from shared.errors import Overloaded
from shared.kv.entries import BlockEntries
from tests.unit.cachepool.samples import FULL, Pool, frame, key, keys, wanting
from tests.unit.cachepool.test_store import taken

A, B, C, D = keys("chain", 4)


def test_the_least_recently_used_block_goes_first() -> None:
    pool = Pool(2, FULL)
    pool.fill(A)
    pool.fill(B)
    pool.store.close(pool.reader(A))
    pool.fill(C)
    assert pool.held(A, B, C) == [True, False, True]
    assert pool.store.stats.num_evicted == 1
    assert pool.groups[-2:] == [(B, 0), (C, 0b1)]


def test_a_chain_is_evicted_from_its_tail() -> None:
    pool = Pool(4, FULL)
    pool.fill(A, B, C)
    for number, expected in enumerate([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]]):
        pool.fill(key(("other", number)))
        assert pool.held(A, B, C) == [bool(flag) for flag in expected]


def test_a_chain_published_in_parts_is_evicted_from_its_tail_too() -> None:
    pool = Pool(4, FULL)
    pool.fill(A, B)
    writer = pool.store.open_writer()
    pool.store.grant(writer, FULL, [BlockEntries(B, 0), *wanting([C, D])])  # B with no layers: only C's predecessor
    for block_key in (C, D):
        for layer in range(3):
            pool.store.put(writer, frame(block_key, layer, FULL))
    pool.store.abandon(writer)
    pool.fill(key("x"))
    assert pool.held(A, B, C, D) == [True, True, True, False]
    pool.fill(key("y"))
    assert pool.held(A, B, C, D) == [True, True, False, False]


def test_using_a_tail_keeps_its_whole_prefix() -> None:
    pool = Pool(4, FULL)
    pool.fill(A, B)
    pool.fill(C)
    pool.store.close(pool.reader(B))
    pool.fill(D)
    pool.fill(key("x"), key("y"))  # needs room for one: C goes, then B, whose use protects A
    assert pool.held(A, B, C, D) == [True, False, False, True]


def test_order_is_kept_where_the_store_saw_the_tail_before_the_head() -> None:
    pool = Pool(2, FULL)
    pool.fill(B)
    pool.fill(A)
    pool.store.close(pool.reader(A, B))
    pool.fill(C)
    assert pool.held(A, B, C) == [True, False, True]


def test_what_readers_or_writers_hold_is_not_evicted() -> None:
    pool = Pool(2, FULL)
    pool.fill(A)
    reader = pool.reader(A)
    writer = pool.writer(B)
    pool.store.put(writer, frame(B, 0, FULL))
    late = pool.writer(C)
    with pytest.raises(Overloaded):
        pool.store.put(late, frame(C, 0, FULL))
    pool.store.check_integrity()
    assert len(taken(reader)) == 3
    for layer in (1, 2):
        pool.store.put(writer, frame(B, layer, FULL))
    pool.store.close(reader)
    pool.store.abandon(late)
    pool.fill(D)
    assert pool.held(A, B, D) == [True, False, True], "A was let go of last"


def test_a_pool_that_never_evicts_does_not_grow() -> None:
    pool = Pool(100, FULL)
    pool.fill(A, B)
    for _ in range(3000):
        pool.store.close(pool.reader(A, B))
    assert len(pool.store._shelf._eviction._all._heap) < 1000
