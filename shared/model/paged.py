"""The paged KV cache of one engine: pages on the device, prefix reuse by block key, one call to reserve."""

import math
import mmap
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shared.ids import BlockKey
from shared.kv.layout import KvLayout

_FREE = b"\x01"
_FREE_RUN = re.compile(rb"\x01+")


@dataclass(eq=False)
class Reservation:
    """Pages held for one sequence, in the order of its tokens. Made and changed by `PagedKv` only.

    The first `cached_blocks` blocks are shared with other reservations and must not be written. `cached_layers` holds,
    for each of them, the layers that it is complete in: all that a resume needs, not always all there are.
    """

    pages: list[int]
    num_tokens: int  # capacity
    cached_blocks: int = 0
    cached_layers: tuple[int, ...] = ()
    released: bool = field(default=False, repr=False)


class PagedKv:
    """K and V of all layers in pages, and who holds which page.

    Every page is exactly one of: *free*; *idle* (unreferenced, findable by its key, evictable in LRU order); *used*
    (referenced by at least one reservation, with or without a key). A key names one page at most. Bookkeeping is under
    one lock, so that an event loop may reserve while an engine thread computes; tensors are the holder's business.
    """

    def __init__(
        self, layout: KvLayout, num_pages: int, page_tokens: int = 64, device: torch.device | str = "cpu"
    ) -> None:
        if page_tokens % layout.block_tokens:
            raise ValueError(f"page_tokens ({page_tokens}) must be a multiple of block_tokens ({layout.block_tokens})")
        self.layout = layout
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self.blocks_per_page = page_tokens // layout.block_tokens
        dtype = getattr(torch, layout.dtype)
        self._kv = [
            _zeros((2, num_pages, page_tokens, spec.num_kv_heads, spec.head_dim), dtype, torch.device(device))
            for spec in layout.layers
        ]
        self._lock = threading.Lock()
        self._refs = [0] * num_pages
        self._keys: list[BlockKey | None] = [None] * num_pages
        self._layers: list[tuple[int, ...]] = [()] * num_pages  # of keyed pages, per block: the complete layers
        self._index: dict[BlockKey, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._free_map = bytearray(_FREE * num_pages)
        self._num_free = num_pages
        self._held = 0

    def keys_of(self, layer: int) -> Tensor:
        """Return a layer's K, `[num_pages, page_tokens, num_kv_heads, head_dim]`."""
        return self._kv[layer][0]

    def values_of(self, layer: int) -> Tensor:
        """Return a layer's V, shaped like its K."""
        return self._kv[layer][1]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store `[num_tokens, num_kv_heads, head_dim]` at flat positions `slots` (page * page_tokens + offset)."""
        flat = self._kv[layer].flatten(1, 2)
        flat[0].index_copy_(0, slots, keys)
        flat[1].index_copy_(0, slots, values)

    def block(self, layer: int, reservation: Reservation, block_index: int) -> tuple[Tensor, Tensor]:
        """Return views of one block's K and V, each `[block_tokens, num_kv_heads, head_dim]`."""
        page, part = divmod(block_index, self.blocks_per_page)
        start = part * self.layout.block_tokens
        both = self._kv[layer][:, reservation.pages[page], start : start + self.layout.block_tokens]
        return both[0], both[1]

    def reserve(self, keys: Sequence[BlockKey], num_tokens: int, spare_pages: int = 0) -> Reservation | None:
        """Hold pages for `num_tokens` tokens, the first of them shared where the blocks `keys` are held already.

        Reuses the longest prefix at which every layer group can resume, in whole pages. Returns None, and changes
        nothing, when too few pages are free or idle: `spare_pages` of them have to be left for others.
        """
        with self._lock:
            needed = -(-num_tokens // self.page_tokens)
            cached = self._match(keys[: needed * self.blocks_per_page])
            idle_cached = sum(1 for page in cached if not self._refs[page])
            if needed - len(cached) > self._num_free + len(self._idle) - idle_cached - spare_pages:
                return None
            for page in cached:
                self._idle.pop(page, None)
                self._refs[page] += 1
            fresh = self._allocate(needed - len(cached), cached[-1] if cached else None)
            self._held += 1
            layers = tuple(mask for page in cached for mask in self._layers[page])
            return Reservation(cached + fresh, num_tokens, len(cached) * self.blocks_per_page, layers)

    def extend(self, reservation: Reservation, num_tokens: int) -> bool:
        """Raise a reservation's capacity to `num_tokens`. Returns False, and changes nothing, when pages are short."""
        with self._lock:
            assert not reservation.released, "extending a released reservation"
            more = -(-num_tokens // self.page_tokens) - len(reservation.pages)
            if more > self._num_free + len(self._idle):
                return False
            if more > 0:
                reservation.pages += self._allocate(more, reservation.pages[-1] if reservation.pages else None)
            reservation.num_tokens = max(reservation.num_tokens, num_tokens)
            return True

    def commit(
        self,
        reservation: Reservation,
        num_blocks: int,
        keys: Sequence[BlockKey],
        layers: Sequence[int] | None = None,
    ) -> None:
        """Make the leading `num_blocks` blocks reusable under `keys`; their content must not change from now on.

        `layers` holds, per block, the layers it is complete in (None: all of them): a block that came without the
        entries of its window layers serves resumes that do not need these. Whole pages only. When two reservations
        commit one key the first page keeps it, unless the second is complete in more layers.
        """
        with self._lock:
            assert not reservation.released, "committing a released reservation"
            size = self.blocks_per_page
            for i in range(reservation.cached_blocks // size, num_blocks // size):
                end = (i + 1) * size
                masks = tuple(layers[end - size : end]) if layers else (self.layout.all_layers,) * size
                self._name(reservation.pages[i], keys[end - 1], masks)

    def release(self, reservation: Reservation) -> None:
        """Give a reservation's pages back; those with a key stay findable until they are evicted. Idempotent."""
        with self._lock:
            if reservation.released:
                return
            reservation.released = True
            self._held -= 1
            for page in reversed(reservation.pages):  # ends of chains are evicted before what they rest on
                self._refs[page] -= 1
                if self._refs[page]:
                    continue
                if self._keys[page] is None:
                    self._set_free(page)
                else:
                    self._idle[page] = None

    @property
    def usage(self) -> float:
        """The share of pages that reservations hold, 0 to 1."""
        with self._lock:
            return 1 - (self._num_free + len(self._idle)) / self.num_pages

    @property
    def held(self) -> int:
        """The number of reservations that were not released."""
        return self._held

    def check(self) -> None:
        """Verify the class invariants; raises `AssertionError`. Cheap enough to run whenever the engine is idle."""
        with self._lock:
            used = sum(1 for refs in self._refs if refs)
            assert self._num_free == self._free_map.count(1), "free count"
            assert used + len(self._idle) + self._num_free == self.num_pages, "free + idle + used = total"
            for page, (refs, key) in enumerate(zip(self._refs, self._keys, strict=True)):
                assert refs >= 0, f"page {page}: negative references"
                assert (page in self._idle) == (refs == 0 and key is not None), f"page {page}: idle list"
                assert bool(self._free_map[page]) == (refs == 0 and key is None), f"page {page}: free map"
                assert key is None or self._index.get(key) == page, f"page {page}: index"
            assert len(self._index) == sum(key is not None for key in self._keys), "stale keys in the index"
            assert self._held or not used, "pages in use that nobody holds"

    def _match(self, keys: Sequence[BlockKey]) -> list[int]:
        """Return the pages of the longest prefix that can be resumed at, a whole number of pages."""
        size = self.blocks_per_page
        pages: list[int] = []
        for key in keys[size - 1 :: size]:
            page = self._index.get(key)
            if page is None:
                break
            pages.append(page)
        masks = [mask for page in pages for mask in self._layers[page]]
        length = self.layout.longest_resume(masks)
        while length % size:  # a window may allow a resume inside a page and not at its start
            length = self.layout.longest_resume(masks[: length // size * size])
        return pages[: length // size]

    def _allocate(self, count: int, after: int | None) -> list[int]:
        """Take `count` pages, which the caller knows to exist: next to `after` if possible, else in one run."""
        while self._num_free < count:
            page, _ = self._idle.popitem(last=False)
            self._forget(page)
            self._set_free(page)
        run = _FREE * count
        if after is not None and self._free_map[after + 1 : after + 1 + count] == run:
            start = after + 1
        else:
            start = self._free_map.find(run)
        pages = list(range(start, start + count)) if start >= 0 else self._scattered(count)
        for page in pages:
            self._free_map[page] = 0
            self._refs[page] = 1
        self._num_free -= count
        return pages

    def _scattered(self, count: int) -> list[int]:
        runs = sorted((m.span() for m in _FREE_RUN.finditer(self._free_map)), key=lambda span: span[0] - span[1])
        return [page for start, stop in runs for page in range(start, stop)][:count]

    def _name(self, page: int, key: BlockKey, masks: tuple[int, ...]) -> None:
        if self._keys[page] is not None:
            return
        other = self._index.get(key)
        if other is not None:
            better = all(new | old == new for new, old in zip(masks, self._layers[other], strict=True))
            if not better or masks == self._layers[other]:
                return
            self._forget(other)
            if other in self._idle:
                del self._idle[other]
                self._set_free(other)
        self._keys[page] = key
        self._layers[page] = masks
        self._index[key] = page

    def _forget(self, page: int) -> None:
        key = self._keys[page]
        assert key is not None
        del self._index[key]
        self._keys[page] = None
        self._layers[page] = ()

    def _set_free(self, page: int) -> None:
        self._free_map[page] = 1
        self._num_free += 1


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros: softmax weights of 0 times a stray NaN would be NaN.

    On the CPU they are mapped, so that memory is taken at first use; torch would write every page at once.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)  # lives as long as the tensor that is made of it
    return torch.frombuffer(pages, dtype=dtype).view(shape)
