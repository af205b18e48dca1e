"""Which pages begin with which tokens: what a sequence that leaves a known one within a page can copy."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from shared.ids import BlockKey

Tokens = tuple[int, ...]


class Chain(NamedTuple):
    """A sequence and the keys of its full blocks, as far as they are known."""

    root: BlockKey
    keys: Sequence[BlockKey]
    tokens: Sequence[int]

    def key_before(self, block: int) -> BlockKey:
        """Return the key that a block follows."""
        return self.keys[block - 1] if block else self.root


class PagePrefixes:
    """Pages that follow the same blocks, in the order of their tokens: the best match is next to where one would stand.

    A page goes by the key of its last block, or of its tokens where these end within a block; `parent` is the key of
    the block before it, or the root of its chain, and says by that whose it is.
    """

    def __init__(self) -> None:
        self._pages: dict[BlockKey, list[tuple[Tokens, BlockKey]]] = {}  # by parent, sorted
        self._where: dict[BlockKey, tuple[BlockKey, Tokens]] = {}  # by key

    def __len__(self) -> int:
        return len(self._where)

    def add(self, parent: BlockKey, tokens: Sequence[int], key: BlockKey) -> None:
        """Note a page; nothing happens when it is known."""
        if key in self._where:
            return
        entry = (tuple(tokens), key)
        self._where[key] = (parent, entry[0])
        insort(self._pages.setdefault(parent, []), entry)

    def discard(self, key: BlockKey) -> None:
        """Forget a page; nothing happens when it is not known."""
        if key not in self._where:
            return
        parent, tokens = self._where.pop(key)
        siblings = self._pages[parent]
        siblings.remove((tokens, key))
        if not siblings:
            del self._pages[parent]

    def longest(self, parent: BlockKey, tokens: Sequence[int]) -> tuple[BlockKey, int] | None:
        """Return the page that shares most leading tokens, and how many; None when none shares any."""
        siblings, wanted = self._pages.get(parent, []), tuple(tokens)
        at = bisect_left(siblings, (wanted,))
        around = ((key, _num_shared(wanted, held)) for held, key in siblings[max(0, at - 1) : at + 1])
        best = max(around, key=lambda found: found[1], default=None)
        return best if best is not None and best[1] else None


def _num_shared(one: Tokens, other: Tokens) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
