"""The paged KV cache of one engine: K and V of all layers, in pages that sequences reserve."""

import torch
from torch import Tensor

from shared.kv.layout import KvLayout
from shared.model.pages.books import PageBooks
from shared.model.pages.reservation import Reservation
from shared.model.pages.tensors import PageTensors


class PagedKv(PageBooks):
    """The books of all pages, and the memory behind them."""

    def __init__(
        self, layout: KvLayout, num_pages: int, page_tokens: int = 64, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(layout, num_pages, page_tokens)
        self._tensors = PageTensors(layout, self.groups, num_pages, page_tokens, torch.device(device))

    @property
    def page_bytes(self) -> int:
        return self.groups.page_bytes(self.layout, self.page_tokens)

    @property
    def num_touched(self) -> int:
        """How many leading pages were ever taken; those of windows, which come from the top, are not counted."""
        return self._pool.num_touched

    def populate(self, first: int, end: int) -> None:
        """Have memory mapped behind the pages `[first, end)` now, whatever is in them stays; for any thread."""
        self._tensors.populate(first, end)

    def copy_page(self, source: Reservation, target: Reservation, index: int, num_tokens: int) -> None:
        """Copy the leading tokens of a borrowed page, all layers, into the page `index` of a sequence."""
        for g, group in enumerate(self.groups.groups):
            origin, page = source.tables[g][0], target.tables[g][index]
            for layer in group.layers:
                tensor = self._tensors.of(layer)
                tensor[:, page, :num_tokens].copy_(tensor[:, origin, :num_tokens])

    def keys_of(self, layer: int) -> Tensor:
        """Return a layer's K, `[num_pages, page_tokens, num_kv_heads, head_dim]`: its own in its group's pages only."""
        return self._tensors.of(layer)[0]

    def values_of(self, layer: int) -> Tensor:
        """Return a layer's V, shaped like its K."""
        return self._tensors.of(layer)[1]

    def block(self, layer: int, reservation: Reservation, block_index: int) -> Tensor:
        """Return one block's entry, `[parts, block_tokens, num_heads, head_dim]`, K then V: a view."""
        return self.blocks_of(layer)[:, self.block_number(layer, reservation, block_index)]

    def blocks_of(self, layer: int) -> Tensor:
        """Return a layer's entries, `[parts, all blocks, block_tokens, num_heads, head_dim]`, K then V: a view."""
        pages = self._tensors.of(layer)
        return pages.view(len(pages), -1, self.layout.block_tokens, *pages.shape[3:])

    def block_number(self, layer: int, reservation: Reservation, block_index: int) -> int:
        """Return where a block of a sequence is in `blocks_of`."""
        index, part = divmod(block_index, self.blocks_per_page)
        page = reservation.tables[self.group_of(layer)][index]
        assert page >= 0, f"block {block_index} has no page in layer {layer}"
        return page * self.blocks_per_page + part
