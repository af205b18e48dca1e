"""Who may use which physical page: references, names, least recently used first, and runs of adjacent free pages."""

import re
from collections import OrderedDict
from collections.abc import Mapping

from shared.ids import BlockKey
from shared.model.pages.prefixes import PagePrefixes

_FREE = b"\x01"
_FREE_RUN = re.compile(rb"\x01+")


class PagePool:
    """The states of `num_pages` equal pages. Knows no tensors and no reservations; not for two threads at once.

    Every page is exactly one of: *free*; *idle* (unreferenced, findable by its name, evictable in LRU order); *used*
    (referenced, with or without a name). A name is a page group and the key of the page's last block; it names one page
    at most. With a name goes, for each block in the page, the bitmask of layers that are complete.
    """

    def __init__(self, num_pages: int, num_groups: int) -> None:
        self.num_pages = num_pages
        self._refs = [0] * num_pages
        self._names: list[tuple[int, BlockKey] | None] = [None] * num_pages
        self._layers: list[tuple[int, ...]] = [()] * num_pages
        self._index: list[dict[BlockKey, int]] = [{} for _ in range(num_groups)]
        self._idle: OrderedDict[int, None] = OrderedDict()  # next to be evicted first
        self._free_map = bytearray(_FREE * num_pages)
        self._num_free = num_pages
        self.prefixes = PagePrefixes()  # of named pages; the caller adds them
        self.num_touched = 0  # all pages that were ever taken lie before it, but those from the top

    def is_used(self, page: int) -> bool:
        return self._refs[page] > 0

    def find(self, group: int, key: BlockKey) -> int | None:
        return self._index[group].get(key)

    def layers(self, page: int) -> tuple[int, ...]:
        """Return the complete layers of each block in a named page; nothing for others."""
        return self._layers[page]

    def take(self, count: int, after: int | None = None, *, from_top: bool = False) -> list[int]:
        """Reference `count` pages, free ones or else the idle ones that are due; the caller knows that they exist.

        Next to the page `after` if possible, else in one run, searched from the first page on or down from the last.
        """
        while self._num_free < count:
            page, _ = self._idle.popitem(last=False)
            self._forget(page)
            self._set_free(page)
        run = _FREE * count
        if after is not None and self._free_map[after + 1 : after + 1 + count] == run:
            start = after + 1
        else:
            start = self._free_map.rfind(run) if from_top else self._free_map.find(run)
        pages = list(range(start, start + count)) if start >= 0 else self._scattered(count)
        if pages and not from_top:
            self.num_touched = max(self.num_touched, max(pages) + 1)
        for page in pages:
            self._free_map[page] = 0
            self._refs[page] = 1
        self._num_free -= count
        return pages

    def hold(self, page: int) -> None:
        """Add a reference to a page that is idle or used."""
        assert self._refs[page] or page in self._idle, f"page {page} is free"
        self._idle.pop(page, None)
        self._refs[page] += 1

    def let_go(self, page: int, *, keep: bool = True) -> None:
        """Drop a reference. After the last one a named page that is to be kept is idle, evicted after all others."""
        assert self._refs[page], f"page {page} is let go more often than it was held"
        self._refs[page] -= 1
        if self._refs[page]:
            return
        if self._names[page] is not None and keep:
            self._idle[page] = None
            return
        if self._names[page] is not None:
            self._forget(page)
        self._set_free(page)

    def name(self, page: int, group: int, key: BlockKey, layers: tuple[int, ...]) -> None:
        """Make a used page findable, unless it has a name. Of two pages the first keeps it if it is as complete."""
        if self._names[page] is not None:
            return
        other = self._index[group].get(key)
        if other is not None:
            superset = all(new | old == new for new, old in zip(layers, self._layers[other], strict=True))
            if not superset or layers == self._layers[other]:
                return
            self._forget(other)
            if other in self._idle:
                del self._idle[other]
                self._set_free(other)
        self._names[page] = (group, key)
        self._layers[page] = layers
        self._index[group][key] = page

    def check(self, references: Mapping[int, int]) -> None:
        """Verify the class invariants, and that pages are referenced as often as said; raises `AssertionError`."""
        used = sum(1 for refs in self._refs if refs)
        assert self._num_free == self._free_map.count(1), "free count"
        assert used + len(self._idle) + self._num_free == self.num_pages, "free + idle + used = total"
        for page, (refs, name) in enumerate(zip(self._refs, self._names, strict=True)):
            assert refs == references.get(page, 0), f"page {page}: {refs} references"
            assert (page in self._idle) == (refs == 0 and name is not None), f"page {page}: idle list"
            assert bool(self._free_map[page]) == (refs == 0 and name is None), f"page {page}: free map"
            assert name is None or self._index[name[0]].get(name[1]) == page, f"page {page}: index"
        num_named = sum(name is not None for name in self._names)
        assert sum(len(index) for index in self._index) == num_named, "stale names in the index"

    def _scattered(self, count: int) -> list[int]:
        runs = sorted((m.span() for m in _FREE_RUN.finditer(self._free_map)), key=lambda span: span[0] - span[1])
        return [page for start, stop in runs for page in range(start, stop)][:count]

    def _forget(self, page: int) -> None:
        name = self._names[page]
        assert name is not None
        del self._index[name[0]][name[1]]
        self.prefixes.discard(name[1])
        self._names[page] = None
        self._layers[page] = ()

    def _set_free(self, page: int) -> None:
        self._free_map[page] = 1
        self._num_free += 1
