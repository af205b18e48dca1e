"""Which cached prefix a reservation finds: the longest that every group can resume at."""

import pytest

from shared.kv.layout import KvLayout, LayerSpec
from shared.model.pages.books import PageBooks
from tests.support.pages import FULL_LAYER, MIXED, WINDOW_GROUP, keys, reserved, window_pages


def test_blocks_without_window_layers_serve_only_resumes_that_do_not_need_them() -> None:
    """Window 8 over blocks of 4: a resume after n blocks needs the window layers of its last two blocks."""
    books = PageBooks(MIXED, 80, 4)
    first = reserved(books, [], 24)
    books.commit(first, 5, keys(5), [FULL_LAYER, FULL_LAYER, FULL_LAYER, 0b11, 0b11])
    second = reserved(books, keys(5), 24)
    assert second.cached_blocks == 5
    assert second.cached_layers == (FULL_LAYER, FULL_LAYER, FULL_LAYER, 0b11, 0b11)
    assert second.tables[WINDOW_GROUP][:5] == [-1, -1, -1, *first.tables[WINDOW_GROUP][3:5]]
    assert reserved(books, keys(4), 24).cached_blocks == 0, "block 2 lacks the window layer"
    books.check()


@pytest.mark.parametrize(("window", "inner", "found"), [(4, False, 3), (5, True, 3), (5, False, 0)])
def test_a_last_token_is_resumed_at_where_all_that_it_sees_is_held(window: int, inner: bool, found: int) -> None:
    """A window of five sees the end of the block before from the last token, not from the one after it."""
    layout = KvLayout((LayerSpec(None, 1, 2), LayerSpec(window, 1, 2)), "float32", block_tokens=4)
    books = PageBooks(layout, 32, 4)
    first, both = reserved(books, [], 12), layout.all_layers
    books.commit(first, 3, keys(3), [FULL_LAYER, both if inner else FULL_LAYER, both])
    after, at_last = books.reserve(keys(3), 13), books.reserve(keys(3), 13, latest=11)
    assert after is not None
    assert at_last is not None
    assert (after.cached_blocks, at_last.cached_blocks) == (3, found)
    assert window_pages(after)[0] == 2
    assert not found or window_pages(at_last)[0] == (1 if window == 5 else 2)
    books.check()
