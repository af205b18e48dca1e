"""The memory behind pages: K and V of all layers, `num_pages` pages of each."""

import math
import mmap

import torch
from torch import Tensor

from shared.allocator import map_memory
from shared.kv.layout import KvLayout
from shared.model.pages.groups import PageGroups

NUM_PARTS = 2
"""K and V: what the attention of this model keeps. Another attention has tensors of its own parts."""


class PageTensors:
    """One tensor for each place in a page group: layers of different groups share it, page by page."""

    def __init__(
        self, layout: KvLayout, groups: PageGroups, num_pages: int, page_tokens: int, device: torch.device
    ) -> None:
        dtype = getattr(torch, layout.dtype)
        specs = [layout.layers[layer] for layer in groups.groups[0].layers]  # the same in all groups
        shapes = [(NUM_PARTS, num_pages, page_tokens, spec.num_kv_heads, spec.head_dim) for spec in specs]
        self._tensors = [_zeros(shape, dtype, device) for shape in shapes]
        self._slots = [slot for _, slot in groups.place_of]

    def of(self, layer: int) -> Tensor:
        """Return K and V of a layer, `[2, num_pages, page_tokens, num_kv_heads, head_dim]`."""
        return self._tensors[self._slots[layer]]

    def populate(self, first: int, end: int) -> None:
        """Map memory behind pages `[first, end)` on the CPU; their content stays."""
        for tensor in self._tensors:
            for half in tensor:
                part = half[first:end]
                map_memory(part.data_ptr(), part.nbytes)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros: softmax weights of 0 times a stray NaN would be NaN.

    On the CPU they are mapped, so that memory is taken at first use; torch would write every page at once.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)  # lives as long as the tensor that is made of it
    return torch.frombuffer(pages, dtype=dtype).view(shape)
