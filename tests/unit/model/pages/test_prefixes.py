"""Pages found by the tokens that they begin with: the longest match, among the right parent's only."""

from hypothesis import given
from hypothesis import strategies as st

from shared.ids import BlockKey
from shared.model.pages.prefixes import Chain, PagePrefixes

ROOT, OTHER = BlockKey(b"root"), BlockKey(b"other")
TOKENS = st.lists(st.integers(0, 2), max_size=6)


def key(number: int) -> BlockKey:
    return BlockKey(b"key %d" % number)


def test_the_page_that_shares_most_is_found() -> None:
    prefixes = PagePrefixes()
    for number, tokens in enumerate([[1, 2, 3], [1, 2, 4, 5], [2], [1]]):
        prefixes.add(ROOT, tokens, key(number))
    prefixes.add(OTHER, [1, 2, 4, 6], key(9))
    assert prefixes.longest(ROOT, [1, 2, 4, 6]) == (key(1), 3)
    assert prefixes.longest(OTHER, [1, 2, 4, 6]) == (key(9), 4)
    assert prefixes.longest(ROOT, [3]) is None
    assert prefixes.longest(BlockKey(b"nobody"), [1]) is None


def test_what_was_discarded_is_not_found() -> None:
    prefixes = PagePrefixes()
    prefixes.add(ROOT, [1, 2], key(0))
    prefixes.add(ROOT, [5], key(0))  # known
    prefixes.discard(key(0))
    prefixes.discard(key(0))
    assert prefixes.longest(ROOT, [1, 2]) is None
    assert len(prefixes) == 0


@given(st.lists(st.tuples(TOKENS, st.booleans()), max_size=20), TOKENS)
def test_as_a_search_through_all_would_find(pages: list[tuple[list[int], bool]], wanted: list[int]) -> None:
    prefixes, left = PagePrefixes(), []
    for number, (tokens, stays) in enumerate(pages):
        prefixes.add(ROOT, tokens, key(number))
        if stays:
            left.append(tokens)
        else:
            prefixes.discard(key(number))
    shared = max((_num_shared(tokens, wanted) for tokens in left), default=0)
    found = prefixes.longest(ROOT, wanted)
    assert (found[1] if found else 0) == shared


def _num_shared(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def test_a_chain_begins_at_its_root() -> None:
    chain = Chain(ROOT, [key(0), key(1)], range(200))
    assert [chain.key_before(block) for block in range(3)] == [ROOT, key(0), key(1)]
