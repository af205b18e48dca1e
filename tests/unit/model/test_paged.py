"""The paged cache: reuse by key, eviction, window-aware resumes, and a state machine over all of it."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from shared.ids import BlockKey
from shared.kv.layout import KvLayout, LayerSpec
from shared.model.paged import PagedKv, Reservation

LAYOUT = KvLayout((LayerSpec(None, 1, 2), LayerSpec(8, 1, 2)), "float32", block_tokens=4)
FULL_LAYER, WINDOW_LAYER = 0b01, 0b10


def keys(count: int, chain: str = "a") -> list[BlockKey]:
    return [BlockKey(f"{chain}{i}".encode().ljust(32)) for i in range(count)]


def reserved(kv: PagedKv, names: list[BlockKey], num_tokens: int) -> Reservation:
    reservation = kv.reserve(names, num_tokens)
    assert reservation is not None
    return reservation


def test_committed_pages_are_shared_by_key() -> None:
    kv = PagedKv(LAYOUT, 8, 4)
    first = reserved(kv, [], 14)
    kv.commit(first, 3, keys(3))
    second = reserved(kv, keys(3), 14)
    assert second.cached_blocks == 3
    assert second.pages[:3] == first.pages[:3]
    assert second.pages[3] != first.pages[3]
    assert second.cached_layers == (LAYOUT.all_layers,) * 3
    assert kv.held == 2
    kv.check()


def test_a_refused_reservation_changes_nothing() -> None:
    kv = PagedKv(LAYOUT, 4, 4)
    first = reserved(kv, [], 8)
    kv.commit(first, 2, keys(2))
    kv.release(first)
    assert kv.reserve(keys(2), 100) is None
    assert (kv.usage, kv.held) == (0, 0)
    assert reserved(kv, keys(2), 16).cached_blocks == 2, "the cached pages are still there, and count as available once"
    assert kv.usage == 1
    kv.check()


def test_a_reservation_leaves_spare_pages() -> None:
    kv = PagedKv(LAYOUT, 4, 4)
    assert kv.reserve([], 12, spare_pages=2) is None
    assert kv.reserve([], 12, spare_pages=1) is not None
    kv.check()


def test_ends_of_chains_are_evicted_first() -> None:
    kv = PagedKv(LAYOUT, 4, 4)
    first = reserved(kv, [], 16)
    kv.commit(first, 4, keys(4))
    kv.release(first)
    kv.release(reserved(kv, keys(1, "b"), 4))
    assert reserved(kv, keys(4), 16).cached_blocks == 3
    kv.check()


def test_release_is_idempotent() -> None:
    kv = PagedKv(LAYOUT, 4, 4)
    first, second = reserved(kv, [], 8), reserved(kv, [], 8)
    kv.release(first)
    kv.release(first)
    assert kv.held == 1
    assert kv.usage == 0.5
    kv.release(second)
    kv.check()


def test_the_first_commit_of_a_key_wins() -> None:
    kv = PagedKv(LAYOUT, 8, 4)
    first, second = reserved(kv, [], 4), reserved(kv, [], 4)
    kv.commit(first, 1, keys(1))
    kv.commit(second, 1, keys(1))
    assert reserved(kv, keys(1), 4).pages == first.pages
    kv.release(second)
    kv.check()


def test_blocks_without_window_layers_serve_only_resumes_that_do_not_need_them() -> None:
    """Window 8 over blocks of 4: a resume after n blocks needs the window layers of its last two blocks."""
    kv = PagedKv(LAYOUT, 40, 4)
    first = reserved(kv, [], 24)
    kv.commit(first, 5, keys(5), [FULL_LAYER, FULL_LAYER, FULL_LAYER, 0b11, 0b11])
    assert reserved(kv, keys(5), 24).cached_blocks == 5
    assert reserved(kv, keys(4), 24).cached_blocks == 0, "block 2 lacks the window layer"
    kv.check()


def test_a_more_complete_page_takes_over_a_key() -> None:
    kv = PagedKv(LAYOUT, 8, 4)
    partial, whole = reserved(kv, [], 4), reserved(kv, [], 4)
    kv.commit(partial, 1, keys(1), [FULL_LAYER])
    assert kv.reserve(keys(1), 4).cached_blocks == 0  # type: ignore[union-attr]
    kv.commit(whole, 1, keys(1))
    kv.commit(partial, 1, keys(1), [FULL_LAYER])
    assert reserved(kv, keys(1), 4).pages == whole.pages
    kv.release(partial)
    kv.check()


def test_pages_of_several_blocks_are_shared_whole() -> None:
    kv = PagedKv(LAYOUT, 8, 8)
    first = reserved(kv, [], 20)
    kv.commit(first, 5, keys(5))
    second = reserved(kv, keys(5), 20)
    assert second.cached_blocks == 4
    assert second.pages[:2] == first.pages[:2]
    k, v = kv.block(1, first, 3)
    k.fill_(3)
    v.fill_(4)
    assert kv.keys_of(1)[first.pages[1], 4:].eq(3).all()
    assert kv.values_of(1)[first.pages[1], 4:].eq(4).all()
    assert kv.keys_of(1).sum() == 3 * 4 * 2
    kv.check()


def test_page_size_must_hold_whole_blocks() -> None:
    with pytest.raises(ValueError, match="multiple"):
        PagedKv(LAYOUT, 8, 6)


def test_fresh_pages_are_adjacent_when_they_can_be() -> None:
    kv = PagedKv(LAYOUT, 10, 4)
    first, second, third = (reserved(kv, [], n) for n in (8, 8, 24))
    assert third.pages == [4, 5, 6, 7, 8, 9]
    kv.release(first)
    kv.release(third)
    assert reserved(kv, [], 20).pages == [4, 5, 6, 7, 8], "the first run is too short"
    assert sorted(reserved(kv, [], 12).pages) == [0, 1, 9]
    assert kv.extend(second, 9) is False
    kv.check()


def test_extend_takes_the_next_page() -> None:
    kv = PagedKv(LAYOUT, 4, 4)
    reservation = reserved(kv, [], 5)
    assert kv.extend(reservation, 8)
    assert kv.extend(reservation, 9)
    assert reservation.pages == [0, 1, 2]
    assert not kv.extend(reservation, 17)
    assert reservation.num_tokens == 9
    kv.check()


def test_write_goes_to_slots() -> None:
    kv = PagedKv(LAYOUT, 4, 4)
    rows = torch.arange(4.0).reshape(2, 1, 2)
    kv.write(0, torch.tensor([5, 15]), rows, rows + 10)
    assert kv.keys_of(0)[1, 1, 0].tolist() == [0, 1]
    assert kv.values_of(0)[3, 3, 0].tolist() == [12, 13]


class PagedStates(RuleBasedStateMachine):
    """Reserve, commit, extend and release in any order. Each page's content is its key chain, written by its writer."""

    held = Bundle("held")

    @initialize(page_blocks=st.sampled_from([1, 2]), num_pages=st.integers(4, 12))
    def start(self, page_blocks: int, num_pages: int) -> None:
        self.kv = PagedKv(LAYOUT, num_pages, page_blocks * 4)
        self.live: dict[Reservation, str] = {}

    @rule(target=held, chain=st.sampled_from("abc"), blocks=st.integers(0, 8), extra=st.integers(1, 9))
    def reserve(self, chain: str, blocks: int, extra: int) -> Reservation | None:
        before = self.kv.usage
        reservation = self.kv.reserve(keys(blocks, chain), blocks * 4 + extra)
        if reservation is None:
            assert self.kv.usage == before
            return None
        for page in reservation.pages[reservation.cached_blocks // self.kv.blocks_per_page :]:
            assert all(page not in other.pages for other in self.live), "a referenced page was handed out"
            self.kv.keys_of(0)[page] = -1
        for block in range(reservation.cached_blocks):
            k, _ = self.kv.block(0, reservation, block)
            assert k.eq(ord(chain) * 100 + block).all(), "a cached block holds something else"
        self.live[reservation] = chain
        return reservation

    @rule(reservation=held, blocks=st.integers(0, 10), whole=st.booleans())
    def commit(self, reservation: Reservation | None, blocks: int, whole: bool) -> None:
        if reservation is None or reservation.released:
            return
        chain = self.live[reservation]
        blocks = min(blocks, len(reservation.pages) * self.kv.blocks_per_page)
        for block in range(reservation.cached_blocks, blocks):
            k, _ = self.kv.block(0, reservation, block)
            k.fill_(ord(chain) * 100 + block)
        layers = [LAYOUT.all_layers if whole else LAYOUT.needed_layers(b, blocks) for b in range(blocks)]
        self.kv.commit(reservation, blocks, keys(blocks, chain), layers)

    @rule(reservation=held, more=st.integers(0, 12))
    def extend(self, reservation: Reservation | None, more: int) -> None:
        if reservation is None or reservation.released:
            return
        before = len(reservation.pages)
        if self.kv.extend(reservation, reservation.num_tokens + more):
            for page in reservation.pages[before:]:
                assert sum(page in other.pages for other in self.live) == 1
                self.kv.keys_of(0)[page] = -1
        else:
            assert len(reservation.pages) == before

    @rule(reservation=consumes(held))
    def release(self, reservation: Reservation | None) -> None:
        if reservation is not None:
            self.kv.release(reservation)
            self.kv.release(reservation)
            self.live.pop(reservation, None)

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "kv"):
            self.kv.check()
            assert self.kv.held == len(self.live)
            in_use = {page for reservation in self.live for page in reservation.pages}
            assert self.kv.usage == pytest.approx(len(in_use) / self.kv.num_pages)


TestPagedStates = PagedStates.TestCase
TestPagedStates.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
