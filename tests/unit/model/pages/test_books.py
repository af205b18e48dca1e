"""Reservations: reuse by key, eviction, sliding windows, guarantees, sharing."""

import pytest

from shared.kv.layout import KvLayout, LayerSpec
from shared.model.pages.books import PageBooks
from tests.support.pages import FULL, FULL_LAYER, MIXED, WINDOW_GROUP, keys, reserved, window_pages


def test_committed_pages_are_shared_by_key() -> None:
    books = PageBooks(FULL, 8, 4)
    first = reserved(books, [], 14)
    books.commit(first, 3, keys(3))
    second = reserved(books, keys(3), 14)
    assert second.cached_blocks == 3
    assert second.tables[0][:3] == first.tables[0][:3]
    assert second.tables[0][3] != first.tables[0][3]
    assert second.cached_layers == (FULL.all_layers,) * 3
    assert books.held == 2
    books.check()


def test_a_refused_reservation_changes_nothing() -> None:
    books = PageBooks(FULL, 4, 4)
    first = reserved(books, [], 8)
    books.commit(first, 2, keys(2))
    books.release(first)
    assert books.reserve(keys(2), 100) is None
    assert (books.usage, books.held) == (0, 0)
    assert reserved(books, keys(2), 16).cached_blocks == 2, (
        "the cached pages are still there, and count as available once"
    )
    assert books.usage == 1
    books.check()


def test_pages_that_are_cached_and_idle_count_as_taken() -> None:
    books = PageBooks(FULL, 4, 4)
    first = reserved(books, [], 8)
    books.commit(first, 2, keys(2))
    books.release(first)
    other = reserved(books, [], 8)
    assert books.reserve(keys(2), 12) is None
    assert books.held == 1
    books.check()
    books.release(other)
    assert reserved(books, keys(2), 12).cached_blocks == 2
    books.check()


def test_ends_of_chains_are_evicted_first() -> None:
    books = PageBooks(FULL, 4, 4)
    first = reserved(books, [], 16)
    books.commit(first, 4, keys(4))
    books.release(first)
    books.release(reserved(books, keys(1, "b"), 4))
    assert reserved(books, keys(4), 16).cached_blocks == 3
    books.check()


def test_release_is_idempotent() -> None:
    books = PageBooks(FULL, 4, 4)
    first, second = reserved(books, [], 8), reserved(books, [], 8)
    books.release(first)
    books.release(first)
    assert books.held == 1
    assert books.usage == 0.5
    books.release(second)
    books.check()


def test_the_first_commit_of_a_key_wins() -> None:
    books = PageBooks(FULL, 8, 4)
    first, second = reserved(books, [], 4), reserved(books, [], 4)
    books.commit(first, 1, keys(1))
    books.commit(second, 1, keys(1))
    assert reserved(books, keys(1), 4).tables == first.tables
    books.release(second)
    books.check()


def test_a_more_complete_page_takes_over_a_key() -> None:
    """The layers differ in shape, so that they share a page, and one can be complete without the other."""
    books = PageBooks(KvLayout((LayerSpec(None, 1, 2), LayerSpec(8, 2, 2)), "float32", block_tokens=4), 8, 8)
    partial, whole = reserved(books, [], 8), reserved(books, [], 8)
    books.commit(partial, 2, keys(2), [FULL_LAYER, 0b11])
    assert reserved(books, keys(2), 8).cached_blocks == 0
    books.commit(whole, 2, keys(2))
    books.commit(partial, 2, keys(2), [FULL_LAYER, 0b11])
    assert reserved(books, keys(2), 8).tables == whole.tables
    books.release(partial)
    books.check()


def test_page_size_must_hold_whole_blocks() -> None:
    with pytest.raises(ValueError, match="multiple"):
        PageBooks(FULL, 8, 6)


def test_extend_takes_the_next_page() -> None:
    books = PageBooks(FULL, 4, 4)
    reservation = reserved(books, [], 5)
    assert books.extend(reservation, 8)
    assert books.extend(reservation, 9)
    assert reservation.tables[0] == [0, 1, 2]
    assert not books.extend(reservation, 17)
    assert reservation.num_tokens == 9
    books.check()


