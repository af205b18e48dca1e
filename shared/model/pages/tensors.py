"""The memory behind pages: the parts (K and V) of all layers' entries, `num_pages` pages of each."""

import math
import mmap

import torch
from torch import Tensor

from shared.allocator import map_memory
from shared.kv.layout import EntryShape, KvLayout
from shared.model.pages.groups import PageGroups


class PageTensors:
    """One tensor for each place in a page group: layers of different groups share it, page by page.

    Raises `ValueError` for entries whose parts are not of one size.
    """

    def __init__(
        self, layout: KvLayout, groups: PageGroups, num_pages: int, page_tokens: int, device: torch.device
    ) -> None:
        dtype = getattr(torch, layout.dtype)
        entries = [layout.entry_shape(layer) for layer in groups.groups[0].layers]  # the same in all groups
        self._tensors = [_zeros(_page_shape(entry, num_pages, page_tokens), dtype, device) for entry in entries]
        self._slots = [slot for _, slot in groups.place_of]

    def of(self, layer: int) -> Tensor:
        """Return the parts of a layer, `[parts, num_pages, page_tokens, num_heads, head_dim]`: K, then V."""
        return self._tensors[self._slots[layer]]

    def populate(self, first: int, end: int) -> None:
        """Map memory behind pages `[first, end)` on the CPU; their content stays."""
        for tensor in self._tensors:
            for part in tensor:
                pages = part[first:end]
                map_memory(pages.data_ptr(), pages.nbytes)


def _page_shape(entry: EntryShape, num_pages: int, page_tokens: int) -> tuple[int, ...]:
    _, num_heads, head_dim = entry.parts[0]
    if any((part.num_heads, part.head_dim) != (num_heads, head_dim) for part in entry.parts):
        raise ValueError("pages hold entries of equal parts only")
    return len(entry.parts), num_pages, page_tokens, num_heads, head_dim


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros: softmax weights of 0 times a stray NaN would be NaN.

    On the CPU they are mapped, so that memory is taken at first use; torch would write every page at once.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)  # lives as long as the tensor that is made of it
    return torch.frombuffer(pages, dtype=dtype).view(shape)
