"""The paged cache: reuse by key, eviction, sliding windows, guarantees, publishing."""

import pytest

from shared.ids import BlockKey
from shared.kv.layout import KvLayout, LayerSpec
from shared.model.pages.kv import PagedKv
from shared.model.pages.reservation import Reservation

FULL = KvLayout((LayerSpec(None, 1, 2), LayerSpec(None, 1, 2)), "float32", block_tokens=4)
MIXED = KvLayout((LayerSpec(None, 1, 2), LayerSpec(8, 1, 2)), "float32", block_tokens=4)
FULL_LAYER = 0b01
FULL_GROUP, WINDOW_GROUP = 0, 1


def keys(count: int, chain: str = "a") -> list[BlockKey]:
    return [BlockKey(f"{chain}{i}".encode().ljust(32)) for i in range(count)]


def reserved(kv: PagedKv, names: list[BlockKey], num_tokens: int, stride: int | None = None) -> Reservation:
    reservation = kv.reserve(names, num_tokens, stride)
    assert reservation is not None
    return reservation


def window_pages(reservation: Reservation) -> list[int]:
    """The indexes at which the window group has pages."""
    return [index for index, page in enumerate(reservation.tables[WINDOW_GROUP]) if page >= 0]


def test_committed_pages_are_shared_by_key() -> None:
    kv = PagedKv(FULL, 8, 4)
    first = reserved(kv, [], 14)
    kv.commit(first, 3, keys(3))
    second = reserved(kv, keys(3), 14)
    assert second.cached_blocks == 3
    assert second.tables[0][:3] == first.tables[0][:3]
    assert second.tables[0][3] != first.tables[0][3]
    assert second.cached_layers == (FULL.all_layers,) * 3
    assert kv.held == 2
    kv.check()


def test_a_refused_reservation_changes_nothing() -> None:
    kv = PagedKv(FULL, 4, 4)
    first = reserved(kv, [], 8)
    kv.commit(first, 2, keys(2))
    kv.release(first)
    assert kv.reserve(keys(2), 100) is None
    assert (kv.usage, kv.held) == (0, 0)
    assert reserved(kv, keys(2), 16).cached_blocks == 2, "the cached pages are still there, and count as available once"
    assert kv.usage == 1
    kv.check()


def test_pages_that_are_cached_and_idle_count_as_taken() -> None:
    kv = PagedKv(FULL, 4, 4)
    first = reserved(kv, [], 8)
    kv.commit(first, 2, keys(2))
    kv.release(first)
    other = reserved(kv, [], 8)
    assert kv.reserve(keys(2), 12) is None
    assert kv.held == 1
    kv.check()
    kv.release(other)
    assert reserved(kv, keys(2), 12).cached_blocks == 2
    kv.check()


def test_ends_of_chains_are_evicted_first() -> None:
    kv = PagedKv(FULL, 4, 4)
    first = reserved(kv, [], 16)
    kv.commit(first, 4, keys(4))
    kv.release(first)
    kv.release(reserved(kv, keys(1, "b"), 4))
    assert reserved(kv, keys(4), 16).cached_blocks == 3
    kv.check()


def test_release_is_idempotent() -> None:
    kv = PagedKv(FULL, 4, 4)
    first, second = reserved(kv, [], 8), reserved(kv, [], 8)
    kv.release(first)
    kv.release(first)
    assert kv.held == 1
    assert kv.usage == 0.5
    kv.release(second)
    kv.check()


def test_the_first_commit_of_a_key_wins() -> None:
    kv = PagedKv(FULL, 8, 4)
    first, second = reserved(kv, [], 4), reserved(kv, [], 4)
    kv.commit(first, 1, keys(1))
    kv.commit(second, 1, keys(1))
    assert reserved(kv, keys(1), 4).tables == first.tables
    kv.release(second)
    kv.check()


def test_blocks_without_window_layers_serve_only_resumes_that_do_not_need_them() -> None:
    """Window 8 over blocks of 4: a resume after n blocks needs the window layers of its last two blocks."""
    kv = PagedKv(MIXED, 80, 4)
    first = reserved(kv, [], 24)
    kv.commit(first, 5, keys(5), [FULL_LAYER, FULL_LAYER, FULL_LAYER, 0b11, 0b11])
    second = reserved(kv, keys(5), 24)
    assert second.cached_blocks == 5
    assert second.cached_layers == (FULL_LAYER, FULL_LAYER, FULL_LAYER, 0b11, 0b11)
    assert second.tables[WINDOW_GROUP][:5] == [-1, -1, -1, *first.tables[WINDOW_GROUP][3:5]]
    assert reserved(kv, keys(4), 24).cached_blocks == 0, "block 2 lacks the window layer"
    kv.check()


