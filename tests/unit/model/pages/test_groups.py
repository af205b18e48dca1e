"""Which layers share pages, and how many pages a sequence can need."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.kv.layout import KvLayout, LayerSpec
from shared.model.pages.groups import PageGroups, first_page_needed, live_pages, pages_touched

GEMMA_270M = KvLayout(tuple(LayerSpec(None if i % 6 == 5 else 512, 1, 256) for i in range(18)), "bfloat16", 64)


def layout(*windows: int | None) -> KvLayout:
    return KvLayout(tuple(LayerSpec(window, 2, 8) for window in windows), "float32", 16)


def test_gemma_has_one_full_and_five_window_groups_of_three_layers() -> None:
    groups = PageGroups.of(GEMMA_270M)
    assert [(g.window, len(g.layers)) for g in groups.groups] == [(512, 3)] * 5 + [(None, 3)]
    assert groups.groups[groups.place_of[11][0]].layers == (5, 11, 17)
    assert groups.place_of[11][1] == 1
    assert (groups.full, groups.windowed) == ((5,), tuple((g, 512) for g in range(5)))
    assert groups.page_bytes(GEMMA_270M, 64) == 3 * 64 * 1024


def test_a_context_of_gemma_costs_its_full_layers_and_the_window() -> None:
    """32,000 tokens: 3 KiB a token, and 15 KiB for the window, two chunks and a cached prefix's window."""
    groups = PageGroups.of(GEMMA_270M)
    need = groups.pages_needed(32_000, 1024, 64) * groups.page_bytes(GEMMA_270M, 64)
    assert need < 32_000 * 3 * 1024 + (512 + 1024 + 512 + 3 * 64) * 15 * 1024
    assert groups.pages_needed(32_000, None, 64) == 6 * 500


def test_layers_of_one_kind_make_one_group() -> None:
    assert [g.layers for g in PageGroups.of(layout(None, None, None)).groups] == [(0, 1, 2)]
    assert [g.layers for g in PageGroups.of(layout(9, 9)).groups] == [(0, 1)]


def test_layers_of_different_shape_are_kept_together_for_the_whole_context() -> None:
    mixed = KvLayout((LayerSpec(None, 2, 8), LayerSpec(16, 1, 8)), "float32", 16)
    groups = PageGroups.of(mixed)
    assert [tuple(g) for g in groups.groups] == [(None, (0, 1))]
    assert groups.page_bytes(mixed, 32) == 2 * mixed.block_bytes


@given(st.lists(st.sampled_from([None, 5, 100]), min_size=1, max_size=12))
def test_groups_are_of_one_size_and_hold_every_layer_once(windows: list[int | None]) -> None:
    groups = PageGroups.of(layout(*windows))
    assert len({len(g.layers) for g in groups.groups}) == 1
    for layer, window in enumerate(windows):
        group, slot = groups.place_of[layer]
        assert groups.groups[group].layers[slot] == layer
        assert groups.groups[group].window == window


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([4, 8]), st.integers(0, 100))
def test_live_pages_bound_what_a_stride_touches(window: int, stride: int, page_tokens: int, position: int) -> None:
    first = first_page_needed(window, position, page_tokens)
    last = (position + stride - 1) // page_tokens
    assert last + 1 - first <= live_pages(window, stride, page_tokens)


@given(st.integers(1, 60), st.sampled_from([1, 4, 8]))
def test_pages_touched_is_the_worst_alignment(num_tokens: int, page_tokens: int) -> None:
    worst = max((o + num_tokens - 1) // page_tokens - o // page_tokens + 1 for o in range(page_tokens))
    assert pages_touched(num_tokens, page_tokens) == worst


@pytest.mark.parametrize("windows", [(None,), (9,), (None, 9, 9)])
@pytest.mark.parametrize("stride", [None, 1, 20])
def test_the_capacity_is_what_fits(windows: tuple[int | None, ...], stride: int | None) -> None:
    groups = PageGroups.of(layout(*windows))
    for pages in range(40):
        tokens = groups.capacity_tokens(pages, stride, 16)
        assert groups.pages_needed(tokens, stride, 16) <= pages
        if groups.full or stride is None:
            assert groups.pages_needed(tokens + 16, stride, 16) > pages