def test_a_window_group_holds_what_the_window_needs() -> None:
    books = PageBooks(MIXED, 100, 4)
    reservation = reserved(books, [], 200, stride=8)
    assert window_pages(reservation) == []
    assert books.cover(reservation, 0, 8)
    most = 0
    for position in range(8, 200, 8):
        books.slide(reservation, position)
        assert books.cover(reservation, position, position + 8)
        assert window_pages(reservation) == [position // 4 - 2, position // 4 - 1, position // 4, position // 4 + 1]
        most = max(most, *reservation.tables[WINDOW_GROUP])
    assert len({page for page in range(100) if books._pool.is_used(page)}) == 50 + 4
    assert books.usage == pytest.approx((50 + 5) / 100), "the guarantee is for any alignment"
    assert books._pool._num_free == 100 - 54
    books.check()
    books.release(reservation)
    assert books.usage == 0
    books.check()


def test_going_further_than_the_stride_needs_a_slide_first() -> None:
    books = PageBooks(MIXED, 100, 4)
    reservation = reserved(books, [], 200, stride=8)
    assert books.cover(reservation, 0, 8)
    assert books.cover(reservation, 8, 16), "nothing is behind the window yet"
    before = list(reservation.tables[WINDOW_GROUP])
    assert not books.cover(reservation, 16, 24)
    assert reservation.tables[WINDOW_GROUP] == before
    books.slide(reservation, 16)
    assert books.cover(reservation, 16, 24)
    books.check()


def test_two_holders_cannot_block_each_other_half_way() -> None:
    books = PageBooks(MIXED, 2 * (25 + 5), 4)
    both = [reserved(books, [], 100, stride=8), reserved(books, [], 100, stride=8)]
    assert books.reserve([], 1) is None
    for position in range(0, 96, 8):
        for reservation in both:
            books.slide(reservation, position)
            assert books.cover(reservation, position, position + 8)
    books.check()


def test_pages_slid_past_are_free_and_those_at_the_end_can_be_resumed_at() -> None:
    books = PageBooks(MIXED, 100, 4)
    first = reserved(books, [], 40, stride=8)
    for position in range(0, 40, 8):
        books.slide(first, position)
        assert books.cover(first, position, position + 8)
        if position == 8:
            books.commit(first, 4, keys(4))
    books.commit(first, 10, keys(10))
    books.release(first)
    assert [reserved(books, keys(n), 40, stride=8).cached_blocks for n in (10, 8, 7, 4)] == [10, 8, 0, 0]
    books.check()


def test_what_was_slid_past_goes_before_the_ends_of_chains() -> None:
    books = PageBooks(MIXED, 5 + 5 + 1, 4)
    other = reserved(books, [], 4, stride=4)
    assert books.cover(other, 0, 4)
    books.commit(other, 1, keys(1, "b"))
    books.release(other)
    first = reserved(books, [], 20, stride=8)
    for position in (0, 8):
        books.slide(first, position)
        assert books.cover(first, position, position + 8)
        books.commit(first, (position + 8) // 4, keys(5))
    books.slide(first, 16)
    assert books.cover(first, 16, 20)  # the pool is full now: this takes a page that was slid past
    assert books.reserve(keys(1, "b"), 4, stride=4) is None
    books.release(first)
    assert reserved(books, keys(1, "b"), 4, stride=4).cached_blocks == 1
    books.check()


def test_a_resume_takes_the_pages_before_it_and_a_failed_one_gives_them_back() -> None:
    books = PageBooks(MIXED, 100, 4)
    first = reserved(books, [], 8)
    books.commit(first, 2, keys(2))
    second = reserved(books, keys(2), 100, stride=8)
    assert window_pages(second) == [0, 1]
    assert books.cover(second, 60, 60)
    assert window_pages(second) == [0, 1, 13, 14]
    assert books.cover(second, 60, 68), "a first chunk may be computed while entries still arrive"
    books.rewind(second, 8)
    assert window_pages(second) == [0, 1]
    for position in range(8, 96, 8):
        books.slide(second, position)
        assert books.cover(second, position, position + 8)
    books.check()


def test_sharing_without_room_is_refused() -> None:
    books = PageBooks(MIXED, 10 + 5, 4)
    owner = reserved(books, [], 40, stride=8)
    assert books.cover(owner, 0, 8)
    assert books.share(owner, 0, 2) is None
    assert books.held == 1
    books.check()


def test_a_shorter_stride_gives_back_what_was_guaranteed() -> None:
    books = PageBooks(MIXED, 100, 4)
    reservation = reserved(books, [], 100, stride=40)
    assert books.cover(reservation, 0, 40)
    assert books.usage == pytest.approx((25 + 13) / 100)
    books.slide(reservation, 40, stride=4)
    assert books.usage == pytest.approx((25 + 4) / 100)
    assert books.cover(reservation, 40, 44)
    books.check()


def test_what_fits_alone_can_be_reserved_whatever_is_cached() -> None:
    books = PageBooks(MIXED, 12, 4)
    num_tokens = books.capacity_tokens(4)
    assert books.fits(num_tokens, 4)
    assert not books.fits(num_tokens + 1, 4)
    first = reserved(books, [], num_tokens)
    books.commit(first, num_tokens // 4, keys(num_tokens // 4))
    books.release(first)
    for cached in range(num_tokens // 4 + 1):
        books.release(reserved(books, keys(cached), num_tokens, stride=4))
    books.check()


@pytest.mark.parametrize("window", [None, 8])
def test_a_reservation_leaves_spare_pages(window: int | None) -> None:
    layout = KvLayout((LayerSpec(None, 1, 2), LayerSpec(window, 1, 2)), "float32", block_tokens=4)
    needed = PageBooks(layout, 1, 4).groups.pages_needed(12, None, 4)
    books = PageBooks(layout, needed + 1, 4)
    assert books.reserve([], 12, spare_pages=2) is None
    assert books.held == 0
    assert books.reserve([], 12, spare_pages=1) is not None
    books.check()
