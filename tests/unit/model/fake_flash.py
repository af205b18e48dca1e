"""flash-attn 2's two functions in plain PyTorch, with the argument checks of the real ones (version 2.8)."""

import torch
from torch import Tensor


def _check(q: Tensor, k: Tensor, v: Tensor, block_table: Tensor) -> None:
    for tensor in (q, k, v):
        if tensor.dtype not in (torch.float16, torch.bfloat16):
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        if tensor.stride(-1) != 1:
            raise RuntimeError("Input tensor must have contiguous last dimension")
    if q.shape[-1] > 256 or q.shape[-1] % 8:
        raise RuntimeError("head_size must be at most 256 and a multiple of 8")
    if k.shape[1] % 256:
        raise RuntimeError("Paged KV cache block size must be divisible by 256")
    if q.shape[-2] % k.shape[-2]:
        raise RuntimeError("Number of heads in key/value must divide number of heads in query")
    if block_table.dtype != torch.int32 or block_table.stride(-1) != 1:
        raise RuntimeError("block_table must have dtype torch.int32 and be contiguous")


def attend(
    q: Tensor, pool_k: Tensor, pool_v: Tensor, table: Tensor, length: int, scale: float, window: tuple[int, int]
) -> Tensor:
    """Attend with the last `len(q)` of `length` positions (bottom-right causal mask), in float32."""
    num_queries, heads, _ = q.shape
    k = pool_k[table.long()].flatten(0, 1)[:length].float()
    v = pool_v[table.long()].flatten(0, 1)[:length].float()
    group = heads // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * scale
    distance = torch.arange(length - num_queries, length)[:, None] - torch.arange(length)
    hidden = distance < 0
    if window[0] >= 0:
        hidden |= distance > window[0]
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v).to(q.dtype)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    block_table: Tensor,
) -> Tensor:
    _check(q, k, v, block_table)
    if not causal:
        raise AssertionError("decoders attend causally")
    if cu_seqlens_q.dtype != torch.int32 or cu_seqlens_k.dtype != torch.int32:
        raise RuntimeError("cu_seqlens must have dtype int32")
    queries, lengths = cu_seqlens_q.diff(), cu_seqlens_k.diff()
    if int(queries.max()) != max_seqlen_q or int(lengths.max()) != max_seqlen_k or int(cu_seqlens_q[-1]) != len(q):
        raise RuntimeError("lengths do not fit")
    parts = [
        attend(part, k, v, table, int(length), softmax_scale, window_size)
        for part, table, length in zip(torch.split(q, queries.tolist()), block_table, lengths, strict=True)
    ]
    return torch.cat(parts)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    block_table: Tensor,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
) -> Tensor:
    _check(q, k_cache, v_cache, block_table)
    if not causal:
        raise AssertionError("decoders attend causally")
    if cache_seqlens.dtype != torch.int32 or q.dim() != 4 or q.shape[1] != 1:
        raise RuntimeError("cache_seqlens must have dtype int32 and q shape (batch, 1, heads, dim)")
    parts = [
        attend(one, k_cache, v_cache, table, int(length), softmax_scale, window_size)
        for one, table, length in zip(q, block_table, cache_seqlens, strict=True)
    ]
    return torch.stack(parts)