def test_a_more_complete_page_takes_over_a_key() -> None:
    """The layers differ in shape, so that they share a page, and one can be complete without the other."""
    kv = PagedKv(KvLayout((LayerSpec(None, 1, 2), LayerSpec(8, 2, 2)), "float32", block_tokens=4), 8, 8)
    partial, whole = reserved(kv, [], 8), reserved(kv, [], 8)
    kv.commit(partial, 2, keys(2), [FULL_LAYER, 0b11])
    assert reserved(kv, keys(2), 8).cached_blocks == 0
    kv.commit(whole, 2, keys(2))
    kv.commit(partial, 2, keys(2), [FULL_LAYER, 0b11])
    assert reserved(kv, keys(2), 8).tables == whole.tables
    kv.release(partial)
    kv.check()


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


def test_page_size_must_hold_whole_blocks() -> None:
    with pytest.raises(ValueError, match="multiple"):
        PagedKv(FULL, 8, 6)


def test_fresh_pages_are_adjacent_when_they_can_be() -> None:
    kv = PagedKv(FULL, 10, 4)
    first, second, third = (reserved(kv, [], n) for n in (8, 8, 24))
    assert third.tables[0] == [4, 5, 6, 7, 8, 9]
    kv.release(first)
    kv.release(third)
    assert reserved(kv, [], 20).tables[0] == [4, 5, 6, 7, 8], "the first run is too short"
    assert sorted(reserved(kv, [], 12).tables[0]) == [0, 1, 9]
    assert kv.extend(second, 9) is False
    kv.check()


def test_extend_takes_the_next_page() -> None:
    kv = PagedKv(FULL, 4, 4)
    reservation = reserved(kv, [], 5)
    assert kv.extend(reservation, 8)
    assert kv.extend(reservation, 9)
    assert reservation.tables[0] == [0, 1, 2]
    assert not kv.extend(reservation, 17)
    assert reservation.num_tokens == 9
    kv.check()


