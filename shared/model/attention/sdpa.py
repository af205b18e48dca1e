"""Attention over paged K and V on PyTorch's scaled_dot_product_attention: the reference, and what works everywhere."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from shared.model.attention.base import Attention
from shared.model.layers.batch import Batch, Span
from shared.model.pages.kv import PagedKv

_TILE_TOKENS = 512  # queries at a time in full layers: bounds the mask, [tile, context]
_WINDOW_TILE_TOKENS = 256  # and in window layers, where a tile reads window + tile tokens


class SdpaAttention(Attention):
    """Works everywhere, sequence by sequence. A sequence whose pages are adjacent is read in place, else gathered."""

    name = "PyTorch SDPA"

    def forward(self, q: Tensor, layer: int, batch: Batch, kv: PagedKv, scale: float, window: int | None) -> Tensor:
        out = torch.empty_like(q)
        row = 0
        for number, span in enumerate(batch.spans):
            rows = slice(row, row + span.num_tokens)
            _attend(q[rows], out[rows], layer, batch, number, kv, scale, window)
            row += span.num_tokens
        return out


def _attend(
    q: Tensor, out: Tensor, layer: int, batch: Batch, number: int, kv: PagedKv, scale: float, window: int | None
) -> None:
    span = batch.spans[number]
    if window is not None and window >= span.end:
        window = None
    context = _Context(layer, batch, number, kv, 0 if window is None else max(0, span.start - window + 1))
    for start, stop in _tiles(span, window):
        first = context.first if window is None else max(context.first, start - window + 1)
        keys, values = context.slice(first, stop)
        tile = slice(start - span.start, stop - span.start)
        out[tile] = _tile(q[tile], keys, values, scale, window)


def _tiles(span: Span, window: int | None) -> Iterator[tuple[int, int]]:
    """Cut a span's positions into tiles; what needs no mask, as from the start of a sequence, stays whole."""
    if window is None and span.start == 0:
        yield span.start, span.end
        return
    step = _TILE_TOKENS if window is None else _WINDOW_TILE_TOKENS
    for start in range(span.start, span.end, step):
        yield start, min(start + step, span.end)


class _Context:
    """K and V of one sequence and layer from a first position on, fetched once for all tiles."""

    def __init__(self, layer: int, batch: Batch, number: int, kv: PagedKv, first: int) -> None:
        first_page, last_page = first // batch.page_tokens, -(-batch.spans[number].end // batch.page_tokens)
        pages = batch.page_run(number, kv.group_of(layer), first_page, last_page)
        self.first = first
        self._base = first_page * batch.page_tokens
        self._keys, self._values = (_select(t, pages) for t in (kv.keys_of(layer), kv.values_of(layer)))

    def slice(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        part = slice(start - self._base, stop - self._base)
        return self._keys[part], self._values[part]


def _select(pool: Tensor, pages: range | Tensor) -> Tensor:
    """Return `[tokens, heads, dim]` of the given pages, a view where they are adjacent."""
    if isinstance(pages, range):
        return pool[pages.start : pages.stop].flatten(0, 1)
    return pool.index_select(0, pages).flatten(0, 1)


def _tile(q: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
    """Attend with the last `len(q)` positions of `keys`. Heads go before tokens, as the kernel wants them."""
    num_queries, num_heads, head_dim = q.shape
    num_keys, num_kv_heads, _ = keys.shape
    k, v = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    if num_queries == 1:
        # One query: the heads that share K and V become its rows, so that K and V are read once.
        grouped = q.view(1, num_kv_heads, num_heads // num_kv_heads, head_dim)
        return scaled_dot_product_attention(grouped, k, v, scale=scale).reshape(1, num_heads, head_dim)
    causal = num_queries == num_keys and window is None
    mask = None if causal else _mask(num_queries, num_keys, window, q.dtype, q.device)
    gqa = num_heads != num_kv_heads
    attended = scaled_dot_product_attention(
        q.transpose(0, 1)[None], k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=gqa
    )
    return attended[0].transpose(0, 1)


@lru_cache(maxsize=2)  # the layers of a chunk ask for two, full and window; a full one is large at long contexts
def _mask(num_queries: int, num_keys: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `[num_queries, num_keys]`, 0 where the last `num_queries` positions may look and -inf elsewhere."""
    mask = torch.zeros(num_queries, num_keys, dtype=dtype, device=device)
    hidden = torch.full((num_queries, num_queries), float("-inf"), dtype=dtype, device=device)
    mask[:, num_keys - num_queries :] = hidden.triu(1)
    if window is not None:
        positions = torch.arange(num_keys, device=device)
        mask.masked_fill_(positions <= positions[num_keys - num_queries :, None] - window, float("-inf"))
    return mask
