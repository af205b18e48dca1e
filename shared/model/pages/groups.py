"""Which layers share physical pages, and how many pages a sequence can need. Pure arithmetic, no torch.

The scheme of vLLM's hybrid KV cache manager: layers with one window are cut into *page groups* of equally many layers,
so that a page of any group has the same size and all groups draw from one pool. A sequence has a page table per group.
https://docs.vllm.ai/en/latest/design/hybrid_kv_cache_manager.html
"""

from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import NamedTuple

from shared.kv.layout import KvLayout, iter_layers


class PageGroup(NamedTuple):
    """Layers whose entries of the same tokens lie in one page."""

    window: int | None  # None: pages are kept for the whole context
    layers: tuple[int, ...]


@dataclass(frozen=True)
class PageGroups:
    """The page groups of a model.

    Gemma 3 270M (3 full and 15 window layers): one full group and five window groups, of three layers each. Layers of
    different shape cannot share a pool of equal pages: they make one group, kept for the whole context.
    """

    groups: tuple[PageGroup, ...]

    @classmethod
    def of(cls, layout: KvLayout) -> "PageGroups":
        """Cut a layout's layers into page groups, as large as equal ones can be."""
        if len(set(layout.entry_shapes)) > 1:
            return cls((PageGroup(None, tuple(range(layout.num_layers))),))
        windows = [(group.window, iter_layers(group.layers)) for group in layout.groups]
        size = gcd(*(len(layers) for _, layers in windows))
        return cls(
            tuple(
                PageGroup(window, tuple(layers[start : start + size]))
                for window, layers in windows
                for start in range(0, len(layers), size)
            )
        )

    @cached_property
    def place_of(self) -> tuple[tuple[int, int], ...]:
        """Per layer: its group, and its place among the group's layers."""
        places = {layer: (g, slot) for g, group in enumerate(self.groups) for slot, layer in enumerate(group.layers)}
        return tuple(places[layer] for layer in range(len(places)))

    @cached_property
    def full(self) -> tuple[int, ...]:
        """The groups without a window."""
        return tuple(g for g, group in enumerate(self.groups) if group.window is None)

    @cached_property
    def windowed(self) -> tuple[tuple[int, int], ...]:
        """The groups with a window, and its size."""
        return tuple((g, group.window) for g, group in enumerate(self.groups) if group.window is not None)

    def page_bytes(self, layout: KvLayout, page_tokens: int) -> int:
        """Return the bytes of one page, whichever group it serves."""
        return sum(layout.entry_bytes(layer) for layer in self.groups[0].layers) * page_tokens // layout.block_tokens

    def pages_needed(self, num_tokens: int, stride: int | None, page_tokens: int) -> int:
        """Return the most pages that a sequence of `num_tokens` can hold when it is slid every `stride` tokens."""
        total = num_pages(num_tokens, page_tokens)
        most = len(self.full) * total
        for _, window in self.windowed:
            cached = pages_touched(window - 1, page_tokens)
            most += total if stride is None else min(total, live_pages(window, stride, page_tokens) + cached)
        return most

    def capacity_tokens(self, pages: int, stride: int | None, page_tokens: int) -> int:
        """Return how long a sequence can become that has all `pages` for itself, in whole pages of tokens.

        A model of window layers only has no such limit; it gets the tokens of all pages.
        """
        low, high = 0, pages
        while low < high:
            middle = (low + high + 1) // 2
            if self.pages_needed(middle * page_tokens, stride, page_tokens) <= pages:
                low = middle
            else:
                high = middle - 1
        return low * page_tokens


def num_pages(num_tokens: int, page_tokens: int) -> int:
    return -(-num_tokens // page_tokens)


def pages_touched(num_tokens: int, page_tokens: int) -> int:
    """Return the most pages that `num_tokens` consecutive tokens can touch."""
    return num_pages(num_tokens - 1, page_tokens) + 1 if num_tokens else 0


def live_pages(window: int, stride: int, page_tokens: int) -> int:
    """Return the most pages that the queries of `stride` consecutive tokens read or write in a window group."""
    return pages_touched(window - 1 + stride, page_tokens)


def first_page_needed(window: int, position: int, page_tokens: int) -> int:
    """Return the first page that a query at `position` or later sees: position p attends to `(p - window, p]`."""
    return max(0, position - window + 1) // page_tokens
