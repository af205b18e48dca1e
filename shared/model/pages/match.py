"""The longest prefix of a prompt that is on the device already, and that all layer groups can resume at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shared.ids import BlockKey
from shared.kv.layout import KvLayout
from shared.model.pages.groups import PageGroups, first_page_needed
from shared.model.pages.pool import PagePool


class Match(NamedTuple):
    """A prefix that is held already: what a resume at its end needs of it."""

    tables: list[list[int]]  # per page group, as long as the prefix
    layers: tuple[int, ...]  # per block


@dataclass(frozen=True)
class PageMatcher:
    """Reads a pool's names; the caller sees to it that they do not change meanwhile."""

    pool: PagePool
    layout: KvLayout
    groups: PageGroups
    page_tokens: int

    def longest(self, keys: Sequence[BlockKey], latest: int | None = None) -> Match:
        """Return the longest prefix of the blocks `keys` that can be resumed at, a whole number of pages.

        The resume is at the prefix's end, at the token `latest` if that is before.
        """
        size, count = self.page_tokens // self.layout.block_tokens, len(self.groups.groups)
        found: list[list[int]] = [[] for _ in range(count)]
        masks: list[int] = []
        for key in keys[size - 1 :: size]:
            pages = [self.pool.find(g, key) for g in range(count)]
            if any(pages[g] is None for g in self.groups.full):
                break
            for table, page in zip(found, pages, strict=True):
                table.append(-1 if page is None else page)
            masks += self._masks([table[-1] for table in found])
        length = self.layout.longest_resume(masks, latest)
        while length % size:  # a window may allow a resume inside a page and not at its start
            length = self.layout.longest_resume(masks[: length // size * size], latest)
        length //= size
        for table in found:
            del table[length:]
        end = length * self.page_tokens
        resume = end if latest is None else min(end, latest)
        for g, window in self.groups.windowed:
            first = min(length, first_page_needed(window, resume, self.page_tokens))
            found[g][:first] = [-1] * first
        layers = tuple(mask for pages in zip(*found, strict=True) for mask in self._masks(pages))
        return Match(found, layers)

    def _masks(self, pages: Sequence[int]) -> list[int]:
        """Return, per block, the layers that a page of each group has complete together."""
        held = [self.pool.layers(page) for page in pages if page >= 0]
        return [sum(layers[i] for layers in held) for i in range(self.page_tokens // self.layout.block_tokens)]
