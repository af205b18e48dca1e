"""flash-attn 3's function in plain PyTorch, with the argument checks of the real one (hopper/flash_api.cpp)."""

import torch
from torch import Tensor

from tests.unit.model.fake_flash import attend


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    page_table: Tensor,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    cu_seqlens_q: Tensor | None = None,
    max_seqlen_q: int | None = None,
) -> Tensor:
    for tensor in (q, k_cache, v_cache):
        if tensor.dtype not in (torch.float16, torch.bfloat16):
            raise RuntimeError("FlashAttention only supports fp16, bf16, and fp8_e4m3 data type")
        if tensor.stride(-1) != 1:
            raise RuntimeError("Input tensor must have contiguous last dimension")
    if not causal:
        raise AssertionError("decoders attend causally")
    if cache_seqlens.dtype != torch.int32 or page_table.dtype != torch.int32 or page_table.stride(-1) != 1:
        raise RuntimeError("cache_seqlens and page_table must have dtype int32")
    if int(page_table.min()) < 0:
        raise AssertionError("a page that does not exist")
    if cu_seqlens_q is None:
        if q.dim() != 4:
            raise RuntimeError("q must have shape (batch, seqlen, heads, dim)")
        queries = list(q)
    else:
        if cu_seqlens_q.dtype != torch.int32 or q.dim() != 3:
            raise RuntimeError("q must have shape (total, heads, dim)")
        counts = cu_seqlens_q.diff()
        if int(counts.max()) != max_seqlen_q or int(cu_seqlens_q[-1]) != len(q):
            raise RuntimeError("lengths do not fit")
        queries = list(torch.split(q, counts.tolist()))
    parts = [
        attend(part, k_cache, v_cache, table, int(length), softmax_scale, window_size)
        for part, table, length in zip(queries, page_table, cache_seqlens, strict=True)
    ]
    return torch.stack(parts) if cu_seqlens_q is None else torch.cat(parts)
