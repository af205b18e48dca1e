"""Tensors of pages: what a block's views show, and who still reads them."""

from shared.model.pages.kv import PagedKv
from tests.support.pages import FULL_GROUP, MIXED, WINDOW_GROUP, keys, reserved


def test_pages_of_several_blocks_are_shared_whole() -> None:
    kv = PagedKv(MIXED, 16, 8)
    first = reserved(kv, [], 20)
    kv.commit(first, 5, keys(5))
    second = reserved(kv, keys(5), 20)
    assert second.cached_blocks == 4
    assert second.tables[FULL_GROUP][:2] == first.tables[FULL_GROUP][:2]
    k, v = kv.block(1, first, 3)
    k.fill_(3)
    v.fill_(4)
    page = first.tables[WINDOW_GROUP][1]
    assert kv.keys_of(1)[page, 4:].eq(3).all()
    assert kv.values_of(1)[page, 4:].eq(4).all()
    assert kv.keys_of(1).sum() == 3 * 4 * 2
    kv.check()


def test_shared_pages_outlive_their_owner() -> None:
    kv = PagedKv(MIXED, 30, 4)
    owner = reserved(kv, [], 40, stride=8)
    assert kv.cover(owner, 0, 8)
    shared = kv.share(owner, 1, 2)
    assert shared is not None
    assert [table[1] for table in shared.tables] == [table[1] for table in owner.tables]
    kv.block(1, owner, 1)[0].fill_(7)
    kv.slide(owner, 40)
    kv.release(owner)
    kv.check()
    other = reserved(kv, [], 36, stride=8)
    assert kv.cover(other, 0, 8)
    assert not {page for table in other.tables for page in table} & {table[1] for table in shared.tables}
    assert kv.block(1, shared, 1)[0].eq(7).all()
    kv.release(shared)
    kv.release(other)
    kv.check()
    assert kv.usage == 0