def test_a_window_group_holds_what_the_window_needs() -> None:
    kv = PagedKv(MIXED, 100, 4)
    reservation = reserved(kv, [], 200, stride=8)
    assert window_pages(reservation) == []
    assert kv.cover(reservation, 0, 8)
    most = 0
    for position in range(8, 200, 8):
        kv.slide(reservation, position)
        assert kv.cover(reservation, position, position + 8)
        assert window_pages(reservation) == [position // 4 - 2, position // 4 - 1, position // 4, position // 4 + 1]
        most = max(most, *reservation.tables[WINDOW_GROUP])
    assert len({page for page in range(100) if kv._pool.is_used(page)}) == 50 + 4
    assert kv.usage == pytest.approx((50 + 5) / 100), "the guarantee is for any alignment"
    assert kv._pool._num_free == 100 - 54
    kv.check()
    kv.release(reservation)
    assert kv.usage == 0
    kv.check()


def test_going_further_than_the_stride_needs_a_slide_first() -> None:
    kv = PagedKv(MIXED, 100, 4)
    reservation = reserved(kv, [], 200, stride=8)
    assert kv.cover(reservation, 0, 8)
    assert kv.cover(reservation, 8, 16), "nothing is behind the window yet"
    before = list(reservation.tables[WINDOW_GROUP])
    assert not kv.cover(reservation, 16, 24)
    assert reservation.tables[WINDOW_GROUP] == before
    kv.slide(reservation, 16)
    assert kv.cover(reservation, 16, 24)
    kv.check()


def test_two_holders_cannot_block_each_other_half_way() -> None:
    kv = PagedKv(MIXED, 2 * (25 + 5), 4)
    both = [reserved(kv, [], 100, stride=8), reserved(kv, [], 100, stride=8)]
    assert kv.reserve([], 1) is None
    for position in range(0, 96, 8):
        for reservation in both:
            kv.slide(reservation, position)
            assert kv.cover(reservation, position, position + 8)
    kv.check()


def test_pages_slid_past_are_free_and_those_at_the_end_can_be_resumed_at() -> None:
    kv = PagedKv(MIXED, 100, 4)
    first = reserved(kv, [], 40, stride=8)
    for position in range(0, 40, 8):
        kv.slide(first, position)
        assert kv.cover(first, position, position + 8)
        if position == 8:
            kv.commit(first, 4, keys(4))
    kv.commit(first, 10, keys(10))
    kv.release(first)
    assert [reserved(kv, keys(n), 40, stride=8).cached_blocks for n in (10, 8, 7, 4)] == [10, 8, 0, 0]
    kv.check()


def test_what_was_slid_past_goes_before_the_ends_of_chains() -> None:
    kv = PagedKv(MIXED, 5 + 5 + 1, 4)
    other = reserved(kv, [], 4, stride=4)
    assert kv.cover(other, 0, 4)
    kv.commit(other, 1, keys(1, "b"))
    kv.release(other)
    first = reserved(kv, [], 20, stride=8)
    for position in (0, 8):
        kv.slide(first, position)
        assert kv.cover(first, position, position + 8)
        kv.commit(first, (position + 8) // 4, keys(5))
    kv.slide(first, 16)
    assert kv.cover(first, 16, 20)  # the pool is full now: this takes a page that was slid past
    assert kv.reserve(keys(1, "b"), 4, stride=4) is None
    kv.release(first)
    assert reserved(kv, keys(1, "b"), 4, stride=4).cached_blocks == 1
    kv.check()


def test_a_resume_takes_the_pages_before_it_and_a_failed_one_gives_them_back() -> None:
    kv = PagedKv(MIXED, 100, 4)
    first = reserved(kv, [], 8)
    kv.commit(first, 2, keys(2))
    second = reserved(kv, keys(2), 100, stride=8)
    assert window_pages(second) == [0, 1]
    assert kv.cover(second, 60, 60)
    assert window_pages(second) == [0, 1, 13, 14]
    assert kv.cover(second, 60, 68), "a first chunk may be computed while entries still arrive"
    kv.rewind(second, 8)
    assert window_pages(second) == [0, 1]
    for position in range(8, 96, 8):
        kv.slide(second, position)
        assert kv.cover(second, position, position + 8)
    kv.check()


@pytest.mark.parametrize(("window", "inner", "found"), [(4, False, 3), (5, True, 3), (5, False, 0)])
def test_a_last_token_is_resumed_at_where_all_that_it_sees_is_held(window: int, inner: bool, found: int) -> None:
    """A window of five sees the end of the block before from the last token, not from the one after it."""
    layout = KvLayout((LayerSpec(None, 1, 2), LayerSpec(window, 1, 2)), "float32", block_tokens=4)
    kv = PagedKv(layout, 32, 4)
    first, both = reserved(kv, [], 12), layout.all_layers
    kv.commit(first, 3, keys(3), [FULL_LAYER, both if inner else FULL_LAYER, both])
    after, at_last = kv.reserve(keys(3), 13), kv.reserve(keys(3), 13, latest=11)
    assert after is not None
    assert at_last is not None
    assert (after.cached_blocks, at_last.cached_blocks) == (3, found)
    assert window_pages(after)[0] == 2
    assert not found or window_pages(at_last)[0] == (1 if window == 5 else 2)
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


def test_sharing_without_room_is_refused() -> None:
    kv = PagedKv(MIXED, 10 + 5, 4)
    owner = reserved(kv, [], 40, stride=8)
    assert kv.cover(owner, 0, 8)
    assert kv.share(owner, 0, 2) is None
    assert kv.held == 1
    kv.check()


def test_a_shorter_stride_gives_back_what_was_guaranteed() -> None:
    kv = PagedKv(MIXED, 100, 4)
    reservation = reserved(kv, [], 100, stride=40)
    assert kv.cover(reservation, 0, 40)
    assert kv.usage == pytest.approx((25 + 13) / 100)
    kv.slide(reservation, 40, stride=4)
    assert kv.usage == pytest.approx((25 + 4) / 100)
    assert kv.cover(reservation, 40, 44)
    kv.check()


def test_what_fits_alone_can_be_reserved_whatever_is_cached() -> None:
    kv = PagedKv(MIXED, 12, 4)
    num_tokens = kv.capacity_tokens(4)
    assert kv.fits(num_tokens, 4)
    assert not kv.fits(num_tokens + 1, 4)
    first = reserved(kv, [], num_tokens)
    kv.commit(first, num_tokens // 4, keys(num_tokens // 4))
    kv.release(first)
    for cached in range(num_tokens // 4 + 1):
        kv.release(reserved(kv, keys(cached), num_tokens, stride=4))
    kv.check()


def test_pages_are_not_let_go_twice() -> None:
    kv = PagedKv(FULL, 4, 4)
    reservation = reserved(kv, [], 4)
    kv._pool.let_go(reservation.tables[0][0])
    with pytest.raises(AssertionError, match="more often"):
        kv.release(reservation)


@pytest.mark.parametrize("window", [None, 8])
def test_a_reservation_leaves_spare_pages(window: int | None) -> None:
    layout = KvLayout((LayerSpec(None, 1, 2), LayerSpec(window, 1, 2)), "float32", block_tokens=4)
    needed = PagedKv(layout, 1, 4).groups.pages_needed(12, None, 4)
    kv = PagedKv(layout, needed + 1, 4)
    assert kv.reserve([], 12, spare_pages=2) is None
    assert kv.held == 0
    assert kv.reserve([], 12, spare_pages=1) is not None
    kv.check()
