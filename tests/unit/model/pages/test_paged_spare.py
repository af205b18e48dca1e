"""Reservations that leave room for others."""

import pytest

from shared.kv.layout import KvLayout, LayerSpec
from shared.model.pages.kv import PagedKv


@pytest.mark.parametrize("window", [None, 8])
def test_a_reservation_leaves_spare_pages(window: int | None) -> None:
    layout = KvLayout((LayerSpec(None, 1, 2), LayerSpec(window, 1, 2)), "float32", block_tokens=4)
    needed = PagedKv(layout, 1, 4).groups.pages_needed(12, None, 4)
    kv = PagedKv(layout, needed + 1, 4)
    assert kv.reserve([], 12, spare_pages=2) is None
    assert kv.held == 0
    assert kv.reserve([], 12, spare_pages=1) is not None
    kv.check()
