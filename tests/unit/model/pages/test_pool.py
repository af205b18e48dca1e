"""Pages: which are taken, which keep their names, which go first."""

import pytest

from shared.ids import BlockKey
from shared.model.pages.pool import PagePool

A, B = BlockKey(b"a" * 32), BlockKey(b"b" * 32)
WHOLE, PART = (0b11,), (0b01,)


def drop(pool: PagePool, *pages: int, keep: bool = True) -> None:
    for page in pages:
        pool.let_go(page, keep=keep)


def test_fresh_pages_lie_together_where_there_is_room() -> None:
    pool = PagePool(10, 1)
    assert pool.take(4) == [0, 1, 2, 3]
    assert pool.take(2, after=3) == [4, 5]
    assert pool.take(2, from_top=True) == [8, 9]
    drop(pool, 1, 2)
    assert pool.take(1, after=1) == [2], "next to the page that it follows"
    assert pool.take(2) == [6, 7], "the first run is too short"
    assert pool.num_touched == 8, "without those from the top"
    pool.check(dict.fromkeys({*range(10)} - {1}, 1))


def test_pages_are_gathered_from_the_longest_runs_where_no_run_is_long_enough() -> None:
    pool = PagePool(8, 1)
    pool.take(8)
    drop(pool, 0, 2, 3, 6)
    assert pool.take(3) == [2, 3, 0]
    pool.check(dict.fromkeys({*range(8)} - {6}, 1))


def test_an_idle_page_is_found_until_it_is_taken_and_the_least_recent_goes_first() -> None:
    pool = PagePool(2, 1)
    first, second = pool.take(2)
    pool.name(first, 0, A, WHOLE)
    pool.name(second, 0, B, WHOLE)
    drop(pool, second, first)
    assert (pool.find(0, A), pool.find(0, B)) == (first, second)
    assert pool.layers(first) == WHOLE
    assert pool.take(1) == [second]
    assert (pool.find(0, A), pool.find(0, B)) == (first, None)
    pool.hold(first)
    pool.check({first: 1, second: 1})


def test_a_page_that_is_not_kept_is_free_at_once() -> None:
    pool = PagePool(2, 1)
    [page] = pool.take(1)
    pool.name(page, 0, A, WHOLE)
    drop(pool, page, keep=False)
    assert pool.find(0, A) is None
    with pytest.raises(AssertionError, match="free"):
        pool.hold(page)
    pool.check({})


def test_groups_have_names_of_their_own() -> None:
    pool = PagePool(2, 2)
    first, second = pool.take(2)
    pool.name(first, 0, A, WHOLE)
    pool.name(second, 1, A, WHOLE)
    assert (pool.find(0, A), pool.find(1, A)) == (first, second)
    pool.check({first: 1, second: 1})


@pytest.mark.parametrize("idle", [False, True])
def test_a_name_moves_to_a_more_complete_page_only(idle: bool) -> None:
    pool = PagePool(3, 1)
    partial, whole, late = pool.take(3)
    pool.name(partial, 0, A, PART)
    if idle:
        drop(pool, partial)
    pool.name(whole, 0, A, WHOLE)
    pool.name(late, 0, A, WHOLE)
    assert pool.find(0, A) == whole
    assert pool.layers(partial) == ()
    pool.check({whole: 1, late: 1} if idle else {partial: 1, whole: 1, late: 1})


def test_pages_are_not_let_go_twice() -> None:
    pool = PagePool(4, 1)
    [page] = pool.take(1)
    drop(pool, page)
    with pytest.raises(AssertionError, match="more often"):
        pool.let_go(page)
